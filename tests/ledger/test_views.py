"""The questions people ask of the ledger."""

import json

import pytest

from ledger.errors import LedgerError
from ledger.records import ActiveDelta, Changeset, Erasure
from ledger.views import blame, diff, moment, resolve_version, show

MODEL = "demo"


def led_to(scenario, changeset: Changeset) -> tuple[ActiveDelta, ...]:
    """The deltas in force after a changeset."""
    with scenario.ledger.read() as work:
        return work.candidate(changeset)


def test_show_tells_all_about_a_changeset(scenario) -> None:
    correction = scenario.file()
    changeset = scenario.write(correction)
    with scenario.ledger.read() as work:
        shown = show(work, "#1")
    assert (shown.changeset, shown.status, shown.corrections) == (changeset, "applied", (correction,))
    assert shown.decisions[0].reviewer == "bruno"
    assert shown.applied is not None
    assert json.loads(json.dumps(shown.to_dict()))["changeset"]["metrics"][1]["value"] == 1.0


def test_blame_tells_who_wrote_what_approved_by_whom_and_what_took_it_back(scenario) -> None:
    one = scenario.file(target="kuna")
    scenario.write(one)
    scenario.revert(one)
    two = scenario.file(target="euro", reason="again")
    scenario.write(two)
    waiting = scenario.file(target="lev")
    scenario.file("Bulgaria")
    with scenario.ledger.read() as work:
        first, second, third = blame(work, MODEL, "croatia")
        assert blame(work, MODEL, "Croatia", "capital") == []
        assert len(blame(work, MODEL, "Croatia", "currency")) == 3
    assert (first.correction, first.status, first.in_force, first.changeset) == (one, "reverted", False, 1)
    assert (first.reverted_by, first.decisions[0].reviewer) == (2, "bruno")
    assert first.applied is not None
    assert first.applied.position == 1
    assert (second.correction, second.status, second.in_force, second.changeset) == (two, "active", True, 3)
    assert second.reverted_by is None
    assert (third.correction, third.status, third.changeset, third.applied) == (waiting, "conflict", None, None)


def test_blame_names_the_changeset_that_was_rejected(scenario) -> None:
    correction = scenario.file()
    scenario.reject(scenario.propose(correction), reason="not true")
    with scenario.ledger.read() as work:
        [told] = blame(work, MODEL, "Croatia")
    assert (told.status, told.changeset, told.decisions[0].reason) == ("rejected", 1, "not true")


def test_diff_tells_what_came_in_force_and_what_went(scenario) -> None:
    one, two = scenario.file(), scenario.file("Bulgaria", "lev")
    first = scenario.write(one)
    second = scenario.write(two)
    revert = scenario.revert(one)
    with scenario.ledger.read() as work:
        forward = diff(work, MODEL, "base", "v2")
        back = diff(work, MODEL, "v2", "head")
        nothing = diff(work, MODEL, "head", work.head(MODEL))
    assert (forward.came_in_force, forward.went_out_of_force) == ((one, two), ())
    old, new = led_to(scenario, second), led_to(scenario, revert)
    assert (forward.deltas_added, forward.deltas_removed) == ((*led_to(scenario, first), old[1]), ())
    assert (back.came_in_force, back.went_out_of_force) == ((), (one,))
    assert (back.deltas_added, back.deltas_removed) == (new, old)
    assert nothing.to_dict()["deltas_added"] == []


def test_a_diff_of_neighbours_tells_what_a_diff_of_far_versions_tells_of_them(scenario) -> None:
    one, two, three = (scenario.file(name, name) for name in ("Croatia", "Bulgaria", "Kosovo"))
    scenario.write(one, two)
    scenario.write(three)
    scenario.revert(two)
    with scenario.ledger.read() as work:
        assert diff(work, MODEL, "v2", "v3").went_out_of_force == (two,)
        assert diff(work, MODEL, "v3", "v2").came_in_force == (two,)
        assert diff(work, MODEL, "v0", "v3").came_in_force == (one, three)
        assert diff(work, MODEL, "v3", "v0").went_out_of_force == (one, three)
        assert diff(work, MODEL, "v1", "v3").came_in_force == (three,)


def test_a_diff_tells_of_what_was_erased_since(scenario) -> None:
    one, two = scenario.file(), scenario.file("Bulgaria", "lev")
    scenario.write(one, two)
    scenario.revert(one)
    with scenario.ledger.begin() as work:
        work.erase(Erasure(ref=one.id, reason="asked for", erased_by="dora", erased_at=scenario.now()))
    with scenario.ledger.read() as work:
        [came, other] = diff(work, MODEL, "v0", "v1").came_in_force
        [gone] = diff(work, MODEL, "v1", "v2").went_out_of_force
    assert (came.id, came.erased, other) == (one.id, True, two)
    assert (gone.id, gone.subject) == (one.id, "[erased]")


