"""Every method on one stream, everything re-tested after it: the tables and plots of docs/method.md. One command each:

    python -m benchmarks.methods --world demo --stream batches
    python -m benchmarks.methods --world bios --stream single
    python -m benchmarks.methods --world demo --stream misleading --orders 1 --methods nse,memit
    python -m benchmarks.methods --world demo --stream batches --estimate

The world is a model with facts that it knows: `demo` (the suite's facts, each corrected to another object), `bios` (the
invented people in ../shared) or `smollm2` (a pretrained model and ParaRel's facts, made by `python -m benchmarks.pararel`).
`batches` are rounds of 50, `round` is one of them, `single` are rounds of one edit, `misleading` are a few rounds of 50 and then
the questions that mislead (nse/evaluation/misleading.py). Settings are those of benchmarks/bench_<world>.yaml.
Methods that train first are trained by `nse train` on facts that no stream edits, once for all; the file is kept in the folder
of records. Writes docs/methods_<world>_<stream>.md and .svg (what misleads is asked once: no plot) after every order of the
stream, and the record under build/. An interrupted run goes on where it was. `--estimate` runs the first rounds of each method
alone, and says from these how long the whole will last.
"""

import argparse
import csv
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from transformers import AutoTokenizer

from benchmarks.table import HERE, device_of, machine
from benchmarks.table import show as table
from benchmarks.tasks import task_files
from demo.fetch import fetched
from demo.wikipedia import texts
from flows.commands.bench import show
from flows.progress import shown
from nse.bench import BenchFiles, BenchOptions, bench
from nse.bench.run import in_words
from nse.bench.streams import Dataset, checkpoints, questions_about, read_dataset
from nse.bench.summary import failures, markdown
from nse.editors import EDITORS, read_settings
from nse.evaluation.misleading import MISLEADING
from nse.evaluation.probes import request_probes
from nse.evaluation.suites import Suite, read_suite
from nse.fingerprint import file_digest, json_digest
from nse.request import EditRequest

SHARED = HERE.parent / "shared"
EDITS = {"batches": 1000, "round": 50, "single": 200, "misleading": 200}
FACTS = 600
"""Most facts of a file that are corrected: what is beyond is what methods train on, and what is asked as untouched."""
ASKED = 3
"""Questions of a kind about a case at most: the suite has seven further wordings of each fact, the file ten neighbours."""
BATCH = {"batches": 50, "round": 50, "single": 1, "misleading": 50}
CHECKPOINTS = {"demo": 2, "bios": 4, "smollm2": 3}
"""The demo world's questions take four times as long, a pretrained model's longer still."""
PER_KIND = 4
"""Misleading questions of a kind about a case at most, as in demo/misleading.yaml."""
ROUNDS = {"batches": 2, "round": 1, "single": 8, "misleading": 2}
"""Rounds of an estimate."""


@dataclass(frozen=True)
class World:
    """A model with facts that it knows.

    Attributes:
        model: Its folder.
        dataset: Its facts.
        corpus: Text for C0, perplexity and consistency.
        contexts: Context templates.
        tokens: Budget of C0.
        held_out: Text for perplexity and consistency, where it is not that of C0.
        tasks: Task files for capability.
    """

    model: Path
    dataset: Path
    corpus: Path
    contexts: Path
    tokens: int
    held_out: Path | None = None
    tasks: tuple[Path, ...] = ()


def _smollm2() -> World:
    """SmolLM2 and the facts that `python -m benchmarks.pararel` asked it; both texts are Wikipedia; public task sets."""
    corpus, held_out = texts()
    dataset = HERE / "build/methods/pararel.json"
    contexts = HERE / "benchmarks/bare_contexts.json"
    return World(fetched("smollm2"), dataset, corpus, contexts, 38_400, held_out, task_files())


