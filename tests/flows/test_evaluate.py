"""`nse evaluate`: any version, by several suites, and what its gates say."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.explain import explain
from flows.plan import run_round
from flows.session import Session
from flows.workspace import Workspace
from nse.evaluation.run import ask_once
from tests.flows.rounds import CAPITAL, Spaces, file, history, spaces

Nse = Callable[..., Any]
__all__ = ["history", "spaces"]


@pytest.fixture
def suites(workspace: Workspace) -> tuple[Path, Path]:
    """One whose gates only warn, one that demands what no model does."""
    shared = {"facts": "facts.csv", "templates": "templates.yaml"}
    home = workspace.path(workspace.params.suite).parent
    lenient, strict = home / "lenient.yaml", home / "strict.yaml"
    warns = {"bound": ">= 2", "severity": "warn"}
    like_the_head = {"bound": ">= 0", "against": "head"}
    lenient.write_text(json.dumps({**shared, "gates": {"untouched": [warns, like_the_head]}}))
    strict.write_text(json.dumps({**shared, "keep": "facts.csv", "gates": {"kept_generation": ">= 2"}}))
    return lenient, strict


def test_a_gate_that_blocks_ends_it_with_1_if_that_is_asked_for_and_a_warning_does_not(
    suites: tuple[Path, Path], nse: Nse
) -> None:
    lenient, strict = suites
    assert nse("evaluate", "--suite", strict).code == 0
    both = ("evaluate", "--suite", lenient, "--suite", strict, "--gate")
    found = nse(*both, "--json")
    assert found.code == 1
    assert [(one["suite"], one["passed"]) for one in found.json["suites"]] == [
        ("lenient.yaml", True),
        ("strict.yaml", False),
    ]
    warned, relative = found.json["suites"][0]["gates"]
    assert (warned["passed"], warned["severity"]) == (False, "warn")
    assert relative["bound"] == relative["value"] == found.json["suites"][0]["metrics"]["untouched"]
    assert "no (warns)" in nse("evaluate", "--suite", lenient, "--gate").out


def test_a_bound_against_the_head_is_counted_from_the_version_in_force(
    edited: Workspace, suites: tuple[Path, Path], nse: Nse
) -> None:
    suites[0].write_text(
        'canaries: [{prompt: Today, contains: a}]\nkeep: k.json\ngates: {kept: {bound: "<= 0", against: head}}'
    )
    told = {"subject": "Alba", "prompt_template": "The capital of {} is", "target_new": "Rome", "target_true": "Paris"}
    (suites[0].parent / "k.json").write_text(json.dumps([told]))
    gates = {
        at: nse("evaluate", "--at", at, "--suite", suites[0], "--json").json["suites"][0]["gates"][0]
        for at in ("base", "head")
    }
    assert gates["base"]["bound"] == gates["head"]["value"]


@pytest.fixture
def judging(workspace: Workspace) -> Path:
    """A suite with gates on what only corrections give."""
    path = workspace.path(workspace.params.suite).parent / "judging.yaml"
    gates = {"efficacy_generation": ">= 2", "running_text": ">= 0", "retention": ">= 0", "same_subject": ">= 0"}
    shared = {"facts": "facts.csv", "templates": "templates.yaml", "misleading": ["running_text", "same_subject"]}
    path.write_text(json.dumps({**shared, "gates": gates}))
    return path


def test_gates_on_corrections_judge_those_in_force(edited: Workspace, judging: Path, nse: Nse) -> None:
    found = nse("evaluate", "--suite", judging, "--gate", "--json")
    assert found.code == 1
    (one,) = found.json["suites"]
    assert {gate["name"]: gate["passed"] for gate in one["gates"]} == {
        "efficacy_generation": False,
        "running_text": True,
        "retention": True,
    }
    assert one["not_measured"] == ["same_subject >= 0"]  # the suite knows one fact of each subject


def test_gates_that_there_is_nothing_to_ask_for_are_told(edited: Workspace, judging: Path, nse: Nse) -> None:
    found = nse("evaluate", "--at", "base", "--suite", judging, "--gate")
    assert found.code == 0
    assert found.out.count("not measured") == 4
    assert "not measured: retention >= 0: there is nothing to ask" in nse("show", "1").out  # of the first round


SAMPLED = {"facts": "facts.csv", "templates": "templates.yaml", "retention": 3}


def test_a_sample_of_the_past_corrections_is_asked_always_the_same(
    spaces: Spaces, nse: Nse, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, set[str]] = {}

    def ask(editable: Any, probes: Any, **more: Any) -> Any:
        for probe in probes:
            asked.setdefault(probe.kind, set()).add(probe.case_id)
        return ask_once(editable, probes, **more)

    monkeypatch.setattr("nse.evaluation.run.ask_once", ask)
    space = spaces.all_three
    path = space.path(space.params.suite).with_name("sampled.yaml")
    path.write_text(json.dumps({**SAMPLED, "gates": {"retention_generation_low": ">= 2", "efficacy": ">= 0"}}))
    found = nse("evaluate", "--suite", path, "--gate", "--json")
    assert found.code == 1
    (one,) = found.json["suites"]
    assert [gate["name"] for gate in one["gates"]] == ["retention_generation_low", "efficacy"]
    assert (one["metrics"]["retention_asked"], one["metrics"]["retention_all"]) == (3, 6)
    assert len(asked["retention"]) == 3
    assert asked["efficacy"] == asked["retention"]
    assert nse("evaluate", "--suite", path, "--json").json["suites"] == [one]


def test_a_round_asks_the_sample_that_the_suite_wants(spaces: Spaces) -> None:
    space = spaces.all_three
    space.path(space.params.suite).write_text(json.dumps({**SAMPLED, "gates": {"retention_low": ">= 2"}}))
    file(space, [f"Fara,capital,{CAPITAL},Paris,Delhi,gazette,Sue,moved,,"])
    made = run_round(Session(space), by="Pia").changeset
    assert made is not None
    asked = [case for case in made.cases if case.kind == "retention"]
    assert len({case.case_id for case in asked}) == 3
    metrics = {metric.name: metric.value for metric in made.metrics if metric.phase == "candidate"}
    assert (metrics["retention_asked"], metrics["retention_all"]) == (3, 6)
    (gate,) = made.gates
    assert not gate.passed
    (why,) = explain(made)
    assert {case.kind for case in why.cases} <= {"retention"}
    assert why.total == sum(case.probability < 0.5 for case in asked if case.phase == "candidate")


def test_a_gate_on_a_metric_that_a_task_does_not_have_names_those_that_it_has(
    workspace: Workspace, suites: tuple[Path, Path], nse: Nse, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {"harness.mine.acc": 0.5, "harness.mine.f1": 0.4}
    monkeypatch.setattr("flows.evidence.harness_metrics", lambda *_: scores)
    suites[0].write_text('{harness: {tasks: [mine]}, gates: {harness.mine.accuracy: ">= 0.1"}}')
    found = nse("evaluate", "--suite", suites[0], "--gate")
    assert found.code == 2
    told = "gate harness.mine.accuracy is on no metric of the tasks: they have harness.mine.acc, harness.mine.f1"
    assert told in found.error


def test_a_suite_that_is_missing_is_refused(workspace: Workspace, nse: Nse) -> None:
    found = nse("evaluate", "--suite", "none.yaml")
    assert found.code == 2
    assert "none.yaml cannot be read" in found.error
