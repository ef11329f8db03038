"""Metrics: what the outcomes of probes come to, by the definitions under which the field publishes them.

References:
    ROME (arXiv 2202.05262), section 3.3, and MEMIT (arXiv 2210.07229), section 4.2: success and magnitude on CounterFact. p of an
    object is exp of the mean log-probability of its tokens, as in the code of both.
"""

import math
from collections.abc import Callable, Iterable, Sequence

from nse.evaluation.outcomes import CaseOutcome

LITERATURE = ("efficacy", "generalization", "specificity")
WAYS = ("", "_accuracy", "_generation")
"""By probability, by argmax with the answer's earlier tokens given (teacher forcing), by greedy free generation."""


def shares(outcomes: Iterable[CaseOutcome]) -> dict[str, float]:
    """The share of right answers of each kind that was asked, in each of the `WAYS`: `<kind><way>`."""
    return {
        f"{kind}{way}": by_case(own, right)
        for kind, own in _by_kind(outcomes).items()
        for way, right in zip(WAYS, (_preferred, _accurate, _passed), strict=True)
    }


def literature(outcomes: Iterable[CaseOutcome]) -> dict[str, float]:
    """The figures under which methods are compared in print; shares in [0, 1], those of kinds that were not asked left out.

    Returns:
        For efficacy, generalization and specificity each:
        `<kind>`: success, p(expected) > p(foil), where the foil is the old object (the new one for specificity);
        `<kind>_magnitude`: mean of p(expected) - p(foil), in [-1, 1];
        `<kind>_accuracy`: all tokens of the answer are the most probable ones;
        `<kind>_generation`: the answer by free generation is right.
        And `harmonic_mean<way>` of the three, of each of the `WAYS` in which all three were asked.

    Deviation:
        Probes without a foil have no success or magnitude; `shares` compares them with one half. Accuracy demands all tokens, as
        the published code does on CounterFact; on zsRE that averages over tokens, which says more of a half-right answer.
    """
    found: dict[str, float] = {}
    for kind, own in _by_kind(o for o in outcomes if o.kind in LITERATURE).items():
        if compared := [o for o in own if o.foil_nats is not None]:
            found[kind] = by_case(compared, _preferred)
            found[f"{kind}_magnitude"] = by_case(compared, _magnitude)
        found[f"{kind}_accuracy"] = by_case(own, _accurate)
        found[f"{kind}_generation"] = by_case(own, _passed)
    for way in WAYS:
        three = [found[f"{kind}{way}"] for kind in LITERATURE if f"{kind}{way}" in found]
        if len(three) == len(LITERATURE):
            found[f"harmonic_mean{way}"] = harmonic_mean(three)
    return found


def by_case(outcomes: Iterable[CaseOutcome], value: Callable[[CaseOutcome], float]) -> float:
    """Mean over the prompts of each case, then over the cases: a case with many prompts counts no more than one with few."""
    cases: dict[str, list[float]] = {}
    for outcome in outcomes:
        cases.setdefault(outcome.case_id, []).append(value(outcome))
    means = [sum(values) / len(values) for values in cases.values()]
    return sum(means) / len(means)


def harmonic_mean(values: Sequence[float]) -> float:
    """n / sum(1 / value) of values in [0, 1]; 0 if one of them is."""
    return len(values) / sum(1 / value for value in values) if all(values) else 0.0


def _by_kind(outcomes: Iterable[CaseOutcome]) -> dict[str, list[CaseOutcome]]:
    kinds: dict[str, list[CaseOutcome]] = {}
    for outcome in outcomes:
        kinds.setdefault(outcome.kind, []).append(outcome)
    return kinds


def _preferred(outcome: CaseOutcome) -> float:
    return float(outcome.preferred)


def _passed(outcome: CaseOutcome) -> float:
    return float(outcome.passed)


def _accurate(outcome: CaseOutcome) -> float:
    return float(outcome.argmax)


def _magnitude(outcome: CaseOutcome) -> float:
    assert outcome.foil_nats is not None
    return math.exp(-outcome.nats) - math.exp(-outcome.foil_nats)