WORLDS: dict[str, Callable[[], World]] = {
    "demo": lambda: World(
        *(HERE / "demo/model", HERE / "demo/suite.yaml", HERE / "demo/corpus.txt", HERE / "demo/contexts.json"), 20_480
    ),
    # what this model says by itself names other people, so its contexts are beginnings of wordings that are never asked; C0 wants
    # its whole corpus (docs/log.md)
    "bios": lambda: World(
        *(SHARED / "models/bios", SHARED / "data/bios.json", SHARED / "data/bios_corpus.txt"),
        *(HERE / "benchmarks/lead_ins.json", 71_400),
    ),
    "smollm2": _smollm2,
}
"""Each is made when it is asked for: one is fetched."""


def lessons(dataset: Dataset) -> list[EditRequest]:
    """The cases that the stream does not edit, with rewordings and with neighbours that shall stay."""
    suite = dataset.suite
    if suite is None:
        return list(dataset.others)
    edited, found = {(r.subject.casefold(), r.relation or "") for r in dataset.requests}, []
    for request in dataset.others:
        relation = request.relation or ""
        probes = request_probes(
            request,
            facts=[f for f in suite.facts if f.relation == relation],
            templates=suite.templates[relation],
            edited=edited,
            neighbours=suite.neighbours,
        )
        near = [p for p in probes if p.kind == "specificity"]
        found.append(
            replace(
                request,
                paraphrase_prompts=tuple(p.prompt for p in probes if p.kind == "generalization"),
                neighborhood_prompts=tuple(p.prompt for p in near),
                neighborhood_answers=tuple(p.expected for p in near),
            )
        )
    return found


def stream_of(options: argparse.Namespace) -> Path:
    """The dataset of a world; of a file, one that past `FACTS` edits corrects facts once more.

    Every further edit gives one of the first `FACTS` facts a third object of its relation. The order of the stream decides
    which of two corrections stands.
    """
    source = WORLDS[options.world]().dataset
    if source.suffix != ".json" or options.edits <= FACTS or options.world == "smollm2":
        return source
    rows: list[dict[str, Any]] = json.loads(source.read_text(encoding="utf-8"))
    objects: dict[str, list[str]] = {}
    for told in (row["requested_rewrite"] for row in rows):
        objects.setdefault(told["relation_id"], []).extend(told[name]["str"] for name in ("target_true", "target_new"))
    drawn, again = random.Random(options.seed), []
    for row in drawn.sample(rows[:FACTS], options.edits - FACTS):
        told = row["requested_rewrite"]
        taken = {told[name]["str"] for name in ("target_true", "target_new")}
        third = {"str": drawn.choice(sorted(set(objects[told["relation_id"]]) - taken))}
        again.append(row | {"case_id": f"{row['case_id']} again", "requested_rewrite": told | {"target_new": third}})
    output: Path = options.output / f"{options.world}-{options.edits}-{options.seed}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps([*rows[:FACTS], *again, *rows[FACTS:]]), encoding="utf-8")
    return output


def misleading_suite(dataset: Dataset, folder: Path) -> Path:
    """A suite that asks what misleads: the demo's; of a file one of the cases that are not edited, in the wordings of all."""
    if dataset.suite is not None:
        return HERE / "demo/misleading.yaml"
    wordings: dict[str, dict[str, None]] = {}
    for request in (*dataset.requests, *dataset.others):
        told = (request.prompt_template, *(p.replace(request.subject, "{}", 1) for p in request.paraphrase_prompts))
        wordings.setdefault(request.relation or "", {}).update({t: None for t in told if t.count("{}") == 1})
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "facts.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [
                ("subject", "relation", "object"),
                *((r.subject, r.relation, r.target_true) for r in dataset.others if r.target_true is not None),
            ]
        )
    (folder / "templates.yaml").write_text(yaml.safe_dump({k: list(v) for k, v in wordings.items()}), encoding="utf-8")
    asked = {"misleading": list(MISLEADING), "per_kind": PER_KIND, "neighbours": 0, "untouched": 0}
    suite = folder / "suite.yaml"
    suite.write_text(yaml.safe_dump({"facts": "facts.csv", "templates": "templates.yaml", **asked}), encoding="utf-8")
    return suite


