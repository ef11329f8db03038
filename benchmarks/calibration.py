"""Calibrated settings against those found by hand, on facts of subjects that no calibration has touched.

Every file writes the same corrections in the same single rounds, from the base model each; prints a table, writes JSON. One
command; needs only `nse`:

    python -m benchmarks.calibration --world bios --calibrated build/bios.yaml
    python -m benchmarks.calibration --world demo --calibrated build/demo.yaml
    python -m benchmarks.calibration --model DIR --facts FILE --corpus FILE --calibrated NEW.yaml --hparams OLD.yaml ...

With `--minutes` it makes the calibrated file first.
"""

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from nse.architecture import EditableModel, load_model
from nse.calibration import CalibrationFiles, calibrate
from nse.calibration.facts import Case, held_facts, known_cases, read_facts, split
from nse.calibration.judge import BaseAnswers, Scores, right
from nse.calibration.run import Extent
from nse.contexts import ContextTemplates, read_contexts, sample_contexts
from nse.editors import EditContext, get_editor
from nse.hyperparameters import Hyperparameters, hyperparameters_of
from nse.patch import compose, patched
from nse.statistics import SecondMoments, collect_second_moments, read_second_moments
from nse.subjects import HeldFact, of_other_subjects
from nse.values import ValueStore

HERE = Path(__file__).resolve().parent.parent
SHARED = HERE.parent / "shared"
BARE: ContextTemplates = (("{}",),)
BIOS_BY_HAND = {"layers": [0, 1, 2], "clamp_norm_factor": 1.5, "v_lr": 0.2, "v_num_grad_steps": 40, "alpha": 2.5}
KINDS = ("efficacy", "generalization", "specificity", "harmonic_mean", "untouched")
RESAMPLES = 1000
Answers = dict[str, list[bool]]
"""By kind, whether each question about a case was answered right."""


@dataclass(frozen=True)
class World:
    """A model with facts that it knows, and the settings that people found for it."""

    model: Path
    facts: Path
    corpus: Path
    contexts: ContextTemplates | None
    by_hand: dict[str, Hyperparameters]


def world_of(options: argparse.Namespace) -> World:
    """What the command line asks for."""
    if options.world == "bios":
        by_hand = {
            f"by hand, lambda {weight}": hyperparameters_of(
                {**BIOS_BY_HAND, "mom2_update_weight": weight}, where="bios"
            ).settings
            for weight in (300, 1000)
        }
        data = SHARED / "data"
        return World(SHARED / "models/bios", data / "bios.json", data / "bios_corpus.txt", BARE, by_hand)
    if options.world == "demo":
        demo = HERE / "demo"
        contexts = read_contexts(demo / "contexts.json")
        return World(
            demo / "model",
            demo / "suite.yaml",
            demo / "corpus.txt",
            contexts,
            {"by hand": settings(demo / "hparams.yaml")},
        )
    contexts = read_contexts(options.contexts) if options.contexts else None
    return World(options.model, options.facts, options.corpus, contexts, {str(p): settings(p) for p in options.hparams})


def settings(path: Path) -> Hyperparameters:
    """The settings of a file; a calibration's evidence is not among them."""
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    return hyperparameters_of({k: v for k, v in data.items() if k != "calibration"}, where=str(path)).settings


def fresh_rounds(
    editable: EditableModel, world: World, seed: int, *, rounds: int, count: int
) -> tuple[list[tuple[Case, ...]], tuple[HeldFact, ...]]:
    """Rounds of known facts of the subjects that a calibration with `seed` leaves alone, no fact twice, and what they hold."""
    facts = read_facts(world.facts, seed=seed)
    parts = split(facts, seed=seed)
    # neighbours are asked about among the subjects of the other parts, so these count as held out for the questions
    turned = replace(parts, held_out=parts.search, search=parts.held_out)
    found: list[tuple[Case, ...]] = []
    base = BaseAnswers(editable)
    for _ in range(rounds):
        but = tuple(case for own in found for case in own)
        own = known_cases(base, facts, turned, part="search", count=count, seed=seed, but=but)
        if not own:
            break
        found.append(own)
    return found, held_facts(facts, turned)