def test_blame_of_a_version_tells_what_was_in_force_then(scenario) -> None:
    one = scenario.file(target="kuna")
    scenario.write(one)
    two = scenario.file(supersedes=one.id)
    scenario.write(two)
    scenario.file(target="lev")
    with scenario.ledger.read() as work:
        told = [blame(work, MODEL, " CROATIA", at=resolve_version(work, MODEL, f"v{v}")) for v in (0, 1, 2)]
    assert [[story.correction for story in at] for at in told] == [[], [one], [two]]
    assert told[1][0].in_force
    assert told[1][0].status == "superseded"


def test_a_date_begins_and_ends() -> None:
    assert (moment("2026-11-21"), moment("2026-11-21", end=False)) == ("2026-11-21T23:59:59Z", "2026-11-21T00:00:00Z")


def test_what_is_superseded_goes_out_of_force_in_a_diff(scenario) -> None:
    one = scenario.file(target="kuna")
    scenario.write(one)
    two = scenario.file(supersedes=one.id)
    scenario.write(two)
    with scenario.ledger.read() as work:
        change = diff(work, MODEL, "v1", "v2")
        first, _ = blame(work, MODEL, "Croatia")
    assert (change.came_in_force, change.went_out_of_force) == ((two,), (one,))
    assert (first.status, first.reverted_by) == ("superseded", 2)


@pytest.fixture
def history(scenario):
    """v0 on the 21st, v1 on the 22nd at noon, v2 on the 24th."""
    from ledger.unit_of_work import UnitOfWork

    scenario.ledger.any_clock = True
    for position, at in ((1, "2026-11-22T12:00:00Z"), (2, "2026-11-24T00:00:00Z")):
        changeset = scenario.propose(
            scenario.file(f"Country {position}"), candidate_version=f"abcdef{position}" + "0" * 57
        )
        scenario.approve(changeset)
        with scenario.ledger.begin() as work:
            assert isinstance(work, UnitOfWork)
            head = work.head(MODEL)
            work.move_head(
                MODEL, expected=head, version=changeset.candidate_version, changeset_id=changeset.id, at=at, by="x"
            )
    return scenario


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("head", 2),
        ("base", 0),
        ("v0", 0),
        ("v1", 1),
        ("#1", 1),
        ("#2", 2),
        ("abcdef1", 1),
        ("ABCDEF2", 2),
        ("ba5eba", 0),
        ("abcdef1" + "0" * 57, 1),
        ("2026-11-21", 0),
        ("2026-11-22", 1),
        ("2026-11-23", 1),
        ("2026-11-24", 2),
        ("2099-01-01", 2),
        ("2026-11-22T11:59:59Z", 0),
        ("2026-11-22T12:00:00Z", 1),
        ("2026-11-22T12:59:59+01:00", 0),
        ("2026-11-22T13:00:00+01:00", 1),
        ("2026-11-22 12:00", 1),
    ],
)
def test_a_version_has_many_names(history, text: str, position: int) -> None:
    with history.ledger.read() as work:
        assert resolve_version(work, MODEL, text).position == position


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("v3", "demo has no v3, its head is v2"),
        ("#3", "changeset #3 was not applied to demo"),
        ("#9", "there is no changeset #9"),
        ("abcdef", "several versions of demo begin with abcdef"),
        ("abcde", "'abcde' names no version"),
        ("fffffff", "no version of demo begins with fffffff"),
        ("2026-11-20", "demo was not there on 2026-11-20"),
        ("2026-13-40", "'2026-13-40' is no date"),
        ("", "'' names no version"),
        ("nonsense", "'nonsense' names no version"),
    ],
)
def test_a_name_of_no_version_or_of_several_is_refused_with_one_line(history, text: str, problem: str) -> None:
    history.propose(history.file("Kosovo"))
    with history.ledger.read() as work, pytest.raises(LedgerError) as caught:
        resolve_version(work, MODEL, text)
    assert str(caught.value).startswith(problem)
    assert "\n" not in str(caught.value)


def test_a_version_that_was_in_force_twice_means_the_last_time(scenario) -> None:
    correction = scenario.file()
    first = scenario.write(correction)
    scenario.revert(correction)
    scenario.write(kind="revert", active=led_to(scenario, first), candidate_version=first.candidate_version)
    with scenario.ledger.read() as work:
        assert resolve_version(work, MODEL, first.candidate_version[:8]).position == 3
