"""Replay: what came after what is reverted is solved again, and the weights are as if that had never been."""

import shutil

import pytest

from flows.dependencies import Mode
from flows.workspace import Workspace
from ledger.records import Changeset
from tests.flows.rounds import (
    CAPITAL,
    FIRST,
    SECOND,
    THIRD,
    Spaces,
    head,
    history,
    identity,
    in_force,
    night,
    planned,
    spaces,
    take,
    version,
)

__all__ = ["history", "spaces"]


def solved(workspace: Workspace, made: Changeset) -> list[set[str]]:
    """The subjects of each new delta, in order."""
    with workspace.ledger().read() as work:
        subjects = {c.id: c.subject for c in work.corrections(workspace.model)}
    deltas = dict.fromkeys(result.delta for result in made.results)
    return [{subjects[r.correction_id] for r in made.results if r.delta == delta} for delta in deltas]


def test_the_weights_are_as_if_the_round_had_never_been(spaces: Spaces) -> None:
    space = spaces.all_three
    made = planned(space, "#2", "replay")
    assert (made.kind, made.mode) == ("revert", "replay")
    assert take(space, made) == head(spaces.twin)
    assert in_force(space) == in_force(spaces.twin)
    assert solved(space, made) == [{"Elis", "Borea", "Alba"}]
    assert set(made.reverted) == {identity(space, "Cyra", "Accra"), identity(space, "Dorn", "Berne")}


def test_leaving_columns_out_gives_other_weights_than_solving_again(spaces: Spaces) -> None:
    made = planned(spaces.all_three, "#2", "drop")
    assert made.results == ()
    assert made.candidate_version != head(spaces.twin)


def test_the_weights_are_as_if_an_early_correction_had_never_been(spaces: Spaces) -> None:
    space = spaces.all_three
    made = planned(space, identity(space, "Borea", "Tokyo"), "replay")
    assert solved(space, made) == [{"Alba"}, {"Cyra", "Dorn"}, {"Elis", "Borea", "Alba"}]
    assert sum(change.removed for change in made.changes) == 3
    # Alba's z was computed in one batch with Borea's, which rounds otherwise than alone: the cache goes along.
    shutil.copytree(space.state / "values", spaces.bare.state / "values")
    for rows in (FIRST[:1], SECOND, THIRD):
        night(spaces.bare, rows)
    assert take(space, made) == head(spaces.bare)


def test_what_another_correction_supersedes_is_solved_again_but_not_asked_for(spaces: Spaces) -> None:
    space = spaces.all_three
    made = planned(space, identity(space, "Borea", "Tokyo"), "replay")
    asked = {case.case_id for case in made.cases if case.kind == "efficacy"}
    old, new = identity(space, "Alba", "Paris"), identity(space, "Alba", "Berne")
    assert {old, new} <= {result.correction_id for result in made.results}
    assert new in asked
    assert old not in asked | {case.case_id for case in made.cases if case.kind == "retention"}


def test_what_was_superseded_comes_back(spaces: Spaces) -> None:
    space = spaces.all_three
    made = planned(space, identity(space, "Alba", "Berne"), "replay")
    assert solved(space, made) == [{"Elis", "Borea"}]
    assert set(made.reverted) == {identity(space, "Alba", "Berne"), identity(space, "Alba", "Paris")}
    take(space, made)
    assert ("Alba", "Paris") in in_force(space)


@pytest.mark.parametrize("mode", ["drop", "replay"])
@pytest.mark.parametrize("target", ["#3", "--to v2"])
def test_the_last_round_goes_and_the_weights_before_it_are_back_to_the_bit(
    target: str, mode: Mode, spaces: Spaces
) -> None:
    made = planned(spaces.all_three, target, mode)
    assert made.results == ()
    assert made.mode == mode
    assert take(spaces.all_three, made) == version(spaces.all_three, 2)


@pytest.mark.parametrize("mode", ["drop", "replay"])
def test_a_replay_can_be_reverted_and_the_revert_of_that_as_well(mode: Mode, spaces: Spaces) -> None:
    space = spaces.all_three
    replayed = take(space, planned(space, "#2", "replay"))
    back = planned(space, "#4", mode)
    assert back.results == ()
    assert take(space, back) == version(space, 3)
    assert take(space, planned(space, "#5", mode)) == replayed


@pytest.mark.parametrize("mode", ["drop", "replay"])
def test_a_replay_can_be_reverted_after_a_later_round(mode: Mode, spaces: Spaces) -> None:
    space = spaces.all_three
    take(space, planned(space, "#2", "replay"))
    night(space, [f"Fara,capital,{CAPITAL},Paris,Delhi,gazette,Sue,moved,,"])
    made = planned(space, "#4", mode)
    assert solved(space, made) == ([{"Fara"}] if mode == "replay" else [])
    take(space, made)
    assert {("Cyra", "Accra"), ("Dorn", "Berne"), ("Fara", "Paris"), ("Alba", "Berne")} <= in_force(space)


def test_a_correction_that_cannot_be_written_again_is_said_to_be_skipped(spaces: Spaces) -> None:
    space = spaces.all_three
    hparams = space.path(space.params.method.hparams)
    hparams.write_text(hparams.read_text().replace("}", ', "upper_bound": 1e-9}'))
    made = planned(space, "#2", "replay")
    assert {(result.status, result.delta) for result in made.results} == {("skipped", None)}
    assert take(space, made) == version(space, 1)
    assert in_force(space) == {("Alba", "Paris"), ("Borea", "Tokyo")}
