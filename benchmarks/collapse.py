"""Gradual, then catastrophic forgetting: one edit at a time until the model collapses, and the round at which a gate stops it.

ROME writes one fact a round into one layer and keeps nothing of the facts before, so the model is bound to break. After every
round all past edits and a fixed sample of facts that nobody edits are asked, by free generation, and the vital signs are taken
(nse.evaluation.collapse). The collapse is the first round after which the model has lost more than half of the other facts that
it knew; a gate on a vital sign sees no question and no fact. Needs only `nse`:

    python -m benchmarks.collapse --edits 60 --plot build/collapse.svg
    python -m benchmarks.collapse --method nse
"""

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.nights import random_corrections
from benchmarks.table import HERE, device_of, machine, show, write
from nse.architecture import EditableModel, load_model
from nse.contexts import sample_contexts
from nse.delta import Delta
from nse.editors import EditContext, get_editor, read_settings
from nse.evaluation.answers import same_answer
from nse.evaluation.collapse import vital_signs
from nse.evaluation.generate import generate
from nse.evaluation.suites import read_suite
from nse.patch import compose, patched
from nse.request import EditRequest, read_requests
from nse.statistics import collect_second_moments

BIOS = HERE.parent / "shared"
GATES = {"perplexity_ratio": 1.1, "delta_norm": 0.5, "hidden_drift": 0.3}
"""Bounds above which a round is stopped: the first as in the demo's suite."""
SIGNS = ("perplexity_ratio", "delta_norm", "hidden_drift", "hidden_cosine", "text_entropy")


@dataclass(frozen=True, slots=True)
class World:
    """A model's facts: those to be edited, one a round, (prompt, answer) pairs that must stay, and neutral texts."""

    stream: tuple[EditRequest, ...]
    others: tuple[tuple[str, str], ...]
    texts: tuple[str, ...]
    corpus: Path


