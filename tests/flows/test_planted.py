"""A bad correction planted among good ones, on the shipped world with the shipped settings: found, named, the others proposed."""

from pathlib import Path

import pytest

from benchmarks.bisection import file, good_ones, night, workspace_in
from ledger.keys import KEYS
from nse.request import EditRequest

BAD = EditRequest("bad", "France", "The capital of {} is", "Lyon", "Paris", "capital")


@pytest.mark.long
def test_a_planted_correction_is_named_and_the_others_are_proposed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEYS, str(tmp_path / "keys"))
    workspace = workspace_in(tmp_path)
    good = good_ones(3, seed=0, bad=BAD)
    file(workspace, [good[0], BAD, *good[1:]])
    found = night(workspace)
    (fault,) = found["left_out"]
    assert (fault["subject"], fault["target_new"]) == ("France", "Lyon")
    assert fault["evidence"].startswith("canary_generation")
    assert found["proposed"] == 3
    assert found["gates_passed"]
    assert found["solves"] < 4