def command(name: str, **options: Any) -> None:
    """Runs a command of `nse`."""
    given = [word for option, value in options.items() for word in (f"--{option}", str(value))]
    subprocess.run([sys.executable, "-m", "flows.cli", name, *given], cwd=HERE, check=True)


def moments_of(hparams: Path, options: argparse.Namespace) -> Path:
    """What `nse stats` makes of a world's text for all layers that any method writes; made if it is not there."""
    world = WORLDS[options.world]()
    layers = sorted({layer for method in EDITORS for layer in read_settings(hparams, method).settings.layers})
    output: Path = options.output / f"{options.world}-moments-{json_digest([layers, world.tokens])[:8]}.safetensors"
    if not output.is_file():
        output.parent.mkdir(parents=True, exist_ok=True)
        names = ",".join(map(str, layers))
        command("stats", model=world.model, corpus=world.corpus, layers=names, tokens=world.tokens, output=output)
    return output


def trained_for(method: str, hparams: Path, options: argparse.Namespace) -> Path:
    """What `nse train` makes for a method, of facts that the longest stream does not edit; made if it is not there.

    A shorter stream of the same seed is its beginning, so what is trained serves all.
    """
    options = argparse.Namespace(**vars(options) | {"edits": max(options.edits, *EDITS.values())})
    tokenizer = AutoTokenizer.from_pretrained(WORLDS[options.world]().model)
    dataset = read_dataset(stream_of(options), tokenizer, edits=options.edits, seed=options.seed)
    cases: Path = options.output / f"{options.world}-{options.edits}-{options.seed}.jsonl"
    cases.parent.mkdir(parents=True, exist_ok=True)
    cases.write_text("".join(json.dumps(asdict(r)) + "\n" for r in lessons(dataset)), encoding="utf-8")
    made_of = [read_settings(hparams, method).settings.to_dict(), file_digest(cases), dataset.digest, options.seed]
    output = cases.with_name(f"{cases.stem}-{method}-{json_digest(made_of)[:8]}.safetensors")
    if not output.is_file():
        model = WORLDS[options.world]().model
        command("train", method=method, model=model, dataset=cases, hparams=hparams, seed=options.seed, output=output)
    return output


def estimated(
    record: dict[str, Any], dataset: Dataset, suite: Suite | None, options: argparse.Namespace
) -> dict[str, float]:
    """Seconds that each method will take on all orders, from a short run: rounds and questions as many times as they come."""
    rounds, questions = -(-options.edits // BATCH[options.stream]), questions_about(dataset, suite, most=ASKED)
    tested = [min(n * BATCH[options.stream], options.edits) for n in checkpoints(rounds, options.checkpoints)]
    each = sum(map(len, questions.cases.values())) / len(questions.cases)
    asked = each * sum(tested) + len(questions.untouched) * len(tested)
    found = {}
    for name, told in record["methods"].items():
        for part in told["parts"]:
            if part["failed"] is None:
                once = part["seconds"]["all"] - part["seconds"]["edits"] - part["seconds"]["probes"]
                edits = part["seconds"]["edits"] * rounds / max(len(part["rounds"]), 1)
                probes = part["seconds"]["probes"] * asked / part["probes"]
                found[name] = options.orders * (once + edits + probes)
    return found


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=WORLDS, default="demo")
    parser.add_argument("--stream", choices=BATCH, default="batches")
    parser.add_argument("--methods", help="names with commas between; all if not given")
    parser.add_argument("--hparams", type=Path, help="default: benchmarks/bench_<world>.yaml")
    parser.add_argument("--edits", type=int, help=f"default: {EDITS}")
    parser.add_argument("--orders", type=int, default=3)
    parser.add_argument("--checkpoints", type=int, help=f"default: {CHECKPOINTS}; misleading, round: 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--hold",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="give methods known facts, to be left in place",
    )
    parser.add_argument("--estimate", action="store_true", help="say how long it will last, from the first rounds")
    parser.add_argument("--docs", type=Path, default=HERE / "docs", help="folder for table and plot")
    parser.add_argument("--output", type=Path, default=HERE / "build/methods", help="folder for records")
    options = parser.parse_args()
    options.edits = options.edits or EDITS[options.stream]
    once = options.stream in ("misleading", "round")
    options.checkpoints = options.checkpoints or (1 if once else CHECKPOINTS[options.world])
    return options


