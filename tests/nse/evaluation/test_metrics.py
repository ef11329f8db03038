"""The figures of the literature, computed by hand."""

import math

import pytest

from nse.evaluation.metrics import harmonic_mean, literature, shares
from nse.evaluation.outcomes import CaseOutcome


def outcome(
    kind: str, case: str, p: float, foil: float | None, *, argmax: bool = False, passed: bool = False
) -> CaseOutcome:
    """An answer whose tokens have the probability `p` on average, those of the foil `foil`."""
    nats, foil_nats = -math.log(p), None if foil is None else -math.log(foil)
    preferred = p > (0.5 if foil is None else foil)
    return CaseOutcome(kind, case, "prompt", "answer", p**2, preferred, "text", passed, nats, foil_nats, argmax)


CASES = [
    outcome("efficacy", "a", 0.6, 0.1, argmax=True, passed=True),
    outcome("efficacy", "b", 0.2, 0.3),
    # one of three and one of one: 2/3 over cases, 1/2 over prompts
    outcome("generalization", "a", 0.4, 0.2, argmax=True, passed=True),
    outcome("generalization", "a", 0.1, 0.2),
    outcome("generalization", "a", 0.1, 0.3),
    outcome("generalization", "b", 0.8, 0.1, argmax=True),
    outcome("specificity", "a", 0.5, 0.1, argmax=True, passed=True),
    outcome("specificity", "b", 0.5, 0.3, passed=True),
    outcome("retention", "old", 0.9, 0.1, argmax=True, passed=True),
]


def test_success_and_magnitude_are_means_over_the_prompts_of_a_case_then_over_cases() -> None:
    found = literature(CASES)
    assert found["efficacy"] == 1 / 2
    assert found["generalization"] == pytest.approx((1 / 3 + 1) / 2)
    assert found["specificity"] == 1.0
    assert found["efficacy_magnitude"] == pytest.approx((0.5 - 0.1) / 2)
    assert found["generalization_magnitude"] == pytest.approx(((0.2 - 0.1 - 0.2) / 3 + 0.7) / 2)
    assert found["specificity_magnitude"] == pytest.approx((0.4 + 0.2) / 2)


def test_each_way_has_its_shares_and_its_harmonic_mean() -> None:
    found = literature(CASES)
    assert [found[f"{kind}_accuracy"] for kind in ("efficacy", "generalization", "specificity")] == pytest.approx(
        [1 / 2, 2 / 3, 1 / 2]
    )
    assert [found[f"{kind}_generation"] for kind in ("efficacy", "generalization", "specificity")] == pytest.approx(
        [1 / 2, 1 / 6, 1]
    )
    assert found["harmonic_mean"] == pytest.approx(3 / (2 + 3 / 2 + 1))
    assert found["harmonic_mean_accuracy"] == pytest.approx(3 / (2 + 3 / 2 + 2))
    assert found["harmonic_mean_generation"] == pytest.approx(3 / (2 + 6 + 1))
    assert not any("retention" in name for name in found)


def test_without_a_foil_there_is_no_success_to_publish_but_a_share() -> None:
    alone = [outcome("efficacy", "a", 0.6, None), outcome("efficacy", "b", 0.4, None, passed=True)]
    assert set(literature(alone)) == {"efficacy_accuracy", "efficacy_generation"}
    assert shares(alone) == {"efficacy": 0.5, "efficacy_accuracy": 0.0, "efficacy_generation": 0.5}
    mixed = literature([*alone, outcome("efficacy", "c", 0.6, 0.1)])
    assert (mixed["efficacy"], mixed["efficacy_generation"]) == (1.0, pytest.approx(1 / 3))


def test_nothing_asked_has_no_metrics() -> None:
    assert literature([]) == shares([]) == {}


def test_a_harmonic_mean_is_nothing_where_one_share_is() -> None:
    assert harmonic_mean([1.0, 0.0, 1.0]) == 0.0
    assert harmonic_mean([0.5, 1.0]) == pytest.approx(2 / 3)
