"""A night from end to end: corrections in, planned, approved, applied, asked about, undone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.workspace import Workspace

Nse = Callable[..., Any]


def test_a_correction_goes_all_the_way_and_back(
    workspace: Workspace, corrections: Callable[..., Path], nse: Nse
) -> None:
    filed = nse("ingest", corrections(("Alba", "Paris", "Rome"), ("Borea", "Tokyo", "Oslo")), "--json")
    assert filed.code == 0
    assert len(filed.json["filed"]) == 2

    planned = nse("plan", "--by", "Pia", "--json")
    assert planned.code == 0, planned.err
    assert planned.json["status"] == "proposed"
    assert [b["new"] for b in planned.json["beliefs"]] == ["Paris", "Tokyo"]

    assert nse("apply", "--by", "Rex").code == 1
    assert nse("approve", "--by", "Rex", "--reason", "checked").code == 0
    applied = nse("apply", "--by", "Rex", "--json")
    assert applied.json["applied"]["position"] == 1

    assert nse("ask", "The capital of Alba is", "--json").json["because"][0]["target_new"] == "Paris"
    assert nse("ask", "The capital of Alba is", "--at", "base", "--json").json["because"] == []
    verified = nse("verify", "--json")
    assert verified.json == {"ok": True, "findings": []}

    base = nse("log", "--json")
    undone = nse("revert", "#1", "--by", "Pia", "--reason", "test", "--json")
    assert undone.code == 0, undone.err
    assert nse("approve", "2", "--by", "Rex", "--reason", "checked").code == 0
    back = nse("apply", "2", "--by", "Rex", "--json").json["applied"]
    assert back["version"] == workspace.params.model.digest
    assert base.code == 0
    assert nse("verify").code == 0
    for command in (("status",), ("log",), ("blame", "alba"), ("diff", "v1", "v2"), ("show", "1"), ("evaluate",)):
        shown = nse(*command)
        assert shown.code == 0, shown.err
        assert shown.out
