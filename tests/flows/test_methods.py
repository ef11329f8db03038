"""Nights with methods that have no target states: one that tunes the weights for a whole round, one with a memory beside them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.plan import run_round
from flows.session import Session
from flows.workspace import Workspace, open_workspace

Nse = Callable[..., Any]


def use(workspace: Workspace, method: str, settings: str) -> None:
    """Makes it the method of a workspace."""
    params, hparams = workspace.root / "params.yaml", workspace.root / "hparams.json"
    params.write_text(params.read_text().replace("name: nse", f"name: {method}", 1))
    hparams.write_text(hparams.read_text().replace("{", f'{{"{method}": {settings}, ', 1))
    assert open_workspace(workspace.root).params.method.name == method


@pytest.fixture
def night(workspace: Workspace, corrections: Callable[..., Path], nse: Nse) -> Callable[[str, str], str]:
    """Plans and applies a round of two corrections with a method; gives the id of the first."""

    def run(method: str, settings: str) -> str:
        use(workspace, method, settings)
        nse("ingest", corrections(("Alba", "Paris", "Rome"), ("Borea", "Tokyo", "Oslo")))
        changeset = run_round(Session(open_workspace(workspace.root)), by="Pia").changeset
        assert changeset is not None
        assert "skipped" not in {result.status for result in changeset.results}
        assert nse("approve", "1", "--by", "Rex", "--reason", "checked").code == 0
        assert nse("apply", "1", "--by", "Rex").code == 0
        return str(nse("blame", "Alba", "--json").json[0]["correction"]["id"])

    return run


def test_a_whole_round_of_ft_cannot_lose_one_correction_and_one_line_says_what_to_do(
    night: Callable[[str, str], str], nse: Nse
) -> None:
    first = night("ft", '{"layers": [2], "lr": 0.05, "num_steps": 40}')
    refused = nse("revert", first, "--by", "Pia", "--reason", "wrong")
    assert refused.code == 1
    assert "its method wrote all of them together: revert with --mode replay, or the whole round" in refused.error
    replayed = nse("revert", first, "--by", "Pia", "--reason", "wrong", "--mode", "replay", "--json")
    assert replayed.code == 0, replayed.err
    assert replayed.json["changeset"]["reverted"] == [first]


def test_a_memory_is_proposed_applied_asked_and_verified(night: Callable[[str, str], str], nse: Nse) -> None:
    night("grace", '{"layers": [2], "eps": 0.5, "lr": 0.5, "steps": 30}')
    said = {at: nse("ask", "The capital of Alba is", "--at", at, "--json").json["answer"] for at in ("base", "head")}
    assert said["head"].startswith("Paris")
    assert not said["base"].startswith("Paris")
    assert nse("verify").code == 0
