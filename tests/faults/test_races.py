"""Two people, or two machines, do the same thing at once: one of them does it, the other hears why not."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Outcome, Scene, Stage
from tests.flows.conftest import HEADER, TEMPLATES

LATER = f"Cyra,capital,{TEMPLATES[0]},Accra,Lima,gazette,Sue,moved,,"
DATABASES = ("SQLite", "PostgreSQL")


@pytest.fixture(params=DATABASES)
def stage(request: pytest.FixtureRequest, stages: dict[str, Stage]) -> Stage:
    return stages[request.param]


@pytest.fixture
def meeting(tmp_path: Path) -> dict[str, Any]:
    """Where two runs wait for each other."""
    (tmp_path / "meeting").mkdir()
    return {"folder": str(tmp_path / "meeting"), "members": 2}


def race(meeting: dict[str, Any], *entrants: tuple[Scene, dict[str, Any]]) -> list[Outcome]:
    """Runs both at once; the winner comes first."""
    jobs = [scene.job(race=meeting, **run) for scene, run in entrants]
    outcomes = entrants[0][0].zygote.run(*jobs)
    return sorted(outcomes, key=lambda outcome: outcome.code or 0)


def check(scene: Scene, flow: str, *, changesets: int, position: int) -> None:
    """The ledger verifies, and exactly one did it."""
    state = scene.run("state")
    assert state.code == 0, state.said + state.trace
    found = state.answer
    assert found["findings"] == []
    assert (len(found["changesets"]), found["position"]) == (changesets, position), flow


def test_of_two_planners_in_one_workspace_the_second_finds_nothing_left_to_plan(
    stage: Stage, meeting: dict[str, Any]
) -> None:
    scene = stage.scene("plan")
    found = race(meeting, (scene, {"action": "plan"}), (scene, {"action": "plan"}))
    assert [outcome.code for outcome in found] == [0, 0], found
    assert sorted(str(outcome.answer) for outcome in found) == ["1", "None"]
    check(scene, "plan", changesets=1, position=0)


@pytest.mark.parametrize("flow", ["plan", "revert", "consolidate"])
def test_of_two_planners_on_two_machines_one_proposes_and_the_other_hears_that(
    stage: Stage, meeting: dict[str, Any], flow: str
) -> None:
    scene = stage.scene(flow)
    fault = {"step": "propose changeset", "place": "before", "kind": "meet"}
    won, lost = race(meeting, *itertools.product((scene, scene.twin()), [{"action": flow, "fault": fault}]))
    assert (won.code, lost.code) == (0, 1), (won, lost)
    assert "meanwhile" in lost.error
    check(scene, flow, changesets=won.answer, position=won.answer - 1)


def test_of_two_consolidations_in_one_workspace_the_second_finds_the_proposal_of_the_first(
    stage: Stage, meeting: dict[str, Any]
) -> None:
    scene = stage.scene("consolidate")
    first, second = race(meeting, (scene, {"action": "consolidate"}), (scene, {"action": "consolidate"}))
    assert (first.code, first.answer) == (0, 3), first
    if second.code:  # a slow machine: it does not wait for ever
        assert "Pia (`nse consolidate`" in second.error
    else:
        assert second.answer == 3
    check(scene, "consolidate", changesets=3, position=2)


def test_of_a_consolidation_and_a_round_on_one_head_both_are_proposed_and_one_is_applied(
    stage: Stage, meeting: dict[str, Any]
) -> None:
    scene = stage.scene("consolidate")
    (scene.place / "corrections.csv").write_text("\n".join([HEADER, LATER]) + "\n", encoding="utf-8")
    assert scene.command("ingest", str(scene.place / "corrections.csv")).code == 0
    found = [scene.run(action) for action in ("consolidate", "plan")]
    assert [(outcome.code, outcome.answer) for outcome in found] == [(0, 3), (0, 4)], found
    for number in (3, 4):
        assert scene.command("approve", str(number), "--by", "Rex", "--reason", "checked").code == 0
    runs = [{"action": "apply", "changeset": f"#{number}"} for number in (3, 4)]
    won, lost = race(meeting, (scene, runs[0]), (scene, runs[1]))
    assert (won.code, lost.code) == (0, 1), (won, lost)
    assert "plan" in lost.error
    check(scene, "apply", changesets=4, position=3)


def test_of_two_approvers_one_approves_and_the_other_hears_who_did(stage: Stage, meeting: dict[str, Any]) -> None:
    scene = stage.scene("approve")
    runs = [{"action": "command", "arguments": ["approve", "1", "--by", by, "-m", "ok"]} for by in ("Rex", "Rob")]
    won, lost = race(meeting, (scene, runs[0]), (scene, runs[1]))
    assert (won.code, lost.code) == (0, 1), (won, lost)
    assert "changeset #1 was approved by R" in lost.said
    check(scene, "approve", changesets=1, position=0)


@pytest.mark.parametrize("machines", [1, 2])
def test_of_two_appliers_one_moves_the_head_and_the_other_hears_that(
    stage: Stage, meeting: dict[str, Any], machines: int
) -> None:
    scene = stage.scene("apply")
    run: dict[str, Any] = {"action": "apply"}
    if machines == 2:
        run["fault"] = {"step": "move head", "place": "before", "kind": "meet"}
    won, lost = race(meeting, (scene, run), (scene.twin() if machines == 2 else scene, {**run, "by": "Rob"}))
    assert won.code == 0, (won, lost)
    assert (lost.code, "already" in (lost.answer or {})) in ((1, False), (0, True)), (won, lost)
    if lost.code:
        assert "changeset #1" in lost.error or "the head of tiny" in lost.error
    else:
        assert sorted([won.answer["already"], lost.answer["already"]]) == [False, True]
    check(scene, "apply", changesets=1, position=1)
