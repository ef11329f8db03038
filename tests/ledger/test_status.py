"""The derived statuses of corrections and changesets."""

from dataclasses import replace

import pytest

from ledger.records import ActiveDelta, CaseResult, Changeset, Gate
from ledger.status import changeset_status, read_state

MODEL = "demo"
FAILED = Gate("specificity", ">=", 0.9, 0.5, False)


def changeset_status_of(scenario, changeset) -> str:
    with scenario.ledger.read() as work:
        return changeset_status(work, changeset)


def led_to(scenario, changeset: Changeset) -> tuple[ActiveDelta, ...]:
    """The deltas in force after a changeset."""
    with scenario.ledger.read() as work:
        return work.candidate(changeset)


def test_a_correction_is_pending_then_proposed_then_active_then_reverted(scenario) -> None:
    correction = scenario.file()
    assert scenario.status(correction) == "pending"
    changeset = scenario.propose(correction)
    assert scenario.status(correction) == "proposed"
    scenario.approve(changeset)
    assert scenario.status(correction) == "proposed"
    scenario.apply(changeset)
    assert scenario.status(correction) == "active"
    scenario.revert(correction)
    assert scenario.status(correction) == "reverted"


def test_a_revert_of_a_revert_makes_a_correction_active_again(scenario) -> None:
    correction = scenario.file()
    written = scenario.write(correction)
    scenario.revert(correction)
    scenario.write(kind="revert", active=led_to(scenario, written))
    assert scenario.status(correction) == "active"


def test_a_delta_left_out_takes_its_corrections_out_of_force(scenario) -> None:
    one, two = scenario.file(), scenario.file("Bulgaria", "lev")
    first = scenario.write(one)
    scenario.write(two)
    scenario.write(kind="revert", active=led_to(scenario, first), reverted=(two.id,))
    assert [scenario.status(one), scenario.status(two)] == ["active", "reverted"]


def test_a_replay_keeps_in_force_what_it_solved_again(scenario) -> None:
    one, two, three = (scenario.file(name) for name in ("Croatia", "Bulgaria", "Kosovo"))
    for correction in (one, two, three):
        scenario.write(correction)
    deltas = ActiveDelta("e2" * 32, "two"), ActiveDelta("e3" * 32, "three")
    results = (CaseResult(two.id, "edited", 9, 1, deltas[0].sha256), CaseResult(three.id, "skipped", 9, 9))
    scenario.write(kind="revert", active=deltas, results=results, reverted=(one.id,))
    assert [scenario.status(correction) for correction in (one, two, three)] == ["reverted", "active", "skipped"]
    with scenario.ledger.read() as work:
        state = read_state(work, MODEL)
        assert state.contents[deltas[0].sha256] == {two.id}
        assert state.active(state.head) == work.active(MODEL, 4) == deltas


def test_a_rejected_correction_stays_rejected(scenario) -> None:
    correction = scenario.file()
    scenario.reject(scenario.propose(correction))
    assert scenario.status(correction) == "rejected"


def test_a_correction_the_editor_skipped_is_skipped_once_its_changeset_is_applied(scenario) -> None:
    one, two = scenario.file(), scenario.file("Bulgaria", "lev")
    results = (CaseResult(one.id, "edited", 9, 1, "d1" * 32), CaseResult(two.id, "skipped", 99, 99))
    changeset = scenario.propose(results=results, active=(ActiveDelta("d1" * 32, "one"),))
    assert [scenario.status(one), scenario.status(two)] == ["proposed", "proposed"]
    scenario.approve(changeset)
    scenario.apply(changeset)
    assert [scenario.status(one), scenario.status(two)] == ["active", "skipped"]


def test_an_unconverged_correction_is_in_force(scenario) -> None:
    correction = scenario.file()
    results = (CaseResult(correction.id, "unconverged", 9, 8, "d1" * 32),)
    scenario.write(results=results, active=(ActiveDelta("d1" * 32, "one"),))
    assert scenario.status(correction) == "active"


def test_the_corrections_of_a_stale_or_failed_changeset_are_pending_again(scenario) -> None:
    one, two = scenario.file(), scenario.file("Bulgaria", "lev")
    stale, failed = scenario.propose(one), scenario.propose(two, gates=(FAILED,))
    assert [scenario.status(one), scenario.status(two)] == ["proposed", "pending"]
    scenario.write(scenario.file("Kosovo"))
    assert [scenario.status(one), scenario.status(two)] == ["pending", "pending"]
    assert [changeset_status_of(scenario, changeset) for changeset in (stale, failed)] == ["stale", "gate-failed"]


