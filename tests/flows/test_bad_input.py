"""What goes wrong gets one clear line and a non-zero exit, and the ledger still verifies."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.workspace import Workspace

Nse = Callable[..., Any]


def set_params(workspace: Workspace, section: str, key: str, value: object) -> None:
    path = workspace.root / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params[section][key] = value
    path.write_text(yaml.safe_dump(params))


@pytest.mark.parametrize(
    ("section", "key", "value", "says"),
    [
        ("round", "batch_size", 0, "params.yaml: round.batch_size: Input should be greater than or equal to 1"),
        ("round", "size", 1, "params.yaml: round.size: is not a setting"),
        ("schedule", "timezone", "Mars/Olympus", "params.yaml: schedule.timezone: 'Mars/Olympus' is no time zone"),
        ("schedule", "cron", "0 2", "params.yaml: schedule.cron: '0 2' has 2 fields"),
        ("model", "digest", "abc", "params.yaml: model.digest: String should match pattern"),
    ],
)
def test_a_wrong_setting_is_named(
    section: str, key: str, value: object, says: str, workspace: Workspace, nse: Nse
) -> None:
    set_params(workspace, section, key, value)
    found = nse("status")
    assert found.code == 2
    assert found.error.startswith(f"error: {says}")


def test_outside_a_workspace_it_says_how_to_make_one(tmp_path: Path, nse: Nse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = nse("status")
    assert found.code == 2
    assert "nse init" in found.error


def test_a_missing_second_moment_names_the_stage_that_makes_it(
    workspace: Workspace, corrections: Callable[..., Path], nse: Nse
) -> None:
    nse("ingest", corrections(("Alba", "Paris", "Rome")))
    workspace.second_moment.unlink()
    found = nse("plan", "--by", "Pia")
    assert found.code == 2
    assert "second_moment.safetensors is missing: make it with `dvc repro second_moment`" in found.error
    assert nse("verify").code == 0


def test_an_unknown_model_is_refused(workspace: Workspace, tmp_path: Path, nse: Nse) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    set_params(workspace, "model", "path", str(folder))
    found = nse("ask", "The capital of Alba is")
    assert found.code == 2
    assert "model type 'bert' has no row in the table" in found.error


def test_another_model_under_the_same_path_is_refused(workspace: Workspace, nse: Nse) -> None:
    set_params(workspace, "model", "digest", "0" * 64)
    found = nse("ask", "The capital of Alba is")
    assert found.code == 2
    assert "params.yaml says 000000000000" in found.error


def test_a_ledger_of_a_newer_schema_is_refused(workspace: Workspace, nse: Nse) -> None:
    with sqlite3.connect(workspace.root / "ledger.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    found = nse("log")
    assert found.code == 2
    assert "has schema 9999" in found.error
    assert "upgrade the program" in found.error


def test_one_changed_byte_of_a_delta_stops_apply_and_is_found_by_verify(
    workspace: Workspace, corrections: Callable[..., Path], nse: Nse
) -> None:
    nse("ingest", corrections(("Alba", "Paris", "Rome")))
    planned = nse("plan", "--by", "Pia", "--json").json
    nse("approve", "1", "--by", "Rex", "--reason", "checked")
    path = workspace.root / planned["changeset"]["changes"][0]["path"]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    path.write_bytes(content)
    found = nse("apply", "1", "--by", "Rex")
    assert found.code == 2
    assert "holds other bytes" in found.error
    assert nse("status", "--json").json["head"]["position"] == 0
    assert nse("verify").code == 1
    path.unlink()  # as the advice says
    assert nse("verify").code == 0
    assert nse("apply", "1", "--by", "Rex").code == 0


def test_who_filed_or_planned_may_not_approve(workspace: Workspace, corrections: Callable[..., Path], nse: Nse) -> None:
    nse("ingest", corrections(("Alba", "Paris", "Rome")))
    nse("plan", "--by", "Pia")
    for person in ("sue", "PIA"):
        refused = nse("approve", "--by", person, "--reason", "mine")
        assert refused.code == 1
    assert nse("approve", "--by", "Rex").code == 1  # no reason
    assert nse("reject", "--by", "Rex", "--reason", "not today").code == 0
    assert nse("apply", "1", "--by", "Rex").code == 1
    assert nse("plan", "--by", "Pia", "--json").json == {"changeset": None}


def test_no_version_of_that_name(workspace: Workspace, nse: Nse) -> None:
    for text in ("v7", "#3", "1999-01-01", "abcdef", "yesterday"):
        found = nse("ask", "The capital of Alba is", "--at", text)
        assert found.code == 2, text


def test_init_of_something_else_in_the_same_folder_is_refused(
    workspace: Workspace, model: Path, inputs: Path, nse: Nse
) -> None:
    options = [
        "--hparams",
        inputs / "hparams.json",
        "--suite",
        inputs / "suite.yaml",
        "--corpus",
        inputs / "corpus.txt",
    ]
    same = nse("init", workspace.root, "--model", model, "--name", "tiny", *options)
    assert same.code == 0, same.err
    other = nse("init", workspace.root, "--model", model, "--name", "other", *options)
    assert other.code == 2
    assert "is the workspace of model.name tiny, not other" in other.error
