"""Many corrections of few subjects: each fact of some people, and some of others', in random order, then everything asked again.

Prints the published method's row beside ours: with joint values, with held facts as well, and with the prompts' other tokens
kept as well. All rows have the same settings otherwise. Needs only `nse`:

    python -m benchmarks.subjects --model MODEL --requests bios.json --corpus bios_corpus.txt --hparams benchmarks/bios_joint.yaml
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nse.architecture import EditableModel, load_model
from nse.contexts import BARE, read_contexts, sample_contexts
from nse.delta import Delta
from nse.editors import EditContext, get_editor
from nse.evaluation.probes import Probe
from nse.evaluation.run import ask
from nse.hyperparameters import Hyperparameters, read_hyperparameters
from nse.patch import compose, patched
from nse.request import EditRequest, read_requests
from nse.statistics import Sample, collect_second_moments
from nse.subjects import HeldFact, fact_key

COLUMNS = ("efficacy", "efficacy_generation", "generalization", "unedited", "others")


def stream_of(facts: Sequence[EditRequest], *, full: int, part: int, seed: int) -> list[EditRequest]:
    """All facts of `full` people and two each of `part` others, in random order."""
    generator = random.Random(seed)
    by_person: dict[str, list[EditRequest]] = {}
    for fact in facts:
        by_person.setdefault(fact.subject, []).append(fact)
    people = sorted(by_person)
    generator.shuffle(people)
    stream = [fact for person in people[:full] for fact in by_person[person]]
    stream += [fact for person in people[full : full + part] for fact in generator.sample(by_person[person], 2)]
    generator.shuffle(stream)
    return stream


def edited(
    editable: EditableModel, stream: list[EditRequest], known: Sequence[HeldFact], context: EditContext, batch: int
) -> list[Delta]:
    """The stream in batches, each with what came before."""
    deltas: list[Delta] = []
    for start in range(0, len(stream), batch):
        corrected = {fact_key(r) for r in stream[: start + batch]}
        now = replace(
            context,
            previous=tuple(deltas),
            earlier=tuple(stream[:start]),
            held=tuple(fact for fact in known if fact_key(fact) not in corrected),
        )
        deltas.append(get_editor("nse").edit(editable, stream[start : start + batch], now).delta)
    return deltas


def scores(
    editable: EditableModel, deltas: list[Delta], stream: list[EditRequest], facts: Sequence[EditRequest]
) -> dict[str, float]:
    """Shares of right answers after the stream; all by free generation but `efficacy`, which is by probability."""
    done, people = {fact_key(r) for r in stream}, {r.subject for r in stream}
    probes = [Probe("efficacy", r.case_id, r.prompt, r.target_new, r.target_true) for r in stream]
    probes += [Probe("generalization", r.case_id, p, r.target_new) for r in stream for p in r.paraphrase_prompts]
    rest = [r for r in facts if fact_key(r) not in done and r.target_true]
    probes += [
        Probe("untouched" if r.subject in people else "specificity", r.case_id, r.prompt, r.target_true or "")
        for r in rest
    ]
    with patched(editable, compose(editable, deltas)):
        outcomes = ask(editable, probes)
    names = {"generalization": "generalization", "untouched": "unedited", "specificity": "others"}
    found = {"efficacy": [o.preferred for o in outcomes if o.kind == "efficacy"]}
    for outcome in outcomes:
        found.setdefault(names.get(outcome.kind, "efficacy_generation"), []).append(outcome.passed)
    return {name: sum(right) / len(right) for name, right in found.items()}


def main() -> None:
    """Runs the stream in four ways and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "requests", "corpus", "hparams"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--contexts", type=Path, help="default: sampled from the model")
    parser.add_argument("--bare", action="store_true", help="no context templates at all")
    parser.add_argument("--full", type=int, default=25, help="people all of whose facts are corrected")
    parser.add_argument("--part", type=int, default=25, help="people two of whose facts are corrected")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=100_000, help="tokens of the corpus for C0; 20,000 are too few")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    editable, facts = load_model(options.model), read_requests(options.requests)
    settings: Hyperparameters = read_hyperparameters(options.hparams).settings
    moments = collect_second_moments(
        editable, options.corpus, layers=settings.layers, sample=Sample(tokens=options.tokens)
    )
    contexts = read_contexts(options.contexts) if options.contexts else sample_contexts(editable, seed=options.seed)
    stream = stream_of(facts, full=options.full, part=options.part, seed=options.seed)
    known = [HeldFact(r.subject, r.prompt_template, r.target_true or "", r.relation) for r in facts]
    table = Table(title=f"{len(stream)} corrections in batches of {options.batch} (%)")
    for name in ("", *COLUMNS, "seconds"):
        table.add_column(name, justify="right")
    rows = {}
    bare = replace(settings, prompt_keys_weight=0.0)
    ways: dict[str, tuple[Hyperparameters, Sequence[HeldFact]]] = {
        "published": (replace(bare, joint_values=False), ()),
        "joint": (bare, ()),
        "joint, held": (bare, known),
        "joint, held, prompts kept": (settings, known),
    }
    for name, (own, held) in ways.items():
        begun = time.perf_counter()
        context = EditContext(own, moments, BARE if options.bare else contexts)
        deltas = edited(editable, stream, held, context, options.batch)
        seconds = time.perf_counter() - begun
        rows[name] = scores(editable, deltas, stream, facts) | {"seconds": seconds}
        table.add_row(name, *(f"{100 * rows[name][c]:.1f}" for c in COLUMNS), f"{seconds:.0f}")
    Console(width=120).print(table)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "rows": rows,
            "settings": settings.to_dict(),
            "seed": options.seed,
            "tokens": options.tokens,
            "model": editable.base_digest,
        }
        options.json.write_text(json.dumps(record, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
