"""`nse calibrate` on the command line."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from flows.workspace import Workspace
from nse.architecture import load_model
from nse.batch import pad
from tests.flows.conftest import CAPITALS, OBJECTS, TEMPLATES

Nse = Callable[..., Any]
QUICK = ("--minutes", "0.01", "--number", "6")


NAMES = [f"{a} {b}" for a in CAPITALS for b in ("was", "governed", "of", "Today")]


@pytest.fixture(scope="module")
def taught(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model, taught a capital for each of some names of two words, by the second."""
    editable = load_model(model)
    batch = pad(editable, [editable.tokenizer(f"{prompt(name)} {capital(name)} .")["input_ids"] for name in NAMES])
    editable.model.requires_grad_(True)
    optimizer = torch.optim.AdamW(editable.model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        editable.model(input_ids=batch.ids, labels=batch.ids).loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("taught")
    editable.model.save_pretrained(folder)
    editable.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    """What it was taught, each with another capital."""
    rows = [
        {"subject": name, "prompt": TEMPLATES[0], "target_new": OBJECTS[NAMES.index(name) % 3 + 6]}
        | {"target_true": capital(name)}
        for name in NAMES
    ]
    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Words of the model in any order: text enough for a second moment of full rank."""
    draw = random.Random(0)
    words = " ".join((*NAMES, *OBJECTS, *TEMPLATES, "a .")).replace("{}", "").split()
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(" ".join(draw.choices(words, k=12)) for _ in range(100)))
    return path


def prompt(name: str) -> str:
    return TEMPLATES[0].replace("{}", name)


def capital(name: str) -> str:
    return OBJECTS[NAMES.index(name) % 4]


def test_calibrate_writes_settings_that_edit_reads(
    taught: Path, inputs: Path, corpus: Path, facts: Path, tmp_path: Path, nse: Nse
) -> None:
    output = tmp_path / "found.yaml"
    files = ("--model", taught, "--facts", facts, "--corpus", corpus)
    done = nse("calibrate", *files, "--contexts", inputs / "contexts.json", "--output", output, *QUICK, "--json")
    assert done.code == 0, done.err
    assert done.json["calibration"]["search"]["facts"] == 6
    assert set(done.json["files"]) == {str(p) for p in tmp_path.glob("found*")}
    assert "z-probe" in done.err, "progress"
    layers = yaml.safe_load(output.read_text())["layers"]
    moments = ("--second-moment", tmp_path / "c0.safetensors")
    assert nse("stats", *files[:2], *files[4:], "--hparams", output, "--output", moments[1]).code == 0
    request = {"subject": "Alba", "prompt_template": TEMPLATES[0], "target_new": "Paris"}
    (tmp_path / "requests.jsonl").write_text(json.dumps(request))
    options = ("--requests", tmp_path / "requests.jsonl", "--hparams", output, "--output", tmp_path / "out")
    edited = nse("edit", "--model", taught, *options, *moments, "--json")
    assert edited.code == 0, edited.err
    assert edited.json["hyper_parameters"]["layers"] == layers


def test_calibrate_shows_a_table(
    taught: Path, inputs: Path, corpus: Path, facts: Path, tmp_path: Path, nse: Nse
) -> None:
    files = (
        "--model",
        taught,
        "--facts",
        facts,
        "--corpus",
        corpus,
        "--output",
        tmp_path / "found.yaml",
    )
    done = nse("calibrate", *files, "--contexts", inputs / "contexts.json", *QUICK)
    assert done.code == 0, done.err
    assert "efficacy" in done.out
    assert "left out of the mean, as the facts have no questions for it: generalization, specificity" in done.out


def test_calibrate_in_a_workspace_takes_its_files_from_there(workspace: Workspace, nse: Nse) -> None:
    # the random model of the tests does not know the capitals of its suite
    done = nse("calibrate", "--output", "found.yaml", *QUICK)
    assert done.code == 2
    assert "kept for search" in done.error
    assert not (workspace.root / "found.yaml").exists()


def test_facts_are_needed(model: Path, corpus: Path, tmp_path: Path, nse: Nse) -> None:
    files = ("--model", model, "--corpus", corpus, "--output", tmp_path / "found.yaml")
    done = nse("calibrate", *files)
    assert (done.code, done.error) == (
        2,
        "error: there are no facts to measure on: give --facts, a suite or requests with target_true",
    )
