"""What is left of a set of deltas, which corrections have to be written again, and what undoing a change brings back."""

from types import SimpleNamespace
from typing import Any

import pytest

from flows.active import replayed, undone, unsettled, without
from ledger.policy import Policy
from ledger.records import ActiveDelta, DeltaChange
from ledger.status import ModelState

# three nights: anna's home; boris and anna's work; anna's pet and clara
FACTS = {"home": "anna", "boris": "boris", "work": "anna", "pet": "anna", "clara": "clara", "dora": "dora"}
CONTENTS = {"1": {"home"}, "2": {"boris", "work"}, "3": {"pet", "clara"}, "4": {"dora"}}


def state(*came: str, erased: str = "", **more: set[str]) -> ModelState:
    """A model of which the deltas `came` were in force, in this order."""
    corrections: Any = {
        name: SimpleNamespace(id=name, fact=(subject, name), erased=name == erased) for name, subject in FACTS.items()
    }
    contents = {name: frozenset(held) for name, held in {**CONTENTS, **more}.items()}
    made: Any = {name: SimpleNamespace(id=name, changes=(DeltaChange(name, ""),)) for name in came}
    heads: Any = {place: SimpleNamespace(position=place) for place, _ in enumerate(came, 1)}
    places = {name: place for place, name in enumerate(came, 1)}
    return ModelState(corrections, made, heads, {}, contents, {}, Policy(), places)


def deltas(*names: str) -> tuple[ActiveDelta, ...]:
    return tuple(ActiveDelta(name, f"artifacts/{name}") for name in names)


def test_leaving_out_the_last_night_leaves_nothing_to_write_again() -> None:
    now = deltas("1", "2", "3")
    assert unsettled(now, without(now, {"pet", "clara"}, state()), state()) == ()


def test_an_earlier_correction_that_goes_has_the_later_ones_of_its_subject_written_again() -> None:
    now = deltas("1", "2", "3")
    assert unsettled(now, without(now, {"home"}, state()), state()) == ("work", "pet")


def test_what_earlier_nights_wrote_is_written_again_where_a_later_night_moved_the_subject() -> None:
    now = deltas("1", "2", "3")
    assert unsettled(now, without(now, {"work"}, state()), state()) == ("home", "pet")


def test_a_subject_with_one_correction_leaves_nothing_to_write_again() -> None:
    now = deltas("1", "2", "3")
    assert unsettled(now, without(now, {"boris"}, state()), state()) == ()


def test_two_of_one_night_share_their_columns_so_the_other_is_written_again() -> None:
    known = state(**{"2": {"boris", "work", "home"}, "1": set()})
    now = deltas("2")
    assert unsettled(now, without(now, {"work"}, known), known) == ("home",)


def test_a_subject_that_was_in_force_like_this_before_is_not_written_again() -> None:
    known = state(settled={"work", "pet"})
    before = deltas("1", "2", "3")
    now = (*without(before, {"home"}, known), *deltas("settled", "4"))
    after = (*before, *deltas("4"))
    assert unsettled(now, after, known, known=[before]) == ()
    assert unsettled(now, after, known) == ("home", "work", "pet")


def test_what_comes_back_under_a_later_night_has_its_subject_written_again() -> None:
    known = state(later={"pet"})
    before = deltas("1", "2")
    now = (*without(before, {"home"}, known), *deltas("later"))  # the pet was written where there was no home
    after = (*before, *deltas("later"))
    assert unsettled(now, after, known, known=[before]) == ("home", "work", "pet")


def test_undoing_a_revert_takes_away_what_it_wrote_again() -> None:
    known = state(settled={"work", "pet"})
    before = deltas("1", "2", "3")
    after = (*without(before, {"home"}, known), *deltas("settled"))
    assert undone(after, before, after, known) == before
    assert undone((*after, *deltas("4")), before, after, known) == (*before, *deltas("4"))


def test_undoing_a_night_takes_its_corrections_out_of_what_was_written_again_later() -> None:
    known = state(settled={"work", "pet"})
    before = deltas("1", "2")
    after = deltas("1", "2", "3")
    now = (*without(after, {"home"}, known), *deltas("settled"))
    assert [(d.sha256, d.dropped) for d in undone(now, before, after, known)] == [("2", ()), ("settled", ("pet",))]


def test_undoing_a_replay_brings_the_first_deltas_back_in_place_of_those_that_stood_for_them() -> None:
    known = state("1", "2", "3", **{"3 again": {"pet", "clara"}})
    before, after = deltas("1", "2", "3"), deltas("1", "3 again")
    assert undone(after, before, after, known) == before
    assert undone(deltas("1", "3 again", "4"), before, after, known) == deltas("1", "2", "3", "4")


def test_a_delta_that_came_back_meanwhile_keeps_the_place_that_the_ledger_gives_it() -> None:
    known = state("1", "2", "3", "4")
    assert undone(deltas("1", "2", "3", "4"), deltas("2"), deltas("2", "4"), known) == deltas("1", "2", "3")


def test_a_replay_keeps_what_came_before_and_solves_each_later_night_again() -> None:
    now = deltas("1", "2", "3", "4")
    kept, rounds = replayed(now, without(now, {"boris", "clara"}, state()), state())
    assert kept == deltas("1")
    assert rounds == {"2": ["work"], "3": ["pet"], "4": ["dora"]}


def test_a_replay_of_the_last_night_solves_nothing() -> None:
    now = deltas("1", "2", "3")
    assert replayed(now, deltas("1", "2"), state()) == (deltas("1", "2"), {})


def test_a_replay_keeps_what_was_in_force_together_before() -> None:
    before = deltas("1", "2", "3")
    now = (*without(before, {"home"}, state()), *deltas("4"))
    assert replayed(now, (*before, *deltas("4")), state(), known=[before]) == (before, {"4": ["dora"]})


def test_what_several_later_nights_wrote_is_solved_by_the_first_of_them() -> None:
    known = state(settled={"work", "pet"})
    now = deltas("1", "2", "3", "settled")
    assert replayed(now, without(now, {"home"}, known), known)[1] == {"2": ["boris", "work"], "3": ["pet", "clara"]}


@pytest.mark.parametrize("erased", ["clara", "pet"])
def test_an_erased_correction_is_not_solved_again(erased: str) -> None:
    now = deltas("1", "2", "3")
    _, rounds = replayed(now, deltas("1", "3"), state(erased=erased))
    assert rounds == {"3": [name for name in ("pet", "clara") if name != erased]}
