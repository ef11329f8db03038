"""z per fact: ours against the oracle of the tests and against the layout of the published code, each in a process of its own.

Two worlds: `random`, a GPT-2 of 12 layers, width 768 and 50,257 tokens with random weights, 25 steps from which nobody is let
off early; `demo`, the demo model with its own settings. One command; needs only `nse` and this checkout's `tests/nse/oracle.py`:

    python -m benchmarks.values --facts 32 --oracle-facts 4 --json build/values.json

Or a model of your own, with requests and hyper-parameters:

    python -m benchmarks.values --model DIR --requests FILE --hparams FILE --bare --threads 1
"""

import argparse
import csv
import json
import os
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from benchmarks.table import (
    HERE,
    device_of,
    device_peak_bytes,
    flops,
    in_a_process,
    load,
    machine,
    matmul_rate,
    peak_bytes,
    show,
    write,
)
from nse.architecture import EditableModel
from nse.contexts import ContextTemplates, read_contexts
from nse.evaluation.suites import read_suite
from nse.hyperparameters import Hyperparameters, read_hyperparameters
from nse.request import EditRequest, read_requests
from nse.values import values_for
from tests.nse import oracle

VARIANTS = {
    "ours": "ours, in batches",
    "published": "published layout: one fact at a time, its contexts in one padded batch, the whole model",
    "oracle": "oracle: one text at a time, the whole model",
}
CONTEXTS: ContextTemplates = (
    ("{}",),
    (
        "The weather in the north was fine that day. {}",
        "Therefore the people came to the old river. {}",
        "Because the road to the city was long, {}",
        "I think that the year was a good one. {}",
        "You can see the house of the king. {}",
    ),
)
"""The bare prompt and five contexts of about ten words, in place of what a random model would sample."""
PUBLISHED = Hyperparameters(
    layers=(3, 4, 5), v_num_grad_steps=25, v_lr=0.5, clamp_norm_factor=0.75, v_loss_target=1e-9, joint_values=False
)
"""The published settings of GPT-2 XL, with layers for a model of 12 and a target that no loss reaches."""


def make_random(folder: Path) -> None:
    """Writes a random GPT-2 (small) and a byte-level tokenizer of the demo's text; the tokenizer knows fewer tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=50257,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(HERE / "demo/corpus.txt"), str(HERE / "demo/text.txt")], trainer)
    torch.manual_seed(0)
    # with 0.06 the hidden state after layer 5 has a norm of about 60 and no neuron is dead, as in a trained model
    GPT2LMHeadModel(GPT2Config(initializer_range=0.06)).save_pretrained(folder)
    end = "<|endoftext|>"
    special = {"bos_token": end, "eos_token": end, "pad_token": end}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)  # type: ignore[no-untyped-call]


def corrections(count: int) -> list[EditRequest]:
    """Corrections of the demo, one for each subject, and after them known facts of other subjects with another's object."""
    text = (HERE / "demo/corrections.csv").read_text(encoding="utf-8", errors="replace")
    found: dict[str, EditRequest] = {}
    for number, row in enumerate(csv.DictReader(text.splitlines())):
        cells = {key: row.get(key) or "" for key in ("subject", "prompt_template", "target_new")}
        request = EditRequest(str(number), cells["subject"], cells["prompt_template"], cells["target_new"])
        if not request.problems() and "\ufffd" not in "".join(cells.values()):
            found.setdefault(request.subject.casefold(), request)
    suite = read_suite(HERE / "demo/suite.yaml")
    for number, (fact, other) in enumerate(zip(suite.facts, suite.facts[7:], strict=False)):
        if fact.object != other.object and fact.relation == other.relation:
            template = suite.templates[fact.relation][0]
            request = EditRequest(f"known {number}", fact.subject, template, other.object)
            found.setdefault(request.subject.casefold(), request)
    return list(found.values())[:count]


