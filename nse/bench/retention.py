"""What is left of the first edits of a stream: shares over cases that are right or wrong in each of the ways of asking."""

import statistics
from collections.abc import Iterable, Mapping, Sequence

from nse.evaluation.metrics import WAYS
from nse.evaluation.retention import wilson

FIRST = 100
"""The first edits of a stream, whose retention is told by itself: a quarter of it, but no more than these."""
GENERATION = WAYS.index("_generation")


def first_edits(edits: int) -> int:
    """How many edits are the first of a stream."""
    return min(FIRST, -(-edits // 4))


def by_way(name: str, found: Iterable[Sequence[int | None]]) -> dict[str, float]:
    """The share of cases that are right, `<name><way>`; what was not asked in a way (None) does not count there."""
    cases, shares = list(found), {}
    for place, way in enumerate(WAYS):
        if asked := [right for ways in cases if (right := ways[place]) is not None]:
            shares[f"{name}{way}"] = statistics.fmean(asked)
    return shares


def retention_first(cases: Mapping[str, Sequence[int | None]], stream: Sequence[str]) -> dict[str, float]:
    """How many of the first edits still hold, of those that stand: a correction that was corrected again is not asked.

    Args:
        cases: Of each correction that stands, whether it is answered right in each of the `WAYS`, as a part's record keeps it.
        stream: Names of all corrections in their order.

    Returns:
        `retention_first<way>`; `retention_first_facts`, of how many; `retention_first_generation_low`, the lower end of
        the share's 95% interval. Nothing where none stands.
    """
    first = [cases[name] for name in stream if name in cases][: first_edits(len(stream))]
    if not first:
        return {}
    low, _ = wilson(sum(bool(ways[GENERATION]) for ways in first), len(first))
    shares = by_way("retention_first", first)
    return {**shares, "retention_first_facts": len(first), "retention_first_generation_low": low}
