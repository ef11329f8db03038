"""The adapter to lm-evaluation-harness, against a stand-in for its documented Python API, and the refusal without it."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from nse.errors import SuiteError
from nse.evaluation.harness import Harness, harness_metrics

EDITABLE: Any = SimpleNamespace(model="model", tokenizer="tokenizer", memories=())


def stand_in(monkeypatch: pytest.MonkeyPatch, **contents: Any) -> None:
    for name in ("lm_eval", "lm_eval.models", "lm_eval.models.huggingface", "lm_eval.tasks"):
        module = ModuleType(name)
        for key, value in contents.items():
            setattr(module, key, value)
        monkeypatch.setitem(sys.modules, name, module)


def test_tasks_become_metrics_under_their_own_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    asked: dict[str, Any] = {}

    def simple_evaluate(**arguments: Any) -> dict[str, Any]:
        asked.update(arguments)
        scores = {
            "alias": "mine",
            "sample_len": 4,
            "acc,none": 0.75,
            "acc_stderr,none": "N/A",
            "exact_match,strict": 0.5,
        }
        return {"results": {"mine": scores}}

    stand_in(
        monkeypatch,
        simple_evaluate=simple_evaluate,
        HFLM=lambda **given: given,
        TaskManager=lambda **given: SimpleNamespace(all_tasks=["mine"], **given),
    )
    found = harness_metrics(EDITABLE, Harness(("mine",), tmp_path, 5))
    assert found == {"harness.mine.acc": 0.75, "harness.mine.exact_match-strict": 0.5}
    assert (asked["limit"], asked["tasks"]) == (5, ["mine"])
    assert asked["model"]["pretrained"] == "model"
    assert asked["task_manager"].include_path == str(tmp_path)
    assert asked["task_manager"].include_defaults is False  # thousands of files that nobody asked for
    with pytest.raises(SuiteError, match="no task 'other'"):
        harness_metrics(EDITABLE, Harness(("other",)))


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as if it were not installed
    with pytest.raises(SuiteError, match=r"install it with `pip install 'nse-pipeline\[harness\]'`"):
        harness_metrics(EDITABLE, Harness(("mine",)))


def test_a_memory_that_it_would_ask_past_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    remembering: Any = SimpleNamespace(memories=(SimpleNamespace(kind="serac"),))
    with pytest.raises(SuiteError, match="past the memory of serac: leave out `harness`"):
        harness_metrics(remembering, Harness(("mine",)))
