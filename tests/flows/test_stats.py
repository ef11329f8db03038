"""`nse stats`: what it shows, and in which type it computes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.workspace import Workspace

Nse = Callable[..., Any]


def test_stats_shows_how_c0_settles_and_warns_of_too_few_tokens(
    model: Path, inputs: Path, tmp_path: Path, nse: Nse
) -> None:
    options = ("stats", "--model", model, "--corpus", inputs / "corpus.txt", "--layers", "0-1", "--tokens")
    many = nse(*options, 600, "--output", tmp_path / "many")
    assert many.code == 0, many.err
    assert "change of C0 as the tokens double" in many.out
    assert "effective rank" in many.out
    assert "%" in many.out
    few = nse(*options, 20, "--output", tmp_path / "few")
    assert few.code == 0
    assert "warning: C0 is singular (20 tokens" in few.err
    assert nse(*options, 20, "--output", tmp_path / "few", "--json").json["warnings"]


def test_stats_in_a_workspace_computes_in_its_type_unless_told_otherwise(workspace: Workspace, nse: Nse) -> None:
    params = workspace.root / "params.yaml"
    params.write_text(params.read_text().replace("dtype: float32", "dtype: bfloat16"))
    told = nse("stats", "--output", workspace.params.method.second_moment, "--json")
    assert told.code == 0, told.err
    assert told.json["dtype"] == "bfloat16"
    other = nse("stats", "--output", workspace.params.method.second_moment, "--dtype", "float16", "--json")
    assert other.json["dtype"] == "float16"
    assert (
        nse("stats", "--model", workspace.model_path, "--output", workspace.root / "x", "--json").json["dtype"]
        == "float32"
    )
