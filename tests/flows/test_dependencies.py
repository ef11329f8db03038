"""What a revert entails is told before any work is done, and it is what then happens."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest

from flows.dependencies import Dependencies, RoundAgain
from flows.plan import run_round
from flows.revert import Query, Target, foresee
from flows.session import Session
from flows.workspace import Workspace
from ledger.records import Changeset
from ledger.status import correction_statuses, read_state
from tests.flows.rounds import CAPITAL, Spaces, file, history, identity, planned, spaces, take

Nse = Callable[..., Any]
__all__ = ["history", "spaces"]


def names(found: tuple[Any, ...]) -> set[tuple[str, str]]:
    corrections = [getattr(entry, "correction", entry) for entry in found]
    return {(correction.subject, correction.target_new) for correction in corrections}


def test_leaving_out_a_correction_has_the_later_ones_of_its_subject_written_again(spaces: Spaces) -> None:
    space = spaces.all_three
    found = foresee(Session(space), Target(identity(space, "Borea", "Tokyo")))
    assert (found.mode, found.head.position) == ("drop", 3)
    assert names(found.goes_out) == {("Borea", "Tokyo")}
    assert found.comes_back == found.others == ()
    assert names(found.again) == {("Borea", "Berne")}
    assert found.rounds == (RoundAgain(None, 1),)


def test_a_replay_names_the_rounds_that_are_solved_again(spaces: Spaces) -> None:
    space = spaces.all_three
    found = foresee(Session(space), Target(identity(space, "Borea", "Tokyo")), "replay")
    assert found.rounds == (RoundAgain(1, 1), RoundAgain(2, 2), RoundAgain(3, 3))
    assert names(found.again) == {("Borea", "Berne")}


def test_what_comes_back_and_what_would_be_pending_again_is_told(spaces: Spaces) -> None:
    space = spaces.all_three
    file(space, [f"Alba,capital,{CAPITAL},Berne,Rome,gazette,Zoe,I think so too,,"])  # a duplicate, so far
    found = foresee(Session(space), Target(query=Query(source="rumour")))
    assert names(found.goes_out) == {("Alba", "Berne"), ("Cyra", "Accra"), ("Dorn", "Berne")}
    assert [(c.correction.target_new, c.now, c.then) for c in found.comes_back] == [("Paris", "superseded", "active")]
    assert [(c.correction.submitter, c.now, c.then) for c in found.others] == [("Zoe", "duplicate", "conflict")]


def test_it_costs_the_values_that_the_cache_lacks(spaces: Spaces) -> None:
    space, target = spaces.all_three, Target("#2")
    kept = foresee(Session(space), target, "replay").cost
    shutil.rmtree(space.state / "values")
    lost = foresee(Session(space), target, "replay").cost
    assert (kept.values, lost.values) == (0, 4)  # Elis, Alba, and Borea's two together
    assert kept.solves == lost.solves > 0
    assert foresee(Session(space), Target("#3"), "replay").cost.values == 0
    assert foresee(Session(space), Target("#3"), "replay").cost.solves == 0


def test_nothing_is_written_by_foreseeing(spaces: Spaces) -> None:
    space = spaces.all_three
    drafts = set((space.state / "drafts").iterdir())
    foresee(Session(space), Target("#1"), "replay")
    assert set((space.state / "drafts").iterdir()) == drafts
    with space.ledger().read() as work:
        assert set(read_state(work, space.model).changesets) == {
            work.changeset(f"#{number}").id for number in (1, 2, 3)
        }


@pytest.mark.parametrize("mode", ["drop", "replay"])
def test_what_is_foreseen_happens(mode: Any, spaces: Spaces) -> None:
    space = spaces.all_three
    told: list[Dependencies] = []
    made = planned(space, Query(source="rumour"), mode, tell=told.append)
    take(space, made)
    with space.ledger().read() as work:
        state = read_state(work, space.model)
    statuses = correction_statuses(state)
    (found,) = told
    changes = (*found.goes_out, *found.comes_back, *found.others)
    assert len(changes) == 4
    assert all(statuses[change.correction.id] == change.then for change in changes)
    assert set(made.reverted) == {c.correction.id for c in (*found.goes_out, *found.comes_back)}
    assert [r.corrections for r in found.rounds] == _sizes(made)


def _sizes(made: Changeset) -> list[int]:
    deltas = [result.delta for result in made.results]
    return [deltas.count(delta) for delta in dict.fromkeys(deltas)]


def test_an_open_proposal_will_be_stale_and_its_corrections_pending(spaces: Spaces) -> None:
    space = spaces.all_three
    file(space, [f"Fara,capital,{CAPITAL},Paris,Delhi,gazette,Sue,moved,,"])
    assert run_round(Session(space), by="Pia").changeset is not None
    found = foresee(Session(space), Target("#3"))
    assert [(c.correction.subject, c.now, c.then) for c in found.others] == [("Fara", "proposed", "pending")]


def test_the_command_shows_it_and_does_nothing(spaces: Spaces, nse: Nse) -> None:
    shown = nse("revert", "#2", "--mode", "replay", "--dry-run")
    assert shown.code == 0
    for text in (
        "reverted",
        "Cyra",
        "rounds to solve",
        "#3",
        "2 corrections go out of force",
        "0 values z to compute, at most",
    ):
        assert text in shown.out
    plain = nse("revert", "#2", "--mode", "replay", "--dry-run", "--json").json
    assert [change["correction"]["subject"] for change in plain["goes_out"]] == ["Cyra", "Dorn"]
    assert plain["rounds"] == [{"changeset": 3, "corrections": 3}]
    assert nse("status", "--json").json["waiting"] == []


def test_it_is_shown_before_the_work_starts_also_when_json_is_asked_for(edited: Workspace, nse: Nse) -> None:
    found = nse("revert", "#1", "--reason", "wrong", "--by", "Pia", "--json")
    assert found.json["changeset"]["kind"] == "revert"
    assert found.err.index("2 corrections go out of force") < found.err.index("candidate: probes")
