"""Evaluation with shared prefixes against one prompt at a time, in one run: seconds, and whether the answers are the same.

The naive way asks each probe by itself: one pass over prompt and expected text, one over prompt and foil, and greedy
generation with a cache, a token at a time, that stops where an answer ends. Needs only `nse`:

    python -m benchmarks.evaluation
    python -m benchmarks.evaluation --model ../shared/models/bios --dataset ../shared/data/bios.json
"""

import argparse
import math
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.table import HERE, device_of, flops, load, machine, matmul_rate, show, write
from nse.architecture import EditableModel
from nse.evaluation.answers import END_OF_ANSWER, answer, ended, goes_on
from nse.evaluation.generate import ANSWER_TOKENS
from nse.evaluation.probes import Probe, request_probes
from nse.evaluation.run import CaseOutcome, ask, probes_of
from nse.evaluation.suites import Suite, read_suite
from nse.request import EditRequest, read_requests
from nse.tokens import tokenize


def corrections(suite: Suite, *, count: int, seed: int) -> list[EditRequest]:
    """Corrections of `count` facts to another object of their relation."""
    generator = random.Random(seed)
    found = []
    for number, fact in enumerate(generator.sample(list(suite.facts), count)):
        others = sorted({f.object for f in suite.facts if f.relation == fact.relation} - {fact.object})
        template = suite.templates[fact.relation][0]
        new = generator.choice(others)
        found.append(EditRequest(str(number), fact.subject, template, new, fact.object, fact.relation))
    return found


@torch.no_grad()
def naive_score(editable: EditableModel, prompt: str, target: str) -> tuple[float, int]:
    """log p(target | prompt) in nats and the target's number of tokens, by the whole model on one text."""
    text = tokenize(editable.tokenizer, prompt, target=target)
    ids = torch.tensor([text.ids], device=editable.device)
    logits = editable.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
    logs = logits.float().log_softmax(dim=-1)
    scores = [float(logs[i - 1, text.ids[i]]) for i in range(text.prompt_length, len(text.ids))]
    return sum(scores), len(scores)


@torch.no_grad()
def naive_generation(editable: EditableModel, probe: Probe) -> str:
    """What the model says to one probe."""
    ids = torch.tensor([tokenize(editable.tokenizer, probe.prompt).ids], device=editable.device)
    said: list[int] = []
    cache, length = None, 0
    while len(said) < ANSWER_TOKENS:
        mask = torch.ones(1, length := length + ids.shape[1], dtype=torch.long, device=ids.device)
        out = editable.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True)
        cache, ids = out.past_key_values, out.logits[:, -1:].argmax(dim=-1)
        if int(ids) == editable.tokenizer.eos_token_id:
            break
        said.append(int(ids))
        if goes_on(probe.expected, probe.rule):
            if ended(editable.decode(said), probe.expected, rule=probe.rule):
                break
        elif END_OF_ANSWER.search(editable.decode(said[-1:])):
            break
    return editable.decode(said)


def naive(editable: EditableModel, probes: list[Probe]) -> list[tuple[float, bool, str]]:
    """log p(expected), whether it is preferred, and the answer, each probe by itself."""
    found = []
    for probe in probes:
        score, tokens = naive_score(editable, probe.prompt, probe.expected)
        foil = naive_score(editable, probe.prompt, probe.foil) if probe.foil is not None else (math.log(0.5), 1)
        text = answer(naive_generation(editable, probe), probe.expected, rule=probe.rule)
        found.append((score, score / tokens > foil[0] / foil[1], text))
    return found


def compare(slow: list[tuple[float, bool, str]], fast: tuple[CaseOutcome, ...]) -> dict[str, float]:
    """How far the two ways are from each other."""
    pairs = list(zip(slow, fast, strict=True))
    return {
        "largest_difference_nats": max(abs(s[0] - math.log(f.probability)) for s, f in pairs if f.probability > 0),
        "same_preference": sum(s[1] == f.preferred for s, f in pairs) / len(pairs),
        "same_generation": sum(s[2] == f.generated for s, f in pairs) / len(pairs),
    }


