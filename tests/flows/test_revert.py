"""Reverts: a correction, a changeset, everything since a version, and a revert itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.workspace import Workspace

Nse = Callable[..., Any]


def take(nse: Nse, number: int) -> str:
    assert nse("approve", number, "--by", "Rex", "--reason", "checked").code == 0
    version: str = nse("apply", number, "--by", "Rex", "--json").json["applied"]["version"]
    return version


def test_one_correction_goes_and_the_other_stays(edited: Workspace, nse: Nse) -> None:
    identity = nse("blame", "Alba", "--json").json[0]["correction"]["id"]
    planned = nse("revert", identity[:10], "--by", "Pia", "--reason", "wrong", "--json").json["changeset"]
    assert planned["active"][0]["dropped"] == [identity]
    assert planned["reverted"] == [identity]
    assert {gate["name"] for gate in planned["gates"]} == {"retention"}
    take(nse, 2)
    assert nse("blame", "Alba", "--json").json[0]["status"] == "reverted"
    assert nse("blame", "Borea", "--json").json[0]["in_force"]
    again = nse("revert", identity[:10], "--by", "Pia", "--reason", "wrong")
    assert again.code == 1
    assert "is not in force" in again.error
    assert nse("verify").code == 0


def test_a_round_goes_and_the_weights_are_the_earlier_ones_to_the_bit(edited: Workspace, nse: Nse) -> None:
    assert nse("revert", "1", "--by", "Pia", "--reason", "wrong").code == 0
    assert take(nse, 2) == edited.params.model.digest


def test_a_revert_can_be_reverted(edited: Workspace, nse: Nse) -> None:
    edited_version = nse("status", "--json").json["head"]["version"]
    identity = nse("blame", "Alba", "--json").json[0]["correction"]["id"]
    nse("revert", identity, "--by", "Pia", "--reason", "wrong")
    take(nse, 2)
    nse("revert", "#2", "--by", "Pia", "--reason", "it was right")
    assert take(nse, 3) == edited_version
    assert nse("blame", "Alba", "--json").json[0]["status"] == "active"


def test_back_to_a_version(edited: Workspace, corrections: Callable[..., Path], nse: Nse) -> None:
    nse("ingest", corrections(("Cyra", "Accra", "Lima"), name="later.csv"))
    nse("plan", "--by", "Pia")
    take(nse, 2)
    assert len(nse("diff", "v1", "v2", "--json").json["came_in_force"]) == 1
    nse("revert", "--to", "base", "--by", "Pia", "--reason", "start again")
    assert take(nse, 3) == edited.params.model.digest
    assert nse("revert", "--to", "base", "--by", "Pia", "--reason", "again").code == 1


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("#9", "--reason", "x"), 2, "there is no changeset #9"),
        (("abcdef1", "--reason", "x"), 2, "no correction begins"),
        (("--reason", "x"), 2, "nothing is named to revert"),
        (("#1",), 2, "a revert needs a reason"),
    ],
)
def test_a_revert_of_nothing_says_so(
    arguments: tuple[str, ...], code: int, says: str, edited: Workspace, nse: Nse
) -> None:
    found = nse("revert", *arguments, "--by", "Pia")
    assert found.code == code
    assert says in found.error
