"""The benchmarks: what they import, that all are in the list, and that the oracle and we are given the same work."""

import argparse
import importlib
import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import __main__ as all_of_them
from benchmarks import stream, table, values
from nse.architecture import EditableModel
from nse.hyperparameters import Hyperparameters
from nse.request import EditRequest
from tests.nse.conftest import CONTEXTS, corpus_lines
from tests.nse.test_imports import imported

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
MODULES = sorted(path.stem for path in FOLDER.glob("*.py"))
ALLOWED = {"nse", "benchmarks", "tests", "torch", "transformers", "tokenizers", "safetensors", "numpy", "rich", "yaml"}
STANDARD = {
    *(
        "argparse",
        "collections",
        "csv",
        "dataclasses",
        "functools",
        "hashlib",
        "importlib",
        "itertools",
        "json",
        "math",
        "re",
    ),
    *("os", "pathlib", "platform", "random", "resource", "shutil", "statistics", "subprocess", "sys", "tempfile"),
    *("contextlib", "time", "typing"),
}


MORE = {
    "nights": {"matplotlib"},
    "collapse": {"matplotlib"},
    "calibration": {"matplotlib"},
    "ledger": {"ledger", "sqlalchemy", "cryptography"},
    "methods": {"flows", "transformers", "demo"},
    "pararel": {"flows"},
    "tasks": {"demo"},
    "bisection": {"flows", "ledger"},
}


@pytest.mark.parametrize("module", MODULES)
def test_a_benchmark_needs_nse_and_its_libraries_alone(module: str) -> None:
    found = {name.split(".")[0] for name in imported((FOLDER / f"{module}.py").read_text(encoding="utf-8"))}
    assert found <= ALLOWED | STANDARD | MORE.get(module, set())


def test_what_they_take_from_the_tests_needs_nse_alone() -> None:
    found = {name.split(".")[0] for name in imported((ROOT / "tests/nse/oracle.py").read_text(encoding="utf-8"))}
    assert found <= {"nse", "torch"} | STANDARD | {"copy"}


def test_every_short_run_is_of_a_module_that_knows_its_arguments() -> None:
    assert {"values", "stream", "nights"} <= set(all_of_them.existing())
    for name in all_of_them.existing():
        source = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
        line = all_of_them.command(name, "cpu", Path("folder"))
        assert line[1:3] == ["-m", f"benchmarks.{name}"]
        for argument in (a for a in line[3:] if a.startswith("--")):
            assert f'"{argument}"' in source, f"benchmarks.{name} has no {argument}"
        assert callable(importlib.import_module(f"benchmarks.{name}").main)


@pytest.mark.parametrize("variant", list(values.VARIANTS))
def test_every_way_to_z_gives_the_same_one(
    editable: EditableModel,
    folder: Path,
    requests: list[EditRequest],
    settings: Hyperparameters,
    variant: str,
    tmp_path: Path,
) -> None:
    job = {
        "variant": variant,
        "model": str(folder),
        "requests": [asdict(r) for r in requests[:2]],
        "contexts": CONTEXTS,
        "settings": settings.to_dict(),
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "memory": 64 if variant == "ours" else None,
    }
    record = values.run_variant(json.loads(json.dumps(job)), tmp_path / "z.safetensors")
    z = load_file(tmp_path / "z.safetensors")["z"]
    expected = values.compute(editable, job | {"variant": "oracle"}, requests[:2], CONTEXTS, settings)
    assert record["facts"] == len(z) == 2
    assert record["peak_bytes"] >= record["peak_bytes_before"] > 0
    assert float((z - expected).norm() / expected.norm()) < 1e-3


def test_the_facts_of_the_slow_ways_are_spread_over_the_lengths() -> None:
    requests = [EditRequest(str(i), "x" * i, "{} is", "y") for i in (5, 1, 9, 3, 7, 2)]
    assert [len(requests[i].subject) for i in values.spread(requests, 3)] == [2, 5, 9]
    assert sorted(values.spread(requests, 10)) == list(range(6))


def test_the_corrections_of_the_demo_are_sound_and_of_as_many_subjects() -> None:
    requests = values.corrections(64)
    assert len({r.subject.casefold() for r in requests}) == len(requests) == 64
    assert not any(r.problems() for r in requests)


def test_the_machine_says_what_computes() -> None:
    where = table.machine(table.device_of("cpu"))
    assert where["threads"] == torch.get_num_threads()
    assert where["torch"] == torch.__version__
    assert where["accelerator"] is None


def test_a_stream_gives_the_oracles_weights_and_the_same_bytes_twice(
    folder: Path, requests: list[EditRequest], settings: Hyperparameters, tmp_path: Path
) -> None:
    (tmp_path / "requests.jsonl").write_text("".join(json.dumps(asdict(r)) + "\n" for r in requests), encoding="utf-8")
    (tmp_path / "corpus.txt").write_text("\n".join(corpus_lines()) + "\n", encoding="utf-8")
    (tmp_path / "contexts.json").write_text(json.dumps(CONTEXTS), encoding="utf-8")
    plain = {k: v for k, v in settings.to_dict().items() if v != float("inf")}
    (tmp_path / "hparams.json").write_text(json.dumps(plain), encoding="utf-8")
    options = argparse.Namespace(
        model=folder,
        requests=tmp_path / "requests.jsonl",
        corpus=tmp_path / "corpus.txt",
        contexts=tmp_path / "contexts.json",
        hparams=tmp_path / "hparams.json",
        facts=4,
        batch=2,
        oracle_facts=None,
        seed=0,
    )
    (tmp_path / "run").mkdir()
    record = stream.run(options, tmp_path / "run")
    assert record["same_bytes"] == {
        "delta.safetensors": True,
        "values.safetensors": True,
        "report.json less seconds": True,
    }
    assert record["facts"] == record["oracle_facts"] == 4
    assert record["z_difference_median"] < 1e-3
    assert record["ours"] == record["oracle"]
    assert set(record["ours"]) == {"efficacy", "efficacy_accuracy", "efficacy_generation"}