def spread(requests: list[EditRequest], count: int) -> list[int]:
    """Places of `count` of the requests at equal steps of their length, so that a few stand for all."""
    order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt) + len(requests[i].target_new))
    count = min(count, len(order))
    return [order[(2 * i + 1) * len(order) // (2 * count)] for i in range(count)]


def run_variant(job: dict[str, Any], output: Path) -> dict[str, Any]:
    """Computes the z's that a job asks for, writes them to `output`, and says what it took."""
    torch.set_num_threads(job["threads"])
    device = device_of(job["device"])
    editable = load(Path(job["model"]), device)
    requests = [EditRequest(**request) for request in job["requests"]]
    contexts: ContextTemplates = tuple(map(tuple, job["contexts"]))
    settings = Hyperparameters(**{**job["settings"], "layers": tuple(job["settings"]["layers"])})
    compute(editable, job, requests[:1], contexts, replace(settings, v_num_grad_steps=1))  # warm, and the base's digest
    rate, before = matmul_rate(editable), peak_bytes()
    wall, processor = time.perf_counter(), time.process_time()
    z = compute(editable, job, requests, contexts, settings)
    record = {
        "facts": len(requests),
        "seconds_per_fact": (time.perf_counter() - wall) / len(requests),
        "processor_seconds_per_fact": (time.process_time() - processor) / len(requests),
        "peak_bytes": peak_bytes(),
        "peak_bytes_before": before,
        "peak_bytes_on_device": device_peak_bytes(device),
    }
    rate = max(rate, matmul_rate(editable))  # at its best: others compute beside us
    amount = flops(lambda: compute(editable, job, requests, contexts, settings))
    record["gflop_per_fact"] = amount / len(requests) / 1e9
    record["matmul_gflop_per_second"] = rate / 1e9
    spent = record["processor_seconds_per_fact" if device.type == "cpu" else "seconds_per_fact"]
    record["share_of_matmul_rate"] = amount / len(requests) / spent / rate
    save_file({"z": z}, output)
    return record


def compute(
    editable: EditableModel,
    job: dict[str, Any],
    requests: list[EditRequest],
    contexts: ContextTemplates,
    settings: Hyperparameters,
) -> torch.Tensor:
    """z (n, d_model) float32 by the job's variant."""
    if job["variant"] == "ours":
        bound = {} if job["memory"] is None else {"memory": job["memory"] << 20}
        return values_for(editable, requests, contexts=contexts, hyperparameters=settings, **bound)
    one = oracle.compute_z if job["variant"] == "oracle" else oracle.compute_z_as_published
    return torch.stack([one(editable, r, contexts=contexts, hyperparameters=settings) for r in requests])


def measure_world(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs all variants on one world and compares their z's."""
    model, requests = HERE / "demo/model", corrections(options.facts)
    contexts, settings = read_contexts(HERE / "demo/contexts.json"), None
    if name == "random":
        model, contexts, settings = folder / "random", CONTEXTS, PUBLISHED
        in_a_process("benchmarks.values", ["--make", str(model)])
    elif name == "given":
        model, contexts = options.model, CONTEXTS[:1] if options.bare else CONTEXTS
        settings = read_hyperparameters(options.hparams).settings
        if options.requests:
            requests = read_requests(options.requests)[: options.facts]
    settings = settings or read_hyperparameters(HERE / "demo/at_subjects.yaml").settings
    settings = replace(settings, joint_values=False, value_contexts="all")
    few = spread(requests, options.oracle_facts)
    results, z = {}, {}
    for variant in VARIANTS:
        chosen = requests if variant == "ours" else [requests[i] for i in few]
        job = {
            "variant": variant,
            "model": str(model),
            "requests": [asdict(r) for r in chosen],
            "contexts": contexts,
            "settings": settings.to_dict(),
            "device": options.device,
            "threads": options.threads,
            "memory": options.memory,
        }
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        output = folder / f"{name}-{variant}.safetensors"
        results[variant] = in_a_process("benchmarks.values", ["--job", str(folder / "job.json"), "--z", str(output)])
        z[variant] = load_file(output)["z"].double()
    ours = z["ours"][few]
    for variant in ("published", "oracle"):
        error = (ours - z[variant]).norm(dim=1) / z[variant].norm(dim=1)
        slow, fast = results[variant], results["ours"]
        slow["ratio"] = slow["seconds_per_fact"] / fast["seconds_per_fact"]
        slow["ratio_of_processor_time"] = slow["processor_seconds_per_fact"] / fast["processor_seconds_per_fact"]
        slow["difference_median"], slow["difference_max"] = float(error.median()), float(error.max())
    return {"settings": settings.to_dict(), "contexts": sum(map(len, contexts)), "results": results}


def report(name: str, record: dict[str, Any], where: dict[str, Any]) -> None:
    """Prints the table of one world."""
    rows = []
    for variant, label in VARIANTS.items():
        r = record["results"][variant]
        compared = (
            (
                f"{r['ratio']:.1f}",
                f"{r['ratio_of_processor_time']:.1f}",
                f"{r['difference_median']:.1e}",
                f"{r['difference_max']:.1e}",
            )
            if variant != "ours"
            else ("1", "1", "", "")
        )
        peak = r["peak_bytes_on_device"] or r["peak_bytes"]
        work = (f"{r['gflop_per_fact']:.1f}", f"{r['share_of_matmul_rate']:.0%}")
        seconds = (f"{r['seconds_per_fact']:.2f}", f"{r['processor_seconds_per_fact']:.2f}")
        rows.append((label, str(r["facts"]), *seconds, *compared, *work, f"{peak / 2**30:.2f}"))
    columns = (
        *("z", "facts", "s per fact", "CPU s", "ours is faster", "by CPU time", "difference, median", "max"),
        *("GFLOP per fact", "of the matmul rate", "peak GiB"),
    )
    steps = record["settings"]["v_num_grad_steps"]
    rate = max(r["matmul_gflop_per_second"] for r in record["results"].values())
    title = (
        f"{name} model, {record['contexts']} contexts, at most {steps} steps; matmul rate {rate:.0f} GFLOP per CPU s"
    )
    show(title, columns, rows, where)


def main() -> None:
    """Runs the worlds and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=("random", "demo", "both"), default="both")
    parser.add_argument("--model", type=Path, help="a model of your own in place of the worlds; needs --hparams")
    parser.add_argument("--requests", type=Path, help="its corrections, in a layout that `nse edit` reads")
    parser.add_argument("--hparams", type=Path, help="its hyper-parameters")
    parser.add_argument("--bare", action="store_true", help="with --model: only the bare prompt, no other context")
    parser.add_argument("--facts", type=int, default=32)
    parser.add_argument("--oracle-facts", type=int, default=4, help="facts for the slow ways, spread over the lengths")
    parser.add_argument("--memory", type=int, help="bound on our activations, MiB; the default of `nse` if not given")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    for hidden in ("--make", "--job", "--z"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make_random(options.make)
        print("{}")
        return
    if options.job:
        print(json.dumps(run_variant(json.loads(options.job.read_text(encoding="utf-8")), options.z)))
        return
    if options.model and not options.hparams:
        parser.error("--model needs --hparams")
    torch.set_num_threads(options.threads)
    where = machine(device_of(options.device))
    records = {}
    with tempfile.TemporaryDirectory() as folder:
        worlds = ("random", "demo") if options.world == "both" else (options.world,)
        for name in ("given",) if options.model else worlds:
            records[name] = measure_world(name, options, Path(folder))
            report(name, records[name], where)
    write(options.json, {"machine": where, **records})


if __name__ == "__main__":
    main()