def test_two_targets_for_one_fact_wait_for_a_person(scenario) -> None:
    one, two = scenario.file(target="euro"), scenario.file("CROATIA ", "kuna")
    assert [scenario.status(one), scenario.status(two)] == ["conflict", "conflict"]
    judge = scenario.file(target="euro", supersedes=two.id, reason="law of 2022")
    assert [scenario.status(c) for c in (one, two, judge)] == ["pending", "superseded", "duplicate"]


def test_another_target_than_the_one_in_force_or_proposed_waits(scenario) -> None:
    one, two = scenario.file(), scenario.file(target="kuna")
    changeset = scenario.propose(one)
    assert [scenario.status(one), scenario.status(two)] == ["proposed", "conflict"]
    scenario.approve(changeset)
    scenario.apply(changeset)
    assert [scenario.status(one), scenario.status(two)] == ["active", "conflict"]
    scenario.revert(one)
    assert [scenario.status(one), scenario.status(two)] == ["reverted", "pending"]


def test_other_relations_and_other_models_are_no_conflict(scenario) -> None:
    one = scenario.file()
    others = [
        scenario.file(target="Zagreb", relation="capital"),
        scenario.file(target="kuna", relation=None, prompt_template="{} pays in"),
        scenario.file(target="kn", relation=None, prompt_template="The short name of {}'s money is"),
    ]
    scenario.file(target="kuna", model="another")
    assert {scenario.status(correction) for correction in (one, *others)} == {"pending"}


def test_the_same_target_twice_is_a_duplicate_unless_the_first_is_out(scenario) -> None:
    one, two = scenario.file(), scenario.file(reason="again", submitter="carla")
    assert [scenario.status(one), scenario.status(two)] == ["pending", "duplicate"]
    scenario.write(one)
    assert [scenario.status(one), scenario.status(two)] == ["active", "duplicate"]
    scenario.revert(one)
    assert [scenario.status(one), scenario.status(two)] == ["reverted", "pending"]


def test_what_supersedes_an_active_correction_is_pending_and_takes_over_when_applied(scenario) -> None:
    one = scenario.file(target="kuna")
    scenario.write(one)
    two = scenario.file(supersedes=one.id)
    assert [scenario.status(one), scenario.status(two)] == ["active", "pending"]
    scenario.write(two)
    assert [scenario.status(one), scenario.status(two)] == ["superseded", "active"]
    scenario.revert(two)
    assert [scenario.status(one), scenario.status(two)] == ["active", "reverted"]


def test_superseding_goes_through_a_correction_that_was_never_written(scenario) -> None:
    one = scenario.file(target="kuna")
    scenario.write(one)
    two = scenario.file(target="Euro", supersedes=one.id)
    three = scenario.file(target="euro", supersedes=two.id)
    assert [scenario.status(c) for c in (one, two, three)] == ["active", "superseded", "pending"]
    scenario.write(three)
    assert [scenario.status(c) for c in (one, two, three)] == ["superseded", "superseded", "active"]


def test_a_waiting_correction_comes_back_when_its_successor_is_rejected(scenario) -> None:
    one = scenario.file()
    two = scenario.file(target="kuna", supersedes=one.id)
    assert [scenario.status(one), scenario.status(two)] == ["superseded", "pending"]
    scenario.reject(scenario.propose(two))
    assert [scenario.status(one), scenario.status(two)] == ["pending", "rejected"]


@pytest.mark.parametrize("verdict", ["approve", "reject"])
def test_the_status_of_a_changeset_follows_its_life(scenario, verdict: str) -> None:
    changeset = scenario.propose(scenario.file())
    assert changeset_status_of(scenario, changeset) == "proposed"
    getattr(scenario, verdict)(changeset)
    assert changeset_status_of(scenario, changeset) == {"approve": "approved", "reject": "rejected"}[verdict]
    if verdict == "approve":
        scenario.apply(changeset)
        assert changeset_status_of(scenario, changeset) == "applied"
        scenario.write(scenario.file("Bulgaria"))
        assert changeset_status_of(scenario, changeset) == "applied"


def test_an_approved_changeset_is_stale_once_the_head_has_moved(scenario) -> None:
    one, two = scenario.propose(scenario.file()), scenario.propose(scenario.file("Bulgaria"))
    scenario.approve(one)
    scenario.approve(two)
    scenario.apply(two)
    assert changeset_status_of(scenario, one) == "stale"
    assert changeset_status_of(scenario, replace(one, number=None)) == "stale"
