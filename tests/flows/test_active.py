"""What is left of a set of deltas, which corrections have to be written again, and what undoing a change brings back."""

from collections.abc import Collection
from copy import copy
from types import SimpleNamespace
from typing import Any

import pytest

from flows.active import Active, Holding, freed, holding, replayed, undone, unsettled, without
from flows.revert import set_aside
from ledger.active import changes_between
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


def undo(now: Active, before: Active, after: Active, known: ModelState) -> Active:
    """What undoing a change leaves, where nothing is set aside."""
    found = undone(Holding(now), Holding(before), Holding(after), known)
    assert not found.aside
    return found.deltas


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
    assert undo(after, before, after, known) == before
    assert undo((*after, *deltas("4")), before, after, known) == (*before, *deltas("4"))


def test_undoing_a_night_takes_its_corrections_out_of_what_was_written_again_later() -> None:
    known = state(settled={"work", "pet"})
    before = deltas("1", "2")
    after = deltas("1", "2", "3")
    now = (*without(after, {"home"}, known), *deltas("settled"))
    assert [(d.sha256, d.dropped) for d in undo(now, before, after, known)] == [("2", ()), ("settled", ("pet",))]


def test_undoing_a_replay_brings_the_first_deltas_back_in_place_of_those_that_stood_for_them() -> None:
    known = state("1", "2", "3", **{"3 again": {"pet", "clara"}})
    before, after = deltas("1", "2", "3"), deltas("1", "3 again")
    assert undo(after, before, after, known) == before
    assert undo(deltas("1", "3 again", "4"), before, after, known) == deltas("1", "2", "3", "4")


def test_a_delta_that_came_back_meanwhile_keeps_the_place_that_the_ledger_gives_it() -> None:
    known = state("1", "2", "3", "4")
    assert undo(deltas("1", "2", "3", "4"), deltas("2"), deltas("2", "4"), known) == deltas("1", "2", "3")


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


# --- superseded corrections that a consolidation set aside: a ledger of which only the sets are kept

CHAIN = {"old": ("anna", "home"), "new": ("anna", "home"), "newest": ("anna", "home"), "other": ("boris", "home")}
REPLACERS = {"old": frozenset({"new", "newest"}), "new": frozenset({"newest"})}


class Log:
    """Applied changesets: nights that write corrections, consolidations, and reverts of earlier ones by their place."""

    def __init__(self, *nights: set[str]) -> None:
        self.made: list[Any] = []
        self.contents: dict[str, frozenset[str]] = {}
        self.undoes: dict[int, int] = {}
        for written in nights:
            self.write("edit", self.active, written)

    @property
    def state(self) -> ModelState:
        corrections: Any = {name: SimpleNamespace(id=name, fact=fact, erased=False) for name, fact in CHAIN.items()}
        heads: Any = {place: SimpleNamespace(position=place) for place in range(len(self.made) + 1)}
        made = {made.id: made for made in self.made}
        places = {identity: place for place, identity in enumerate(made, 1)}
        return ModelState(corrections, made, heads, {}, self.contents, REPLACERS, Policy(), places)

    @property
    def active(self) -> Active:
        return self.state.active(self.state.head)

    @property
    def in_force(self) -> frozenset[str]:
        return self.state.in_force(self.active)

    def write(self, kind: str, stay: Active, *written: Collection[str], aside: Collection[str] = ()) -> None:
        """Applies a changeset: the deltas that stay, and a new one for each round that it writes."""
        place = len(self.made) + 1
        new = {f"{place}-{number}": frozenset(of_round) for number, of_round in enumerate(written)}
        changes = changes_between(self.active, (*stay, *deltas(*new)))
        self.contents = {**self.contents, **new}
        self.made.append(SimpleNamespace(id=f"{place}", kind=kind, changes=changes, aside=frozenset(aside)))

    def consolidate(self) -> None:
        self.write("consolidate", (), self.in_force)

    def revert(self, place: int, mode: str) -> bool:
        """Undoes a changeset as `nse revert #N` does; False if there is nothing to undo."""
        state = self.state
        before, old, new = (holding(state, state.heads[at]) for at in (len(self.made), place - 1, place))
        after = undone(before, old, new, state)
        if after == before:
            return False
        aside = " ".join(set_aside(before, after, state).values()).split()
        back = freed(before, after, state)
        if mode == "drop":
            stay, again = after.deltas, {*unsettled(before.deltas, after.deltas, state, known=[old.deltas]), *back}
            written = [again] if again else []
        else:
            stay, rounds = replayed(before.deltas, after.deltas, state, known=[old.deltas], back=back)
            written = [{*of_round} for of_round in rounds.values()]
        self.undoes[len(self.made) + 1] = place
        self.write("revert", stay, *written, aside=aside)
        return True

    def stands(self) -> list[int]:
        """The changesets that no other undoes, if that is not undone itself."""
        found: list[int] = []
        for place in range(len(self.made), 0, -1):
            if all(self.undoes.get(later) != place for later in found):
                found.append(place)
        return found

    def expected(self) -> frozenset[str]:
        """What is in force by the nights that stand."""
        nights = [place for place in self.stands() if self.made[place - 1].kind == "edit"]
        return self.state.not_superseded({i for place in nights for i in self.contents[f"{place}-0"]})


@pytest.mark.parametrize("mode", ["drop", "replay"])
@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize(
    "nights",
    [
        ({"old"}, {"new"}),
        ({"old", "other"}, {"new"}),
        ({"old"}, {"new", "other"}),
        ({"old", "other"}, {"new"}, {"newest"}),
    ],
)
def test_in_whatever_order_is_reverted_nothing_comes_back_that_was_reverted_itself(
    nights: tuple[set[str], ...], before: int, mode: str
) -> None:
    def tried(log: Log, left: int) -> int:
        assert log.in_force == log.expected(), log.undoes
        assert not holding(log.state, log.state.head).aside & log.in_force
        count = 1
        for place in log.stands() if left else ():
            further = copy(log)
            further.made, further.undoes = [*log.made], {**log.undoes}
            if further.revert(place, mode):
                count += tried(further, left - 1)
        return count

    log = Log(*nights)
    log.consolidate()
    for place in (len(nights) + 1, len(nights))[:before]:  # other ways to a consolidation: after one that was reverted
        assert log.revert(place, mode)
        log.consolidate()
    assert tried(log, 3) > 20
