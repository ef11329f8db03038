"""The adapter to lm-evaluation-harness, against it where it is installed and a stand-in for its API; the refusal without it."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from nse.architecture import EditableModel
from nse.errors import SuiteError
from nse.evaluation.harness import Harness, harness_metrics
from nse.evaluation.score import log_probabilities

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


TASK = """\
task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
target_delimiter: " "
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def test_a_task_file_with_local_data_is_asked_by_the_harness_itself(
    editable: EditableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    names, asked = ["Oslo", "Rome", "number 8"], ["Anna Berg lives in", "The home of Boris Cole is"]
    scores = log_probabilities(editable, [(prompt, name) for prompt in asked for name in names])
    best = [max(range(len(names)), key=lambda i: scores[start + i]) for start in (0, len(names))]
    rows = [{"question": prompt, "choices": names, "label": i} for prompt, i in zip(asked, best, strict=True)]
    rows.append(rows[0] | {"label": (best[0] + 1) % len(names)})  # of three answers two are the model's
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(TASK.format(data=tmp_path / "rows.jsonl"), encoding="utf-8")
    found = harness_metrics(editable, Harness(("mine",), tmp_path))
    assert found == {"harness.mine.acc": pytest.approx(2 / 3)}
