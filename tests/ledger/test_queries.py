"""The lists that people ask of the ledger, on both databases."""

import json
from pathlib import Path
from typing import Any

import pytest

from ledger import queries
from ledger.active import changes_between
from ledger.errors import LedgerError
from ledger.queries import KINDS, approvals, edited, log, pending
from ledger.records import ActiveDelta, CaseResult, Changeset, Correction, Decision, Erasure, KeyEvent, PolicyAdopted
from ledger.unit_of_work import open_ledger
from tests.ledger.conftest import MODEL, Scenario


@pytest.fixture
def told(ledger_url: str, tmp_path: Path) -> Scenario:
    """A scenario on either database."""
    made = Scenario(open_ledger(ledger_url), tmp_path / "ledger.db")
    with made.ledger.begin() as work:
        work.start(MODEL, "ba5e" * 16, made.now(), "nse init")
    return made


def decide(scenario: Scenario, changeset: Changeset, verdict: Any = "approve", by: str = "bruno") -> Decision:
    """A decision that nobody checks."""
    at = scenario.now()
    decision = Decision(changeset_id=changeset.id, verdict=verdict, reviewer=by, reason="checked", decided_at=at)
    with scenario.ledger.begin() as work:
        work.add_decision(decision)
    return decision


def write(scenario: Scenario, *corrections: Correction, by: str = "bruno", **changes: Any) -> Changeset:
    """Propose, approve and apply."""
    changeset = scenario.propose(*corrections, **changes)
    decide(scenario, changeset, by=by)
    scenario.apply(changeset)
    return changeset


def take_back(scenario: Scenario, correction: Correction) -> Changeset:
    """A revert that drops one correction's columns from the first delta."""
    with scenario.ledger.read() as work:
        active = work.active(MODEL, work.head(MODEL).position)
    after = (ActiveDelta(active[0].sha256, active[0].path, (correction.id,)), *active[1:])
    return write(scenario, kind="revert", reverted=(correction.id,), changes=changes_between(active, after), by="carla")


# --- log


def test_the_log_tells_everything_in_order(told: Scenario) -> None:
    correction = told.file()
    told.quarantine()
    told.file(model="another")
    changeset = write(told, correction)
    with told.ledger.read() as work:
        events = log(work, MODEL)
    assert [event.kind for event in events] == ["started", "filed", "quarantined", "planned", "decided", "applied"]
    assert [event.at for event in events] == sorted(event.at for event in events)
    assert [event.by for event in events][3:] == ["nse plan", "bruno", "nse apply"]
    assert [event.ref for event in events][3:] == ["#1", "#1", "v1"]
    assert [event.text for event in events][3:] == [
        "edit of 1 corrections, gates passed: nightly",
        "approve: checked",
        f"changeset #1 leads to {changeset.candidate_version[:12]}",
    ]
    assert [event.sequence for event in events] == [1, 2, 3, 5, 6, 7]


@pytest.fixture
def eventful(told: Scenario) -> Scenario:
    """Something of every kind."""
    with told.ledger.begin() as work:
        key = KeyEvent(
            action="register", key_id="ab" * 32, person="bruno", public_key="k", reason="new", at=told.now(), by="ana"
        )
        work.add_key_event(key)
        work.add_policy(
            PolicyAdopted(
                model=MODEL, text='{"approvals":1}', adopted_by="ana", adopted_at=told.now(), key_id="ab" * 32
            )
        )
        work.add_policy(PolicyAdopted(model="another", text="{}", adopted_by="ana", adopted_at=told.now()))
    one, two = told.file(), told.file("Chad", "franc")
    other = told.file(model="another")
    told.quarantine()
    write(told, one)
    with told.ledger.begin() as work:
        for correction in (two, other):
            work.erase(Erasure(ref=correction.id, reason="asked", erased_by="dora", erased_at=told.now()))
    return told


def test_the_log_tells_of_keys_policies_and_erasures_and_hides_erased_text(eventful: Scenario) -> None:
    with eventful.ledger.read() as work:
        events = log(work, MODEL)
        [corrections] = [[c for c in work.corrections(MODEL) if c.erased]]
    assert {event.kind for event in events} == set(KINDS)
    told = {event.kind: (event.by, event.text) for event in events}
    assert told["key"] == ("ana", "register abababababab of bruno: new")
    assert told["policy"] == ("ana", '{"approvals":1}')
    assert told["erased"] == ("dora", "asked")
    assert [e.ref for e in events if e.kind == "erased"] == [corrections[0].id]
    assert [e.text for e in events if e.kind == "filed"][1] == "[erased] | [erased] | [erased]"


@pytest.mark.parametrize("last", [1, 2, 5, 100])
def test_the_last_events_are_the_end_of_the_whole_log(eventful: Scenario, last: int) -> None:
    with eventful.ledger.read() as work:
        whole = log(work, MODEL)
        assert log(work, MODEL, last=last) == whole[-last:]
        assert (
            log(work, MODEL, last=last, kinds=["filed", "applied"])
            == [event for event in whole if event.kind in ("filed", "applied")][-last:]
        )


