"""The figures of each version in Git: what `dvc metrics diff` and `dvc plots diff` say of two versions."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.config import ModelParams, Params
from flows.git import git
from flows.metrics import DELTA_NORM, RETENTION, VERSIONS, declared, keep_metrics, metrics_path
from flows.workspace import Workspace
from ledger.records import Metric
from tests.flows.nights import figures, history, night, started
from tests.ledger.cast import Cast
from tests.ledger.conftest import MODEL

Nse = Callable[..., Any]
FILES = (metrics_path(MODEL), VERSIONS, RETENTION, DELTA_NORM)


def dvc(root: Path, *arguments: str) -> Any:
    """What a command of DVC prints as JSON."""
    command = [sys.executable, "-m", "dvc", *arguments, "--json"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Git and DVC repository whose `dvc.yaml` is that of a workspace, less the stages."""
    root = tmp_path_factory.mktemp("metrics") / "space"
    root.mkdir()
    git(root, "init", "--quiet", "--initial-branch=main")
    git(root, "config", "user.name", "Ann")
    git(root, "config", "user.email", "ann@example.org")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=root, check=True)
    (root / "dvc.yaml").write_text(yaml.safe_dump(declared(MODEL), sort_keys=False))
    (root / ".gitignore").write_text("/ledger.db*\n")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "Workspace")
    return root


@dataclass
class Place:
    """A workspace without a model, and who acts in its ledger."""

    workspace: Workspace
    cast: Cast

    @property
    def root(self) -> Path:
        return self.workspace.root

    def read(self, name: str) -> Any:
        return json.loads((self.root / name).read_text())


@pytest.fixture
def place(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.delenv("NSE_LEDGER_URL", raising=False)
    root = tmp_path / "space"
    shutil.copytree(repository, root, symlinks=True)
    params = Params(model=ModelParams(name=MODEL, path="model", digest="ba5e" * 16))
    return Place(Workspace(root, params), started(root / "ledger.db"))


def test_dvc_compares_two_versions(place: Place) -> None:
    old = history(place.cast, 1, 4)
    assert keep_metrics(place.workspace)
    made = night(place.cast, [place.cast.file("Croatia")], old, metrics=figures(0.9, 0.75, 1.02))
    place.cast.approve(made)
    place.cast.apply(made)
    assert keep_metrics(place.workspace)
    assert git(place.root, "log", "--format=%s", "-2").splitlines() == ["Metrics of v2", "Metrics of v1"]
    assert git(place.root, "status", "--porcelain") == ""

    assert dvc(place.root, "metrics", "show")[""]["data"][FILES[0]]["data"]["efficacy"] == 0.75
    changed = dvc(place.root, "metrics", "diff", "HEAD~1", "HEAD")[FILES[0]]
    assert changed["version"] == {"old": 1, "new": 2, "diff": 1}
    assert changed["retention_generation"] == {"old": 1.0, "new": 0.75, "diff": -0.25}
    assert changed["perplexity_ratio"]["new"] == 1.02

    plots = dvc(place.root, "plots", "diff", "HEAD~1", "HEAD")
    assert not plots.get("errors"), plots["errors"]
    assert all({*plot["revisions"]} == {"HEAD~1", "HEAD"} for (plot,) in plots["data"].values())
    drawn = {name: plot["content"]["data"]["values"] for name, (plot,) in plots["data"].items()}
    assert set(drawn) == {"metrics by version", "perplexity by version", "retention by age", "delta norm by layer"}
    now = {name: [point for point in points if point["rev"] == "HEAD"] for name, points in drawn.items()}
    assert [point["n"] for point in now["retention by age"] if point["age"] == 1] == [4, 4, 4]  # low, kept and high
    assert {(p["layer"], p["norm"]) for p in now["delta norm by layer"]} == {(2, 0.02), (3, 0.03), (4, 0.04)}
    assert [point["perplexity_ratio"] for point in drawn["perplexity by version"]] == [1.01, 1.01, 1.02]


def test_the_files_are_those_of_the_version_in_force(place: Place) -> None:
    assert not keep_metrics(place.workspace)
    assert not (place.root / "plots").exists()  # nothing has evaluated the base model
    old = history(place.cast, 2, 3)
    made = night(place.cast, [place.cast.file("Croatia")], old, wrong=2)  # a gate fails: it is never in force
    assert keep_metrics(place.workspace)
    assert (made.number, place.read(FILES[0])["changeset"]) == (3, 2)
    assert [row["version"] for row in place.read(VERSIONS)] == [1, 2]
    assert [(row["age"], row["n"], row["kept"]) for row in place.read(RETENTION)] == [(0, 3, 1.0), (1, 3, 1.0)]


def test_kept_twice_is_kept_once(place: Place) -> None:
    history(place.cast, 1, 2)
    assert keep_metrics(place.workspace)
    before = git(place.root, "rev-parse", "HEAD")
    assert not keep_metrics(place.workspace)
    assert git(place.root, "rev-parse", "HEAD") == before


def test_what_was_not_measured_is_null(place: Place) -> None:
    metrics = (Metric("efficacy_generation", "candidate", 0.5), Metric("perplexity", "candidate", float("inf")))
    made = night(place.cast, [place.cast.file("Croatia")], [], metrics=metrics)
    place.cast.approve(made)
    place.cast.apply(made)
    assert keep_metrics(place.workspace)
    assert place.read(FILES[0])["perplexity"] is None
    (row,) = place.read(VERSIONS)
    assert (row["efficacy_generation"], row["untouched_generation"], row["perplexity_ratio"]) == (0.5, None, None)
    assert place.read(DELTA_NORM) == []
    assert not dvc(place.root, "plots", "show").get("errors")


def test_files_that_cannot_be_kept_are_a_warning(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    history(place.cast, 1, 1)
    (place.root / ".git" / "index.lock").touch()
    assert not keep_metrics(place.workspace)
    assert "no metrics were kept in Git" in caplog.text
    (place.root / ".git" / "index.lock").unlink()
    assert keep_metrics(place.workspace)


def test_no_text_of_a_correction_is_in_them(place: Place) -> None:
    history(place.cast, 2, 2)
    assert keep_metrics(place.workspace)
    written = "".join((place.root / name).read_text() for name in FILES)
    assert "Country" not in written
    assert "euro" not in written


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("demo", "metrics/demo.json"),
        ("acme/large model", "metrics/acme-large-model.json"),
        ("../..", "metrics/model.json"),
        ("baseline", "metrics/baseline-model.json"),
    ],
)
def test_any_name_of_a_model_is_a_file_in_the_folder(model: str, path: str) -> None:
    assert metrics_path(model) == path


def test_a_new_workspace_declares_them(workspace: Workspace) -> None:
    found = yaml.safe_load((workspace.root / "dvc.yaml").read_text())
    assert found["metrics"] == ["metrics/tiny.json"]
    assert {file for plot in found["plots"] for given in plot.values() for file in given["y"]} == set(FILES[1:])


def test_an_apply_keeps_the_figures_of_its_evaluation(edited: Workspace, nse: Nse) -> None:
    assert git(edited.root, "log", "--format=%s", "-1") == "Metrics of v1"
    shown = nse("show", "1", "--json").json["changeset"]["metrics"]
    wanted = {m["name"]: m["value"] for m in shown if m["phase"] == "candidate"}
    kept = json.loads((edited.root / "metrics" / "tiny.json").read_text())
    assert kept == {"version": 1, "changeset": 1, **wanted}
    assert git(edited.root, "status", "--porcelain", "metrics", "plots") == ""
