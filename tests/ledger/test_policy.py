"""Which decisions are allowed."""

from collections.abc import Callable

import pytest

from ledger.errors import DecisionRefused
from ledger.records import Gate

FAILED = Gate("specificity", ">=", 0.9, 0.5, False)


@pytest.fixture(params=["approve", "reject"])
def decide(request: pytest.FixtureRequest, scenario) -> Callable[..., object]:
    return getattr(scenario, request.param)


def test_a_decision_is_recorded_with_who_when_and_why(scenario) -> None:
    changeset = scenario.propose(scenario.file())
    decision = scenario.approve(changeset, reviewer="bruno", reason="checked the gazette")
    with scenario.ledger.read() as work:
        assert work.decisions(changeset.id) == [decision]
    assert (decision.verdict, decision.reviewer, decision.reason) == ("approve", "bruno", "checked the gazette")


@pytest.mark.parametrize("reviewer", ["ana", "ANA", " Ana ", "nse plan", "NSE  Plan"])
def test_who_filed_or_planned_it_cannot_decide_in_any_letter_case(scenario, decide, reviewer: str) -> None:
    changeset = scenario.propose(scenario.file())
    with pytest.raises(DecisionRefused, match=r"#1: .*(filed one of its corrections|planned it)"):
        decide(changeset, reviewer=reviewer)
    with scenario.ledger.read() as work:
        assert work.decisions(changeset.id) == []


def test_who_filed_a_correction_cannot_approve_that_it_is_reverted(scenario) -> None:
    correction = scenario.file(submitter="Bruno")
    changeset = scenario.changeset(correction)
    with scenario.ledger.begin() as work:
        written = work.add_changeset(changeset)
    scenario.approve(written, reviewer="carla")
    scenario.apply(written)
    revert = scenario.propose(kind="revert", active=(), reverted=(correction.id,))
    with pytest.raises(DecisionRefused, match="filed one"):
        scenario.approve(revert, reviewer="bruno")


@pytest.mark.parametrize(("reviewer", "reason"), [("", "why"), ("  ", "why"), ("bruno", ""), ("bruno", "\n")])
def test_a_decision_without_a_name_or_a_reason_is_refused(scenario, decide, reviewer: str, reason: str) -> None:
    changeset = scenario.propose(scenario.file())
    with pytest.raises(DecisionRefused, match="is empty"):
        decide(changeset, reviewer=reviewer, reason=reason)


def test_a_changeset_that_failed_a_gate_can_be_rejected_but_not_approved(scenario) -> None:
    changeset = scenario.propose(scenario.file(), gates=(Gate("efficacy", ">=", 0.9, 1, True), FAILED))
    with pytest.raises(DecisionRefused, match=r"#1 failed its gates \(specificity\)"):
        scenario.approve(changeset)
    assert scenario.reject(changeset).verdict == "reject"


def test_a_stale_changeset_cannot_be_decided(scenario, decide) -> None:
    stale = scenario.propose(scenario.file())
    scenario.write(scenario.file("Bulgaria", "lev"))
    with pytest.raises(DecisionRefused, match=r"#1 is stale: .*: plan it again"):
        decide(stale)


@pytest.mark.parametrize("first", ["approve", "reject"])
def test_a_changeset_cannot_be_decided_twice(scenario, decide, first: str) -> None:
    changeset = scenario.propose(scenario.file())
    getattr(scenario, first)(changeset)
    with pytest.raises(DecisionRefused, match=f"#1 was decided at .*: {first} by bruno"):
        decide(changeset, reviewer="carla")


def test_an_applied_changeset_cannot_be_decided_again(scenario, decide) -> None:
    changeset = scenario.write(scenario.file())
    with pytest.raises(DecisionRefused, match="was decided"):
        decide(changeset, reviewer="carla")