def answers(
    editable: EditableModel,
    cases: Sequence[Case],
    hparams: Hyperparameters,
    *,
    moments: SecondMoments,
    contexts: ContextTemplates,
    held: Sequence[HeldFact],
    store: ValueStore,
) -> list[Answers]:
    """Writes one round from the base model and asks everything about it; per case, by kind, what was answered right."""
    requests = [c.request for c in cases]
    held = tuple(of_other_subjects(held, requests))
    context = EditContext(hparams, moments, contexts, held=held, values=store)
    result = get_editor("nse").edit(editable, requests, context)
    probes = [p for c in cases for p in c.probes]
    with patched(editable, compose(editable, [result.delta])):
        passed = iter(right(editable, [(p.prompt, p.expected) for p in probes]))
    found: list[Answers] = []
    for case in cases:
        found.append({})
        for probe in case.probes:
            found[-1].setdefault(probe.kind, []).append(next(passed))
    return found


def shares(cases: Sequence[Answers]) -> Scores:
    """Shares by kind over all questions about some cases."""
    pooled: dict[str, list[bool]] = {}
    for case in cases:
        for kind, passed in case.items():
            pooled.setdefault(kind, []).extend(passed)
    return Scores(**{kind: statistics.fmean(passed) for kind, passed in pooled.items()})


def interval(a: Sequence[Answers], b: Sequence[Answers]) -> tuple[float, float]:
    """90% interval of the difference of two harmonic means, cases drawn again in pairs."""
    generator = random.Random(0)
    drawn = []
    for _ in range(RESAMPLES):
        chosen = generator.choices(range(len(a)), k=len(a))
        means = [shares([own[i] for i in chosen]).harmonic_mean for own in (a, b)]
        drawn.append(means[0] - means[1])
    drawn.sort()
    return drawn[RESAMPLES // 20], drawn[-RESAMPLES // 20]


def main() -> None:
    """Calibrates if asked to, then compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=("bios", "demo"))
    parser.add_argument("--model", type=Path)
    parser.add_argument("--facts", type=Path)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--contexts", type=Path)
    parser.add_argument("--second-moment", type=Path, help="C0 of all layers; made from the corpus if not given")
    parser.add_argument("--calibrated", type=Path, required=True, help="the file to judge; made first with --minutes")
    parser.add_argument("--hparams", type=Path, nargs="*", default=[], help="settings to compare it with")
    parser.add_argument("--minutes", type=float, help="calibrate first, within this time")
    parser.add_argument("--seed", type=int, default=0, help="of the calibration whose subjects are left out")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--batch", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    console = Console(width=140, highlight=False)
    world = world_of(options)
    editable = load_model(world.model)
    contexts = world.contexts or sample_contexts(editable, seed=options.seed)
    with tempfile.TemporaryDirectory(prefix="nse-benchmark-") as folder:
        if options.minutes:
            given = Path(folder) / "contexts.json"
            given.write_text(json.dumps(contexts))
            files = CalibrationFiles(world.facts, options.calibrated, world.corpus, contexts=given)
            extent = Extent(options.minutes, seed=options.seed)
            calibrate(
                editable, files, extent=extent, say=lambda line: console.print(line, markup=False, soft_wrap=True)
            )
        compared = {"calibrated": settings(options.calibrated), **world.by_hand}
        layers = sorted({layer for hparams in compared.values() for layer in hparams.layers})
        moments = (
            read_second_moments(options.second_moment)
            if options.second_moment
            else collect_second_moments(editable, world.corpus, layers=layers)
        )
        rounds, held = fresh_rounds(editable, world, options.seed, rounds=options.rounds, count=options.batch)
        store = ValueStore(Path(folder) / "values")
        found: dict[str, list[Answers]] = {name: [] for name in compared}
        for name, hparams in compared.items():
            for own in rounds:
                found[name] += answers(
                    *(editable, own, hparams), moments=moments, contexts=contexts, held=held, store=store
                )
            console.print(name, shares(found[name]).to_dict())
    report(console, found, rounds, options.json)


def report(
    console: Console, found: dict[str, list[Answers]], rounds: Sequence[Sequence[Case]], path: Path | None
) -> None:
    """Prints the table and writes the JSON."""
    sizes = ", ".join(str(len(own)) for own in rounds)
    table = Table(title=f"fresh facts, single rounds of {sizes}; greedy free generation (%)")
    for name in ("settings", *KINDS, "calibrated less this, 90% interval"):
        table.add_column(name.replace("_", " "), justify="left" if name == "settings" else "right")
    record: dict[str, Any] = {"rounds": [len(own) for own in rounds], "settings": {}}
    for name, own in found.items():
        reached = shares(own).to_dict()
        low, high = interval(found["calibrated"], own)
        difference = "" if name == "calibrated" else f"{100 * low:+.1f} to {100 * high:+.1f}"
        table.add_row(name, *(f"{100 * reached[k]:.1f}" if k in reached else "" for k in KINDS), difference)
        record["settings"][name] = {**reached, "calibrated_less_this": [low, high]}
    console.print(table)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
