"""`nse bench` on the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.flows.conftest import CAPITALS

Nse = Callable[..., Any]


@pytest.fixture
def bench(model: Path, inputs: Path, tmp_path: Path, nse: Nse) -> Callable[..., Any]:
    """Runs `nse bench` on the facts of the small suite, in this process."""

    def run(*more: object) -> Any:
        return nse(
            *("bench", "--model", model, "--dataset", inputs / "suite.yaml", "--hparams", inputs / "hparams.json"),
            *("--corpus", inputs / "corpus.txt", "--contexts", inputs / "contexts.json", "--edits", len(CAPITALS)),
            *("--batch-size", 3, "--json", tmp_path / "record.json", "--in-process", *more),
        )

    return run


def test_bench_shows_tables_and_writes_record_and_plot(bench: Callable[..., Any], tmp_path: Path) -> None:
    done = bench("--method", "nse", "--orders", 1, "--plot", tmp_path / "plot.svg", "--checkpoints", 2)
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    assert set(record["methods"]) == {"base", "nse"}
    assert [c["edits"] for c in record["methods"]["nse"]["parts"][0]["checkpoints"]] == [3, 6]
    for word in ("by free generation", "efficacy", "s per edit", "base", "nse"):
        assert word in done.out
    assert "nse, order 1: done" in done.err
    assert (tmp_path / "plot.svg").read_text(encoding="utf-8").startswith("<?xml")
    again = bench("--method", "nse", "--orders", 1, "--checkpoints", 2)
    assert "nse, order 1: kept from an earlier run" in again.err
    assert json.loads((tmp_path / "record.json").read_text(encoding="utf-8")) == record


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--method", "nothing"), "method 'nothing' is unknown"),
        (("--method", "nse", "--trained", "nse"), "--trained 'nse' names no method and file"),
        (("--method", "nse", "--edits", 99), "usable cases, 99 edits are asked for"),
    ],
)
def test_bad_usage_of_bench_is_told_in_one_line(
    bench: Callable[..., Any], tmp_path: Path, arguments: tuple[object, ...], reason: str
) -> None:
    done = bench(*arguments)
    assert done.code == 2
    assert reason in done.err
    assert not (tmp_path / "record.json").exists()
