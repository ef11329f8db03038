"""`nse import` and `nse export gguf`: a model comes in as a GGUF file, is corrected, and goes out as one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.init import Setup, init
from flows.plan import run_round
from flows.session import Session
from flows.workspace import Workspace
from nse.command import collect
from nse.fingerprint import file_digest
from tests.gguf_models import tiny_llama, write_llama

Nse = Callable[..., Any]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    return write_llama(tiny_llama(folder / "model"), folder / "tiny.gguf")


@pytest.fixture
def corrected(
    original: Path, inputs: Path, corrections: Callable[..., Path], tmp_path: Path, monkeypatch, nse: Nse
) -> Workspace:
    """A workspace of the imported file, with one applied round of two corrections."""
    monkeypatch.setenv("NSE_KEYS", str(tmp_path / "keys"))
    monkeypatch.delenv("NSE_LEDGER_URL", raising=False)
    assert nse("import", original, "--output", tmp_path / "imported").code == 0
    files = Path(shutil.copytree(inputs, tmp_path / "inputs"))
    suite = json.loads((files / "suite.yaml").read_text())
    (files / "suite.yaml").write_text(json.dumps({k: v for k, v in suite.items() if k != "canaries"}))
    setup = Setup(
        model=tmp_path / "imported",
        name="tiny",
        hparams=files / "hparams.json",
        contexts=files / "contexts.json",
        suite=files / "suite.yaml",
        corpus=files / "corpus.txt",
        user="Ann Author <ann@example.org>",
    )
    workspace = init(tmp_path / "space", setup)
    collect(
        model=tmp_path / "imported",
        corpus=files / "corpus.txt",
        layers=(0, 1),
        output=workspace.second_moment,
    )
    monkeypatch.chdir(workspace.root)
    assert nse("ingest", corrections(("Alba", "Paris", "Rome"), ("Borea", "Tokyo", "Oslo"))).code == 0
    assert run_round(Session(workspace), by="Pia").changeset is not None
    assert nse("approve", "1", "--by", "Rex", "--reason", "checked").code == 0
    assert nse("apply", "1", "--by", "Rex").code == 0
    return workspace


def test_a_gguf_file_comes_in_is_corrected_and_goes_out(
    corrected: Workspace, original: Path, tmp_path: Path, nse: Nse
) -> None:
    found = nse("export", "gguf", tmp_path / "served.gguf", "--from", original, "--edited-type", "F32", "--json")
    assert found.code == 0, found.err
    record = found.json
    assert record["version"] == record["ledger_version"]
    assert (record["position"], record["asked"], record["same_answers"]) == (1, 2, 1)
    assert record["right"]["file"] == record["right"]["version"]
    assert record["original"]["sha256"] == file_digest(original)
    assert set(record["edited"].values()) == {"F32"}
    assert json.loads((tmp_path / "served.gguf.json").read_text()) == record
    told = nse("export", "gguf", tmp_path / "own.gguf", "--from", original, "--ask", "1")
    assert told.code == 0, told.err
    assert "2 tensors replaced" in told.out
    assert "packed as Q4_1" in told.out
    assert "of 1 corrections asked" in told.out
    again = nse("import", tmp_path / "served.gguf", "--output", tmp_path / "again", "--json")
    assert again.json["base"] == record["version"]  # in floats the file is that version to the bit


def test_what_is_wrong_is_said_in_one_line(corrected: Workspace, original: Path, tmp_path: Path, nse: Nse) -> None:
    other = write_llama(tiny_llama(tmp_path / "other", seed=1), tmp_path / "other.gguf")
    cases = {
        "is not the base model's": (tmp_path / "new.gguf", "--from", other),
        "the original file is it already": (tmp_path / "new.gguf", "--from", original, "--at", "base"),
        "is not a file": (tmp_path / "new.gguf", "--from", tmp_path / "no.gguf"),
        "exists": (original, "--from", original),
    }
    for told, arguments in cases.items():
        refused = nse("export", "gguf", *arguments)
        assert refused.code == 2, refused.err
        assert refused.error.startswith("error: ")
        assert told in refused.error
    assert not (tmp_path / "new.gguf").exists()


def test_import_says_what_was_made_and_refuses_in_one_line(original: Path, tmp_path: Path, nse: Nse) -> None:
    told = nse("import", original, "--output", tmp_path / "new", "--dtype", "bfloat16")
    assert told.code == 0, told.err
    assert "llama of 3 layers" in told.out
    assert "bfloat16" in told.out
    assert "cc0-1.0" in told.out
    refused = nse("import", original.parent / "model" / "tokenizer.json", "--output", tmp_path / "other")
    assert (refused.code, len(refused.err.strip().splitlines())) == (2, 1), refused.err
    assert "not a GGUF file" in refused.error
    assert nse("import", original, "--output", tmp_path / "new").code == 2