@pytest.mark.parametrize("at_once", [1, 1000])
def test_the_log_since_a_time_leaves_out_what_was_before(
    eventful: Scenario, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(queries, "AT_ONCE", at_once)
    with eventful.ledger.read() as work:
        whole = log(work, MODEL)
        for event in whole:
            since = [later for later in whole if later.at >= event.at]
            assert log(work, MODEL, since=event.at) == since
            assert log(work, MODEL, since=event.at, last=2) == since[-2:]


def test_a_kind_that_is_none_is_refused(told: Scenario) -> None:
    with told.ledger.read() as work, pytest.raises(LedgerError, match="'file' is no kind of event"):
        log(work, MODEL, kinds=["file"])


# --- pending


def test_what_waits_is_told_oldest_first_with_what_it_waits_for(told: Scenario) -> None:
    written = told.file("Mali", "franc")
    write(told, written)
    first, rival = told.file(target="euro"), told.file(target="kuna")
    proposed, again = told.file("Chad", "franc"), told.file("Mali", " franc ")
    late = told.file("Togo", "franc")
    told.propose(proposed)
    with told.ledger.read() as work:
        found = pending(work, MODEL)
        assert [(entry.correction, entry.status) for entry in found.entries] == [
            (first, "conflict"),
            (rival, "conflict"),
            (proposed, "proposed"),
            (again, "duplicate"),
            (late, "pending"),
        ]
        assert found.total == 5
        two = pending(work, MODEL, limit=2)
        assert (two.total, two.entries) == (5, found.entries[:2])
        since = pending(work, MODEL, since=again.filed_at)
        assert (since.total, since.entries) == (2, found.entries[3:])
        assert json.loads(json.dumps(two.to_dict()))["entries"][0]["correction"]["subject"] == "Croatia"
        assert pending(work, "another").total == 0


# --- approvals


def test_who_approved_is_told_by_changeset_by_correction_by_subject_and_by_person(told: Scenario) -> None:
    one, two = told.file(), told.file("Chad", "franc")
    first = write(told, one, two)
    back = take_back(told, one)
    turned_down = told.propose(told.file("Mali", "franc"))
    decide(told, turned_down, "reject", by="Rex Jones <rex@example.org>")
    with told.ledger.read() as work:

        def numbers(ref: str | None = None, by: str | None = None) -> list[int]:
            return [entry.changeset for entry in approvals(work, MODEL, ref, by=by)]

        assert numbers() == [1, 2, 3]
        assert numbers("#1") == numbers("1") == numbers(first.id[:8]) == [1]
        assert numbers(one.id[:12]) == numbers("CROATIA") == [1, 2]
        assert numbers(two.id) == numbers(" chad ") == [1]
        assert numbers(by="Carla") == numbers("croatia", by="carla") == [2]
        for name in ("rex  jones", "rex@example.org", "Rex Jones <rex@example.org>"):
            assert numbers(by=name) == [3]
        assert numbers(by="rex") == []
        _, revert, rejection = approvals(work, MODEL)
        assert (revert.kind, revert.applied, revert.decision.changeset_id) == ("revert", 2, back.id)
        assert (rejection.decision.verdict, rejection.applied, rejection.planned_by) == ("reject", None, "nse plan")


@pytest.mark.parametrize(
    ("ref", "problem"), [("#9", "there is no changeset #9"), ("Atlantis", "no changeset, correction or subject is")]
)
def test_who_approved_nothing_is_refused_with_one_line(told: Scenario, ref: str, problem: str) -> None:
    with told.ledger.read() as work, pytest.raises(LedgerError, match=problem):
        approvals(work, MODEL, ref)


# --- edited


def test_what_a_method_wrote_is_told_newest_first(told: Scenario) -> None:
    one, two, three = (told.file(subject, "franc") for subject in ("Chad", "Mali", "Togo"))
    write(told, one, method="memit")
    results = (CaseResult(two.id, "edited", 9, 1, "d1" * 32), CaseResult(three.id, "skipped", 9, 9))
    last = write(told, method="memit", results=results, active=(ActiveDelta("d1" * 32, "one"),))
    told.propose(told.file("Benin", "franc"), method="memit")
    write(told, told.file())
    with told.ledger.read() as work:
        found = edited(work, MODEL, "memit")
        assert found.total == 2
        assert [(e.correction, e.changeset, e.position, e.status) for e in found.entries] == [
            (two, 2, 2, "edited"),
            (one, 1, 1, "edited"),
        ]
        move = work.move_of(last.id)
        assert move is not None
        assert edited(work, MODEL, "memit", since=move.moved_at).entries == found.entries[:1]
        first = edited(work, MODEL, "memit", limit=1)
        assert (first.total, first.entries) == (2, found.entries[:1])
        with pytest.raises(LedgerError, match="no changeset of demo was made by method 'rome': methods: memit, nse"):
            edited(work, MODEL, "rome")