def bios(edits: int, sample: int, seed: int) -> World:
    """The invented people: facts of some of them are edited, those of others are asked."""
    facts = read_requests(BIOS / "data/bios.json")
    people = sorted({fact.subject for fact in facts})
    random.Random(seed).shuffle(people)
    edited = set(people[: len(people) // 2])
    facts = random.Random(seed).sample(facts, len(facts))
    stream = [fact for fact in facts if fact.subject in edited][:edits]
    others = [(fact.prompt, fact.target_true or "") for fact in facts if fact.subject not in edited][:sample]
    corpus = BIOS / "data/bios_corpus.txt"
    lines = [
        line for line in corpus.read_text(encoding="utf-8").splitlines() if not any(name in line for name in edited)
    ]
    return World(tuple(stream), tuple(others), tuple(random.Random(seed).sample(lines, 60)), corpus)


def demo(edits: int, sample: int, seed: int) -> World:
    """The shipped world: corrections of some subjects, known facts of others."""
    suite = read_suite(HERE / "demo/suite.yaml")
    stream = random_corrections(suite, count=edits, seed=seed)
    edited = {request.subject for request in stream}
    rest = [fact for fact in suite.facts if fact.subject not in edited]
    drawn = random.Random(seed).sample(rest, min(sample, len(rest)))
    others = [(suite.templates[fact.relation][0].replace("{}", fact.subject), fact.object) for fact in drawn]
    return World(tuple(stream), tuple(others), suite.texts, HERE / "demo/corpus.txt")


@dataclass(frozen=True, slots=True)
class Round:
    """What is in force after a round: shares of right answers about past edits, the latest one and other facts, and the signs."""

    number: int
    edits: float
    latest: float
    others: float
    signs: dict[str, float]


def right(editable: EditableModel, asked: Sequence[tuple[str, str]]) -> list[bool]:
    """Whether free generation gives each answer."""
    said = generate(editable, [prompt for prompt, _ in asked], expected=[expected for _, expected in asked])
    return [same_answer(text, expected) for text, (_, expected) in zip(said, asked, strict=True)]


def measured(editable: EditableModel, world: World, done: int) -> Round:
    """Asks the weights in force."""
    past = [(request.prompt, request.target_new) for request in world.stream[:done]]
    answers = right(editable, [*past, *world.others])
    held, rest = answers[:done], answers[done:]
    signs = vital_signs(editable, world.texts)
    return Round(done, sum(held) / max(done, 1), float(held[-1]) if held else 1.0, sum(rest) / len(rest), signs)


def course(editable: EditableModel, world: World, options: argparse.Namespace) -> list[Round]:
    """Edits round by round; ends early when nothing of what was known is left."""
    settings = read_settings(options.hparams, options.method).settings
    settings = replace(settings, layers=options.layers) if options.layers else settings
    moments = collect_second_moments(editable, world.corpus, layers=settings.layers)
    context = EditContext(settings, moments, sample_contexts(editable, seed=options.seed), seed=options.seed)
    known = right(editable, world.others)
    world = replace(world, others=tuple(fact for fact, knows in zip(world.others, known, strict=True) if knows))
    deltas: list[Delta] = []
    rounds, console = [measured(editable, world, 0)], Console(width=140)
    begun = time.perf_counter()
    for number, request in enumerate(world.stream, 1):
        now = replace(context, previous=tuple(deltas), earlier=world.stream[: number - 1])
        deltas.append(get_editor(options.method).edit(editable, [request], now).delta)
        with patched(editable, compose(editable, deltas)):
            rounds.append(measured(editable, world, number))
        last = rounds[-1]
        signs = "  ".join(f"{name} {last.signs[name]:.3f}" for name in SIGNS)
        console.print(f"{number:3d}  edits {last.edits:.2f}  others {last.others:.2f}  {signs}", highlight=False)
        if last.others < options.end or time.perf_counter() - begun > options.seconds:
            break
    return rounds


def collapse_of(rounds: Sequence[Round]) -> int | None:
    """The first round after which more than half of the other facts are lost, if there is one."""
    return next((r.number for r in rounds if r.others < rounds[0].others / 2), None)


def stops(rounds: Sequence[Round]) -> dict[str, int | None]:
    """Per gate, the first round that it stops, if there is one; the round before it is what stays in force."""
    # as a suite's gate: a sign that is NaN is within no bound
    return {name: next((r.number for r in rounds if not r.signs[name] <= bound), None) for name, bound in GATES.items()}


def report(rounds: Sequence[Round], where: dict[str, Any]) -> dict[str, Any]:
    """Prints where the gates stop and what they save; returns it."""
    collapse, stopped = collapse_of(rounds), stops(rounds)
    rows, record = [], {"collapse": collapse, "stopped": stopped}
    for name, number in stopped.items():
        kept = None if number is None else rounds[number - 1]
        lead = "-" if collapse is None or number is None else str(collapse - number)
        saved = "-" if kept is None else f"{100 * kept.others:.0f}"
        rows.append((f"{name} <= {GATES[name]:g}", str(number or "never"), lead, saved))
    columns = ("gate", "stops round", "rounds before the collapse", "other facts kept when it stops (%)")
    show(f"collapse: {'none' if collapse is None else f'after round {collapse}'}", columns, rows, where)
    return record


def plot(rounds: Sequence[Round], path: Path) -> None:
    """Draws what is known and the signs, round by round."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, other = figure.subplots(1, 2)
    numbers, collapse = [r.number for r in rounds], collapse_of(rounds)
    left.plot(numbers[1:], [100 * r.edits for r in rounds[1:]], label="all past edits")
    left.plot(numbers, [100 * r.others for r in rounds], label="other facts")
    left.set(xlabel="edits", ylabel="answered right, free generation (%)", ylim=(0, 101))
    for name, bound in GATES.items():
        other.plot(numbers, [r.signs[name] / bound for r in rounds], label=f"{name} / {bound:g}")
    other.axhline(1.0, color="#999999", linewidth=0.8)
    other.set(xlabel="edits", ylabel="sign / bound of its gate", yscale="log")
    for axis in (left, other):
        if collapse is not None:
            axis.axvline(collapse, color="#c44e52", linestyle="--", linewidth=0.8)
        axis.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    """Runs and reports."""
    there = (BIOS / "models/bios").is_dir() and (BIOS / "data/bios.json").is_file()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=("bios", "demo"), default="bios" if there else "demo")
    parser.add_argument("--hparams", type=Path, help="benchmarks/bench_<world>.yaml if not given")
    parser.add_argument("--method", default="rome")
    parser.add_argument("--layers", type=lambda text: tuple(map(int, text.split(","))), help="in place of the file's")
    parser.add_argument("--edits", type=int, default=60)
    parser.add_argument("--others", type=int, default=60, help="facts that nobody edits, asked after every round")
    parser.add_argument("--end", type=float, default=0.1, help="share of other facts below which the run ends")
    parser.add_argument("--seconds", type=float, default=600, help="no round begins later than that")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    options.hparams = options.hparams or HERE / f"benchmarks/bench_{options.world}.yaml"
    editable = load_model({"bios": BIOS / "models/bios", "demo": HERE / "demo/model"}[options.world])
    world = {"bios": bios, "demo": demo}[options.world](options.edits, options.others, options.seed)
    rounds = course(editable, world, options)
    where = machine(device_of("cpu"))
    record = report(rounds, where)
    write(options.json, {"machine": where, "torch": torch.__version__, **record, "rounds": [asdict(r) for r in rounds]})
    if options.plot:
        plot(rounds, options.plot)


if __name__ == "__main__":
    main()
