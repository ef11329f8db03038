"""`nse init`: a whole workspace, made once; run again, it changes nothing."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Nse = Callable[..., Any]


def options(model: Path, inputs: Path) -> list[object]:
    files = {name: inputs / name for name in ("hparams.json", "suite.yaml", "corpus.txt")}
    named = [part for name, path in files.items() for part in (f"--{name.split('.')[0]}", path)]
    return ["--model", model, "--name", "tiny", "--user", "Ann Author <ann@example.org>", *named]


def tree(root: Path) -> dict[str, bytes]:
    """Every file but Git's and DVC's own, and the ledger's journal."""
    found = (path for path in root.rglob("*") if path.is_file() and not {".git", "tmp"} & {*path.parts})
    return {str(path.relative_to(root)): path.read_bytes() for path in found if not path.name.startswith("ledger.db-")}


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout


@pytest.fixture(autouse=True)
def _no_other_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NSE_LEDGER_URL", raising=False)


def test_twice_is_once(model: Path, inputs: Path, tmp_path: Path, nse: Nse) -> None:
    root = tmp_path / "space"
    made = nse("init", root, *options(model, inputs), "--json")
    assert made.code == 0, made.err
    assert git(root, "status", "--porcelain") == ""
    before, commits = tree(root), git(root, "log", "--format=%H")
    assert nse("init", root, *options(model, inputs)).code == 0
    assert tree(root) == before
    assert git(root, "log", "--format=%H") == commits
    assert nse("log", "--workspace", root, "--json").json[0]["kind"] == "started"


def test_the_stages_name_their_inputs(model: Path, inputs: Path, tmp_path: Path, nse: Nse) -> None:
    root = tmp_path / "space"
    assert "dvc repro" in nse("init", root, *options(model, inputs)).out
    stages = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    assert stages["second_moment"]["deps"] == [str(model), "hparams.json", "corpus.txt"]
    assert stages["baseline"]["cmd"].startswith("nse evaluate")


def test_a_copied_model_comes_along_and_reaches_the_remote(model: Path, inputs: Path, tmp_path: Path, nse: Nse) -> None:
    root, remote = tmp_path / "space", tmp_path / "elsewhere"
    made = nse("init", root, *options(model, inputs), "--copy-model", "--remote", remote)
    assert made.code == 0, made.err
    assert (root / "model" / "config.json").is_file()
    assert "model.dvc" in git(root, "ls-files")
    assert any(path.is_file() for path in remote.rglob("*"))
    asked = nse("ask", "The capital of Alba is", "--workspace", root, "--json")
    assert asked.code == 0, asked.err


@pytest.mark.parametrize("missing", ["hparams.json", "suite.yaml", "corpus.txt", "config.json"])
def test_a_missing_input_makes_nothing(missing: str, model: Path, inputs: Path, tmp_path: Path, nse: Nse) -> None:
    given = [
        tmp_path / "no" / missing if str(option).endswith(missing) else option for option in options(model, inputs)
    ]
    if missing == "config.json":
        given[1] = tmp_path
    found = nse("init", tmp_path / "space", *given)
    assert found.code == 2
    assert found.error.startswith("error: ")
    assert not (tmp_path / "space").exists()


def test_a_clone_gets_its_ledger_with_the_directory_alone(model: Path, inputs: Path, tmp_path: Path, nse: Nse) -> None:
    root, copy = tmp_path / "space", tmp_path / "clone"
    assert nse("init", root, *options(model, inputs)).code == 0
    git(tmp_path, "clone", "--quiet", str(root), str(copy))
    assert nse("status", "-w", copy).code == 2
    assert nse("init", copy, "--json").json["base"] == nse("init", root, "--json").json["base"]
    assert nse("status", "-w", copy, "--json").json["head"]["position"] == 0


def test_a_new_workspace_needs_all_its_files(model: Path, tmp_path: Path, nse: Nse) -> None:
    outcome = nse("init", tmp_path / "new", "--model", model)
    assert outcome.code == 2
    assert "needs --model, --name, --suite and --corpus" in outcome.err
    assert "is no workspace" in nse("init", tmp_path / "new").err
    assert not (tmp_path / "new").exists()


def test_settings_that_are_not_given_are_proposed_with_their_source(
    model: Path, inputs: Path, tmp_path: Path, nse: Nse, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = options(model, inputs)
    at = given.index("--hparams")
    without = given[:at] + given[at + 2 :]
    refused = nse("init", tmp_path / "none", *without)
    assert (refused.code, (tmp_path / "none").exists()) == (2, False)
    assert "no evidence for a model so small: give --hparams" in refused.error
    monkeypatch.setattr("nse.proposal.SMALLEST", 0)
    root = tmp_path / "space"
    made = nse("init", root, *without)
    assert made.code == 0, made.err
    assert "Proposed from preset gpt2-xl (gpt2, 48 layers, 1.6B parameters)" in made.out.replace("\n", " ")
    assert yaml.safe_load((root / "params.yaml").read_text())["method"]["hparams"] == "hparams.yaml"
    assert yaml.safe_load((root / "hparams.yaml").read_text())["layers"] == [1]
    assert git(root, "status", "--porcelain") == ""
    before = tree(root)
    assert nse("init", root, *without).code == 0
    assert tree(root) == before