def main() -> int:
    """Runs and reports; 1 if a part failed."""
    options = arguments()
    world, name = WORLDS[options.world](), f"methods_{options.world}_{options.stream}"
    hparams = options.hparams or HERE / f"benchmarks/bench_{options.world}.yaml"
    methods = tuple(options.methods.split(",")) if options.methods else tuple(EDITORS)
    tokenizer = AutoTokenizer.from_pretrained(world.model)
    source = stream_of(options)
    dataset = read_dataset(source, tokenizer, edits=options.edits, seed=options.seed)
    training = [m for m in methods if m in EDITORS and "trained" in EDITORS[m].needs]
    misleading = options.stream == "misleading"
    files = BenchFiles(
        *(world.model, source, hparams, options.output / f"{name}.json"),
        second_moment=moments_of(hparams, options),
        corpus=world.held_out or world.corpus,
        contexts=world.contexts,
        suite=misleading_suite(dataset, options.output / f"{name}_suite") if misleading else None,
        plot=None if misleading else options.docs / f"{name}.svg",
        trained={m: trained_for(m, hparams, options) for m in training},
        tasks=world.tasks,
    )
    whole = BenchOptions(
        methods,
        edits=options.edits,
        batch_size=BATCH[options.stream],
        orders=options.orders,
        checkpoints=options.checkpoints,
        seed=options.seed,
        hold=options.hold and (not misleading or dataset.suite is not None),  # a file's few wordings are all asked
        asked=ASKED,
    )
    console, begun = Console(stderr=True), time.monotonic()

    def say(line: str) -> None:
        console.print(f"{time.strftime('%H:%M')} {time.monotonic() - begun:6.0f} s  {line}", markup=False)

    with shown(console) as progress:
        if options.estimate:
            edits = min(ROUNDS[options.stream] * BATCH[options.stream], options.edits)
            short = replace(files, output=options.output / f"{name}_estimate.json", plot=None)
            record = bench(short, replace(whole, edits=edits, orders=1, checkpoints=1), progress=progress, say=say)
            suite = read_suite(files.suite) if files.suite else dataset.suite
            seconds = estimated(record, dataset, suite, options)
            rows = [(method, in_words(s / options.orders), in_words(s)) for method, s in seconds.items()]
            total = sum(seconds.values())
            rows.append(("all", in_words(total / options.orders), in_words(total)))
            table(f"{name}, from {edits} edits", ("method", "an order", f"{options.orders} orders"), rows, {})
        else:
            record = bench(
                files,
                whole,
                progress=progress,
                say=say,
                after_order=lambda r: tell(r, options.docs / f"{name}.md", options),
            )
            show(record)
    for line in failures(record):
        say(line)
    return 1 if failures(record) else 0


def tell(record: dict[str, Any], path: Path, options: argparse.Namespace) -> None:
    """Writes the table of the orders that are done."""
    where = machine(device_of("cpu"))
    caption = f"{where['processor']}, {torch.get_num_threads()} threads, torch {where['torch']}"
    line = f"`python -m benchmarks.methods --world {options.world} --stream {options.stream}`; {caption}."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{markdown(record)}\n{line}\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
