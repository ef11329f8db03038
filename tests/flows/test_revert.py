"""Reverts that leave columns out: a correction, a set of them, a changeset, all since a version, and a revert itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.decide import decide
from flows.errors import Refused
from flows.revert import Query
from flows.workspace import Workspace
from ledger.errors import DecisionRefused
from ledger.records import Erasure
from tests.flows.rounds import CAPITAL, Spaces, file, history, identity, in_force, planned, spaces, take, version

Nse = Callable[..., Any]
__all__ = ["history", "spaces"]


def applied(nse: Nse, number: int) -> str:
    assert nse("approve", number, "--by", "Rex", "--reason", "checked").code == 0
    version: str = nse("apply", number, "--by", "Rex", "--json").json["applied"]["version"]
    return version


def test_one_correction_goes_and_the_other_stays(edited: Workspace, nse: Nse) -> None:
    identity = nse("blame", "Alba", "--json").json[0]["correction"]["id"]
    planned = nse("revert", identity[:10], "--by", "Pia", "--reason", "wrong", "--json").json["changeset"]
    assert [change["dropped"] for change in planned["changes"]] == [[identity]]
    assert (planned["reverted"], planned["mode"]) == ([identity], "drop")
    assert {gate["name"] for gate in planned["gates"]} == {"delta_norm", "retention"}
    applied(nse, 2)
    assert nse("blame", "Alba", "--json").json[0]["status"] == "reverted"
    assert nse("blame", "Borea", "--json").json[0]["in_force"]
    again = nse("revert", identity[:10], "--by", "Pia", "--reason", "wrong")
    assert again.code == 1
    assert "is not in force: it is reverted" in again.error
    assert nse("verify").code == 0


def test_a_round_goes_and_the_weights_are_the_earlier_ones_to_the_bit(edited: Workspace, nse: Nse) -> None:
    assert nse("revert", "1", "--by", "Pia", "--reason", "wrong").code == 0
    assert applied(nse, 2) == edited.params.model.digest


def test_a_revert_can_be_reverted_and_that_as_well(edited: Workspace, nse: Nse) -> None:
    edited_version = nse("status", "--json").json["head"]["version"]
    identity = nse("blame", "Alba", "--json").json[0]["correction"]["id"]
    nse("revert", identity, "--by", "Pia", "--reason", "wrong")
    without = applied(nse, 2)
    nse("revert", "#2", "--by", "Pia", "--reason", "it was right")
    assert applied(nse, 3) == edited_version
    assert nse("blame", "Alba", "--json").json[0]["status"] == "active"
    nse("revert", "#3", "--by", "Pia", "--reason", "it was wrong")
    assert applied(nse, 4) == without


def test_back_to_a_version(edited: Workspace, corrections: Callable[..., Path], nse: Nse) -> None:
    nse("ingest", corrections(("Cyra", "Accra", "Lima"), name="later.csv"))
    nse("plan", "--by", "Pia")
    applied(nse, 2)
    assert len(nse("diff", "v1", "v2", "--json").json["came_in_force"]) == 1
    nse("revert", "--to", "base", "--by", "Pia", "--reason", "start again")
    assert applied(nse, 3) == edited.params.model.digest
    again = nse("revert", "--to", "base", "--by", "Pia", "--reason", "again")
    assert (again.code, "base is in force already" in again.error) == (1, True)


def test_a_revert_that_wrote_corrections_again_comes_and_goes_to_the_bit(spaces: Spaces) -> None:
    space = spaces.all_three
    made = planned(space, identity(space, "Borea", "Tokyo"))
    assert [result.correction_id for result in made.results] == [identity(space, "Borea", "Berne")]
    without = take(space, made)
    assert take(space, planned(space, "#4")) == version(space, 3)
    assert take(space, planned(space, "#5")) == without
    assert take(space, planned(space, "--to v3")) == version(space, 3)


def test_all_from_one_source_goes_and_what_it_had_superseded_comes_back(spaces: Spaces) -> None:
    space = spaces.all_three
    take(space, planned(space, Query(source="rumour")))
    assert in_force(space) == {("Alba", "Paris"), ("Borea", "Tokyo"), ("Elis", "Tokyo"), ("Borea", "Berne")}


def test_a_query_is_about_what_meets_all_its_conditions(spaces: Spaces) -> None:
    space = spaces.all_three
    made = planned(space, Query(source="rumour", submitter="sue"))
    assert made.reverted == (identity(space, "Dorn", "Berne"),)
    made = planned(space, Query(submitter="Tim", since="2031-02-01", until="2031-02-28"))
    assert made.reverted == (identity(space, "Cyra", "Accra"),)
    with pytest.raises(Refused, match="nothing filed since 2031-02-11, filed until 2031-03-09 is in force"):
        planned(space, Query(since="2031-02-11", until="2031-03-09"))


def test_what_the_same_query_asked_for_does_not_come_back_instead(spaces: Spaces) -> None:
    made = planned(spaces.all_three, Query(since="2031-01-10", until="2031-03-10"))
    assert made.candidate_version == spaces.all_three.params.model.digest


def test_what_was_erased_does_not_come_back(spaces: Spaces) -> None:
    space = spaces.all_three
    old, new = identity(space, "Alba", "Paris"), identity(space, "Alba", "Berne")
    with space.ledger().begin() as work:
        work.erase(Erasure(ref=old, reason="asked for", erased_by="Ann", erased_at=space.now()))
    made = planned(space, new)
    assert made.reverted == (new,)
    assert old in {identity for change in made.changes for identity in change.dropped}
    take(space, made)
    assert "Alba" not in {subject for subject, _ in in_force(space)}


@pytest.mark.parametrize(
    ("subject", "target", "locked_out", "may"),
    [
        ("Borea", "Tokyo", "Sue", "Tim"),  # Tim's other correction of Borea is written again, and stays as it was
        ("Alba", "Berne", "Sue", "Rex"),  # Sue's comes back in force
        ("Alba", "Berne", "Tim", "Rex"),
    ],
)
def test_those_whose_corrections_go_or_come_back_cannot_approve_and_others_can(
    subject: str, target: str, locked_out: str, may: str, spaces: Spaces
) -> None:
    space = spaces.all_three
    made = planned(space, identity(space, subject, target))
    with pytest.raises(DecisionRefused, match=f"{locked_out} filed one of its corrections"):
        decide(space, made.id, "approve", reviewer=locked_out, reason="fine")
    decide(space, made.id, "approve", reviewer=may, reason="fine")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("#9", "--reason", "x"), 2, "there is no changeset #9"),
        (("abcdef1", "--reason", "x"), 2, "no correction begins"),
        (("--reason", "x"), 2, "nothing is named to revert"),
        (("#1",), 2, "a revert needs a reason"),
        (("#1", "--source", "gazette", "--dry-run"), 2, "#1 and from gazette are both named"),
        (("#1", "--to", "base", "--dry-run"), 2, "#1 and --to base are both named"),
        (("--to", "base", "--mode", "drop", "--dry-run"), 2, "it has no --mode"),
        (("--to", "v7", "--dry-run"), 2, "has no v7"),
        (("--to", "head", "--dry-run"), 1, "head is in force already"),
        (("#1", "--mode", "undo", "--dry-run"), 2, "write drop or replay"),
        (("--source", "nowhere", "--dry-run"), 2, "no correction is from 'nowhere': sources are 'gazette', 'rumour'"),
        (("--submitter", "Bob", "--dry-run"), 2, "nobody called 'Bob' filed a correction: people are 'Sue', 'Tim'"),
        (("--since", "yesterday", "--dry-run"), 2, "'yesterday' is no date"),
        (("--since", "2026-02-02", "--until", "2026-02-01", "--dry-run"), 2, "2026-02-02 is later than 2026-02-01"),
        (("--source", "gazette", "--until", "2020-01-01", "--dry-run"), 1, "nothing from gazette, filed until"),
        (("Fara", "--dry-run"), 1, "is not in force: it is pending"),
    ],
)
def test_what_cannot_be_reverted_is_said_in_one_line(
    arguments: tuple[str, ...], code: int, says: str, spaces: Spaces, nse: Nse
) -> None:
    if arguments[0] == "Fara":
        file(spaces.all_three, [f"Fara,capital,{CAPITAL},Paris,Delhi,gazette,Sue,moved,,"])
        arguments = (identity(spaces.all_three, "Fara", "Paris"), *arguments[1:])
    found = nse("revert", *arguments, "--by", "Pia")
    assert found.code == code
    assert says in found.error
    assert nse("status", "--json").json["waiting"] == []


def test_a_changeset_that_was_never_applied_is_not_reverted_but_rejected(
    workspace: Workspace, corrections: Callable[..., Path], nse: Nse
) -> None:
    nse("ingest", corrections(("Alba", "Paris", "Rome")))
    nse("plan", "--by", "Pia")
    found = nse("revert", "#1", "--dry-run")
    assert (found.code, "changeset #1 was never applied: reject it instead" in found.error) == (1, True)