def probes_for(options: argparse.Namespace) -> list[Probe]:
    """The probes of the suite with corrections of its facts, or those of a dataset's requests."""
    if options.dataset:
        requests = read_requests(options.dataset)[: options.requests]
        return [p for r in requests for p in request_probes(r, facts=(), templates=(), edited=set(), neighbours=0)]
    suite = read_suite(options.suite)
    drawn = corrections(suite, count=2 * options.requests, seed=0)
    return probes_of(suite, drawn[: options.requests], [drawn[options.requests :]])


def timed(editable: EditableModel, probes: list[Probe], *, repeat: int) -> dict[str, Any]:
    """Runs both ways in turn on the same probes: how much faster by the clock and in processor time, and how they agree."""
    ways: dict[str, Callable[[EditableModel, list[Probe]], Any]] = {"shared": ask, "naive": naive}
    found: dict[str, Any] = {}
    wall: dict[str, list[float]] = {way: [] for way in ways}
    cpu: dict[str, list[float]] = {way: [] for way in ways}
    for way in ways.values():
        way(editable, probes[:16])  # warm
    rate = matmul_rate(editable)
    for _ in range(repeat):
        for name, way in ways.items():
            begun = time.perf_counter(), time.process_time()
            found[name] = way(editable, probes)
            wall[name].append(time.perf_counter() - begun[0])
            cpu[name].append(time.process_time() - begun[1])
    rate = max(rate, matmul_rate(editable))
    amount, spent = (
        flops(lambda: ask(editable, probes)),
        min((cpu if editable.device.type == "cpu" else wall)["shared"]),
    )
    return {
        "processor_seconds_shared": min(cpu["shared"]),
        "gflop_shared": amount / 1e9,
        "matmul_gflop_per_second": rate / 1e9,
        "share_of_matmul_rate": amount / spent / rate,
        "seconds_naive": min(wall["naive"]),
        "seconds_shared": min(wall["shared"]),
        "ratio": min(wall["naive"]) / min(wall["shared"]),
        "ratio_of_processor_time": min(cpu["naive"]) / min(cpu["shared"]),
        **compare(found["naive"], found["shared"]),
    }


def main() -> None:
    """Runs both ways and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=HERE / "demo/model")
    parser.add_argument("--suite", type=Path, default=HERE / "demo/suite.yaml")
    parser.add_argument("--dataset", type=Path, help="requests in a layout that `nse edit` reads, instead of a suite")
    parser.add_argument("--requests", type=int, default=20, help="asked about; of a suite, as many retained ones too")
    parser.add_argument("--probes", type=int, help="draw so many of the probes")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", default="cpu", help='where the model runs, as torch names it, or "auto"')
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeat", type=int, default=2, help="the fastest of so many runs counts, of both ways")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = device_of(options.device)
    editable = load(options.model, device, dtype=getattr(torch, options.dtype))
    probes = probes_for(options)
    if options.probes:
        probes = random.Random(0).sample(probes, min(options.probes, len(probes)))
    measured = timed(editable, probes, repeat=options.repeat)
    prompts, where = len({p.prompt for p in probes}), machine(device)
    rows = [
        ("one at a time (s)", f"{measured['seconds_naive']:.2f}"),
        ("shared (s)", f"{measured['seconds_shared']:.2f}"),
        ("shared, processor seconds", f"{measured['processor_seconds_shared']:.2f}"),
        ("products of the shared way (GFLOP)", f"{measured['gflop_shared']:.0f}"),
        ("share of the matmul rate that it reaches", f"{measured['share_of_matmul_rate']:.0%}"),
        ("faster", f"{measured['ratio']:.1f}"),
        ("faster, in processor time", f"{measured['ratio_of_processor_time']:.1f}"),
        ("largest difference of log p (nats)", f"{measured['largest_difference_nats']:.1e}"),
        ("same preference", f"{measured['same_preference']:.2%}"),
        ("same answer", f"{measured['same_generation']:.2%}"),
    ]
    show(f"{len(probes)} probes, {prompts} prompts, {options.model.name}, {options.dtype}", ("", ""), rows, where)
    record = {"probes": len(probes), "prompts": prompts, "model": editable.base_digest, "dtype": options.dtype}
    write(options.json, {**record, **measured, **where})


if __name__ == "__main__":
    main()
