"""`nse edit`, `nse stats` and `nse evaluate` on the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.workspace import Workspace

Nse = Callable[..., Any]


def test_stats_in_a_workspace_needs_no_options(workspace: Workspace, nse: Nse) -> None:
    before = workspace.second_moment.read_bytes()
    workspace.second_moment.unlink()
    assert nse("stats", "--output", workspace.params.method.second_moment).code == 0
    assert workspace.second_moment.read_bytes() == before


def test_stats_and_edit_need_no_workspace(model: Path, inputs: Path, tmp_path: Path, nse: Nse) -> None:
    moments, out = tmp_path / "c0.safetensors", tmp_path / "out"
    collected = nse(
        *(
            "stats",
            "--model",
            model,
            "--corpus",
            inputs / "corpus.txt",
            "--layers",
            "0-1",
            "--output",
            moments,
            "--json",
        )
    )
    assert collected.code == 0, collected.err
    assert len(collected.json["modules"]) == 2
    request = {"subject": "Alba", "prompt_template": "The capital of {} is", "target_new": "Paris"}
    (tmp_path / "requests.jsonl").write_text(json.dumps(request) + "\n")
    files = ("--model", model, "--requests", tmp_path / "requests.jsonl", "--hparams", inputs / "hparams.json")
    edited = nse("edit", *files, "--second-moment", moments, "--output", out, "--json")
    assert edited.code == 0, edited.err
    assert edited.json["requests"][0]["status"] in ("edited", "unconverged")
    assert sorted(path.name for path in out.iterdir()) == ["delta.safetensors", "report.json", "values.safetensors"]


def test_layers_that_are_none_are_refused(model: Path, inputs: Path, tmp_path: Path, nse: Nse) -> None:
    options = ("--model", model, "--corpus", inputs / "corpus.txt", "--output", tmp_path / "x")
    for text in ("one", "", "1-", "3-x"):
        found = nse("stats", *options, "--layers", text)
        assert found.code == 2, text
        assert "names no layers" in found.error


def test_evaluate_writes_the_metrics_of_a_version(edited: Workspace, tmp_path: Path, nse: Nse) -> None:
    found = nse("evaluate", "--at", "v1", "--json-file", tmp_path / "m" / "x.json", "--json")
    assert found.code == 0, found.err
    written = json.loads((tmp_path / "m" / "x.json").read_text())
    assert written["metrics"] == found.json["metrics"]
    assert "retention" in written["metrics"]
