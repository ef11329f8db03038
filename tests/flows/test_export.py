"""`nse export lora` and `nse export merged`: any version of a workspace, with where it comes from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.session import Session
from flows.workspace import Workspace
from ledger.status import read_state
from nse.architecture import load_model

Nse = Callable[..., Any]


def version(workspace: Workspace, position: int) -> str:
    """What the ledger calls the version at a position."""
    with workspace.ledger().read() as work:
        return next(m.version for m in work.heads(workspace.model) if m.position == position)


def test_a_merged_export_is_the_ledgers_version_to_the_bit(edited: Workspace, tmp_path: Path, nse: Nse) -> None:
    found = nse("export", "merged", tmp_path / "merged", "--at", "v1", "--json")
    assert found.code == 0, found.err
    assert load_model(tmp_path / "merged").base_digest == found.json["version"] == version(edited, 1)
    assert found.json["exact"] is True


def test_the_record_names_the_deltas_of_the_ledger(edited: Workspace, tmp_path: Path, nse: Nse) -> None:
    found = nse("export", "lora", tmp_path / "adapter", "--json")
    assert found.code == 0, found.err
    with edited.ledger().read() as work:
        state = read_state(work, edited.model)
    assert {delta["sha256"] for delta in found.json["deltas"]} == set(state.contents)
    assert (found.json["position"], found.json["version"]) == (1, version(edited, 1))
    assert found.json["base"] == edited.params.model.digest == version(edited, 0)
    assert found.json["largest_logit_difference"] < 1e-4
    assert found.json["prompts_compared"] == 2
    assert json.loads((tmp_path / "adapter/nse_export.json").read_text()) == found.json


def test_the_base_is_a_merged_model_but_no_adapter(edited: Workspace, tmp_path: Path, nse: Nse) -> None:
    assert nse("export", "merged", tmp_path / "base", "--at", "base").code == 0
    assert load_model(tmp_path / "base").base_digest == Session(edited).editable.base_digest
    refused = nse("export", "lora", tmp_path / "adapter", "--at", "base")
    assert refused.code == 2
    assert "there is no edit to export" in refused.error
    assert not (tmp_path / "adapter").exists()


def test_a_taken_folder_and_an_unknown_version_are_refused_in_one_line(
    edited: Workspace, tmp_path: Path, nse: Nse
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/mine.txt").write_text("x")
    for kind in ("lora", "merged"):
        refused = nse("export", kind, tmp_path / "taken")
        assert (refused.code, len(refused.err.strip().splitlines())) == (2, 1), refused.err
        assert "exists and is not empty" in refused.error
        assert nse("export", kind, tmp_path / "new", "--at", "v9").code == 2
    assert [p.name for p in (tmp_path / "taken").iterdir()] == ["mine.txt"]


def test_people_are_told_what_was_written(edited: Workspace, tmp_path: Path, nse: Nse) -> None:
    told = nse("export", "merged", tmp_path / "merged", "--dtype", "bfloat16", "--max-shard-size", "20KB")
    assert told.code == 0, told.err
    assert "v1" in told.out
    assert "bfloat16" in told.out
    assert len(list((tmp_path / "merged").glob("model-*.safetensors"))) > 1
    told = nse("export", "lora", tmp_path / "adapter", "--rank", "1")
    assert told.code == 0, told.err
    assert "cut to rank 1" in told.out
