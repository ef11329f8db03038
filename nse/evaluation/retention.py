"""Retention by age: how many of the past edits still hold, by the number of rounds since, with what a sample leaves open."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from nse.errors import NseError
from nse.evaluation.outcomes import CaseOutcome
from nse.evaluation.probes import shuffled
from nse.request import EditRequest

Z = 1.959963984540054
"""Standard normal quantile of 0.975: intervals hold 95 times in a hundred."""
COLOUR = "#4878a8"


@dataclass(frozen=True, slots=True)
class Kept:
    """How many of n edits still hold.

    Attributes:
        age: Rounds since they were made; nothing for all edits together.
        n: Edits that were asked.
        kept: Share of them that holds.
        low: Lower end of its 95% interval.
        high: Upper end.
    """

    age: int | None
    n: int
    kept: float
    low: float
    high: float


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95% interval of a share of which `right` of n draws were seen.

    References:
        Wilson (1927), Probable inference, the law of succession, and statistical inference.
    """
    share, shrink = right / n, 1 + Z**2 / n
    middle = (share + Z**2 / (2 * n)) / shrink
    half = Z / shrink * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    # the ends are 0 and 1 exactly where no draw was right and where all were: what rounding says is no matter
    return (0.0 if right == 0 else middle - half), (1.0 if right == n else middle + half)


def retention_by_age(outcomes: Sequence[CaseOutcome], rounds: Mapping[str, int]) -> tuple[tuple[Kept, ...], Kept]:
    """What free generation says of past edits, by age, youngest first, and of all of them together.

    Args:
        outcomes: Answers to one probe or more per past edit, at least one edit's; an edit holds if all of its answers are right.
        rounds: Number of the round of each edit that was ever made, by `case_id`; the youngest has age 0.
    """
    held: dict[str, bool] = {}
    for outcome in outcomes:
        held[outcome.case_id] = held.get(outcome.case_id, True) and outcome.passed
    latest = max(rounds.values())
    ages: dict[int, list[bool]] = {}
    for case, holds in held.items():
        ages.setdefault(latest - rounds[case], []).append(holds)
    return tuple(_kept(age, ages[age]) for age in sorted(ages)), _kept(None, list(held.values()))


def stratified(rounds: Sequence[Sequence[EditRequest]], size: int, *, seed: str) -> tuple[EditRequest, ...]:
    """A sample of past edits in which each round has its share, by the digests of the edits and the seed alone.

    Every (all / size)-th edit is taken, round after round, in a drawn order within each; so the share that holds in the sample
    estimates that of all without weights, and no round that has all / size edits is left out.

    Args:
        rounds: Past edits, those of one round together.
        size: How many to take; all, if there are no more.
        seed: Another one draws others.
    """
    ordered = []
    for edits in rounds:
        by_name = {edit.case_id: edit for edit in edits}
        ordered += [by_name[name] for name in shuffled(by_name, seed)]
    if size >= len(ordered):
        return tuple(ordered)
    return tuple(ordered[(2 * i + 1) * len(ordered) // (2 * size)] for i in range(size))


def draw(ages: Sequence[Kept], overall: Kept, path: Path) -> None:
    """Draws retention by age with its intervals into an SVG file, the same bytes each time.

    Raises:
        NseError: If matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise NseError("a plot needs matplotlib, which is not installed: `pip install 'nse-pipeline[plots]'`")
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    FigureCanvasSVG(figure)
    axis = figure.subplots()
    numbers, shares = [k.age or 0 for k in ages], [100 * k.kept for k in ages]
    errors = [[100 * max(0.0, k.kept - k.low) for k in ages], [100 * max(0.0, k.high - k.kept) for k in ages]]
    axis.errorbar(numbers, shares, yerr=errors, fmt="o-", color=COLOUR, capsize=3, label="by age")
    axis.axhspan(100 * overall.low, 100 * overall.high, color=COLOUR, alpha=0.15, label="all ages")
    axis.set(xlabel="age of edit (rounds)", ylabel="still holds, free generation (%)", ylim=(0, 101))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(fontsize=8, loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{os.getpid()}.{path.name}"
    with rc_context({"svg.hashsalt": "nse"}):
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    temporary.replace(path)


def _kept(age: int | None, held: Sequence[bool]) -> Kept:
    low, high = wilson(sum(held), len(held))
    return Kept(age, len(held), sum(held) / len(held), low, high)
