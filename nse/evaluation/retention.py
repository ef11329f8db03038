"""Retention: how many of the past edits still hold; samples of them, and what a sample leaves open."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nse.evaluation.metrics import WAYS
from nse.evaluation.probes import shuffled
from nse.fingerprint import json_digest
from nse.request import EditRequest

Z = 1.959963984540054
"""Standard normal quantile of 0.975: intervals hold 95 times in a hundred."""


@dataclass(frozen=True, slots=True)
class Kept:
    """How many of n edits still hold.

    Attributes:
        age: Rounds since they were made.
        n: Edits that were asked.
        kept: Share of them that holds.
        low: Lower end of its 95% interval.
        high: Upper end.
    """

    age: int
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


def stratified(rounds: Sequence[Sequence[EditRequest]], size: int, *, seed: str) -> tuple[EditRequest, ...]:
    """A sample of past edits in which each round has its share, by the digests of the edits and the seed alone.

    The edits of a round stand in a drawn order, spread evenly over [0, 1] from a drawn start; the lowest of all rounds are
    taken. So the share that holds in the sample estimates that of all without weights, and where an edit comes or goes the
    samples before and after have nearly all else in common.

    Args:
        rounds: Past edits, those of one round together.
        size: How many to take; all, if there are no more.
        seed: Another one draws others.
    """
    places: dict[EditRequest, float] = {}
    for edits in rounds:
        by_name = {edit.case_id: edit for edit in edits}
        for number, name in enumerate(names := shuffled(by_name, seed)):
            places[by_name[name]] = (number + _drawn(names[0], seed)) / len(names)
    taken = set(sorted(places, key=lambda edit: (places[edit], edit.case_id))[:size])
    return tuple(edit for edit in places if edit in taken)


def _drawn(name: str, seed: str) -> float:
    """A number in [0, 1) by the digests of a name and a seed."""
    return int(json_digest([seed, name])[:12], 16) / 16**12


def sample_metrics(metrics: Mapping[str, float], *, asked: int, total: int) -> dict[str, float]:
    """What a sample of past edits says of all of them.

    Args:
        metrics: With `retention<way>`, the shares of the sample that hold.
        asked: Edits in the sample.
        total: All past edits.

    Returns:
        `retention_asked` and `retention_all`, both numbers, and `retention<way>_low` and `retention<way>_high` of each way: the
        95% interval of the share of all, within what is certain: those seen to hold are a part of all. None if none was asked.
    """
    if not asked:
        return {}
    found = {"retention_asked": float(asked), "retention_all": float(total)}
    for way in WAYS:
        right = round(metrics[f"retention{way}"] * asked)
        low, high = wilson(right, asked)
        found[f"retention{way}_low"] = max(low, right / total)
        found[f"retention{way}_high"] = min(high, (right + total - asked) / total)
    return found
