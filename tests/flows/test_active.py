"""Which corrections have to be written again when one of their subject goes, and what undoing such a change brings back."""

from types import SimpleNamespace
from typing import Any

from flows.active import undone, unsettled, without
from ledger.records import ActiveDelta
from ledger.status import ModelState

# three nights: anna's home; boris and anna's work; anna's pet and clara
FACTS = {"home": "anna", "boris": "boris", "work": "anna", "pet": "anna", "clara": "clara"}
CONTENTS = {"1": {"home"}, "2": {"boris", "work"}, "3": {"pet", "clara"}}


def state(**more: set[str]) -> ModelState:
    corrections: Any = {name: SimpleNamespace(id=name, fact=(subject, name)) for name, subject in FACTS.items()}
    contents = {name: frozenset(held) for name, held in {**CONTENTS, **more}.items()}
    return ModelState(corrections, {}, [], {}, contents, {})


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


def test_undoing_a_revert_takes_away_what_it_wrote_again() -> None:
    known = state(settled={"work", "pet"})
    before = deltas("1", "2", "3")
    after = (*without(before, {"home"}, known), *deltas("settled"))
    assert undone(after, before, after, known) == before


def test_undoing_a_night_takes_its_corrections_out_of_what_was_written_again_later() -> None:
    known = state(settled={"work", "pet"})
    before = deltas("1", "2")
    after = deltas("1", "2", "3")
    now = (*without(after, {"home"}, known), *deltas("settled"))
    assert [(d.sha256, d.dropped) for d in undone(now, before, after, known)] == [("2", ()), ("settled", ("pet",))]
