"""The round: what it chooses, that it is repeatable, what a failed gate does, what a crash leaves behind."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.errors import Refused
from flows.plan import Round, run_round
from flows.session import Session
from flows.workspace import Workspace

Nse = Callable[..., Any]
ROOT = Path(__file__).parents[2]
KILLED = """if True:
    import os, signal
    from flows.plan import Round, run_round
    from flows.session import Session
    from flows.workspace import open_workspace
    Round.propose = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    run_round(Session(open_workspace()), by="Pia")
"""


def rewrite_suite(workspace: Workspace, old: str, new: str) -> None:
    path = workspace.path(workspace.params.suite)
    path.write_text(path.read_text().replace(old, new))


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_nothing_pending_is_no_failure(workspace: Workspace, nse: Nse) -> None:
    found = nse("plan", "--by", "Pia")
    assert (found.code, found.out.strip()) == (0, "nothing pending")


def test_the_same_inputs_give_the_same_delta(workspace: Workspace, corrections: Callable[..., Path], nse: Nse) -> None:
    nse("ingest", corrections(("Alba", "Paris", "Rome"), ("Borea", "Tokyo", "Oslo")))
    twin = workspace.root.with_name("twin")
    shutil.copytree(workspace.root, twin, symlinks=True)
    first = nse("plan", "--by", "Pia", "--json").json["changeset"]
    second = nse("plan", "--by", "Pia", "--json", "--workspace", twin).json["changeset"]
    assert first["changes"] == second["changes"]
    assert first["candidate_version"] == second["candidate_version"]
    assert first["provenance"] == second["provenance"]
    assert first["metrics"] == second["metrics"]


def test_values_computed_ahead_give_the_same_delta(
    workspace: Workspace, corrections: Callable[..., Path], nse: Nse
) -> None:
    nse("ingest", corrections(("Alba", "Paris", "Rome")))
    twin = workspace.root.with_name("twin")
    shutil.copytree(workspace.root, twin, symlinks=True)
    assert nse("values", "--json").json == {"values": 1}
    ahead = nse("plan", "--by", "Pia", "--json").json["changeset"]
    at_night = nse("plan", "--by", "Pia", "--json", "--workspace", twin).json["changeset"]
    assert ahead["changes"] == at_night["changes"]


def test_a_round_takes_no_more_than_its_batch(workspace: Workspace, corrections: Callable[..., Path], nse: Nse) -> None:
    params = workspace.root / "params.yaml"
    params.write_text(params.read_text().replace("batch_size: 50", "batch_size: 1"))
    nse("ingest", corrections(("Alba", "Paris", "Rome"), ("Borea", "Tokyo", "Oslo")))
    planned = nse("plan", "--by", "Pia", "--json").json
    assert [belief["subject"] for belief in planned["beliefs"]] == ["Alba"]
    assert nse("status", "--json").json["corrections"] == {"proposed": 1, "pending": 1}


def test_a_skipped_correction_is_reported_and_not_written(
    workspace: Workspace, corrections: Callable[..., Path], nse: Nse
) -> None:
    hparams = workspace.root / "hparams.json"
    hparams.write_text(hparams.read_text().replace("}", ', "upper_bound": 1e-9}'))
    nse("ingest", corrections(("Alba", "Paris", "Rome")))
    changeset = nse("plan", "--by", "Pia", "--json").json["changeset"]
    assert [result["status"] for result in changeset["results"]] == ["skipped"]
    assert changeset["changes"] == []
    assert changeset["candidate_version"] == changeset["parent_version"]


def test_a_failed_gate_ends_with_1_and_cannot_be_approved(
    workspace: Workspace, corrections: Callable[..., Path], nse: Nse
) -> None:
    rewrite_suite(workspace, '"efficacy": ">= 0.0"', '"efficacy": ">= 1.1"')
    nse("ingest", corrections(("Alba", "Paris", "Rome")))
    failed = nse("plan", "--by", "Pia", "--json")
    assert (failed.code, failed.json["status"]) == (1, "gate-failed")
    assert nse("approve", "1", "--by", "Rex", "--reason", "looks fine").code == 1
    again = nse("plan", "--by", "Pia", "--json")
    assert (again.code, again.json["changeset"]["number"]) == (1, 1)
    assert "nothing has changed since #1 failed its gates" in again.err
    rewrite_suite(workspace, ">= 1.1", ">= 0.0")
    mended = nse("plan", "--by", "Pia", "--json")
    assert (mended.code, mended.json["changeset"]["number"]) == (0, 2)


def test_nothing_is_proposed_when_the_head_moved_meanwhile(
    workspace: Workspace, corrections: Callable[..., Path], nse: Nse
) -> None:
    nse("ingest", corrections(("Alba", "Paris", "Rome")))
    steps = Round(Session(workspace), by="Pia")
    plan = steps.choose()
    assert plan is not None
    steps.values(plan)
    steps.edit(plan)
    steps.evaluate(plan)
    stored = steps.store(plan)
    shutil.copytree(workspace.state / "drafts" / plan, workspace.root / "kept")
    nse("plan", "--by", "Pia")
    nse("approve", "1", "--by", "Rex", "--reason", "checked")
    nse("apply", "1", "--by", "Rex")
    shutil.copytree(workspace.root / "kept", workspace.state / "drafts" / plan)  # reconciled away by the apply
    with pytest.raises(Refused, match="the head moved"):
        steps.propose(plan, stored)
    assert nse("verify").code == 0


def test_a_kill_between_the_push_and_the_ledger_loses_nothing(
    workspace: Workspace, corrections: Callable[..., Path], nse: Nse
) -> None:
    nse("ingest", corrections(("Alba", "Paris", "Rome")))
    killed = subprocess.run([sys.executable, "-c", KILLED], env=environment(), capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list((workspace.root / "artifacts/deltas").glob("*.safetensors"))
    assert nse("status", "--json").json["corrections"] == {"pending": 1}
    assert nse("verify").code == 0
    planned = nse("plan", "--by", "Pia", "--json").json
    assert (planned["status"], planned["changeset"]["number"]) == ("proposed", 1)
    assert len(list((workspace.root / "artifacts/deltas").glob("*.safetensors"))) == 1


def test_a_second_round_keeps_the_first_and_supersedes_what_it_says(
    edited: Workspace, corrections: Callable[..., Path], nse: Nse
) -> None:
    row = "Alba,capital,The capital of {} is,Berne,Paris,gazette,Sue,moved again,,yes"
    nse("ingest", corrections(row, ("Cyra", "Accra", "Lima"), name="later.csv"))
    planned = run_round(Session(edited), by="Pia").changeset
    assert planned is not None
    assert len(planned.changes) == 1
    kept = {case.case_id for case in planned.cases if case.kind == "retention"}
    with edited.ledger().read() as work:
        borea = next(c.id for c in work.corrections("tiny") if c.subject == "Borea")
    assert kept == {borea}
    nse("approve", "2", "--by", "Rex", "--reason", "checked")
    nse("apply", "2", "--by", "Rex")
    assert [entry["status"] for entry in nse("blame", "alba", "--json").json] == ["superseded", "active"]
    nse("revert", "#2", "--by", "Pia", "--reason", "wrong")
    nse("approve", "3", "--by", "Rex", "--reason", "checked")
    back = nse("apply", "3", "--by", "Rex", "--json").json["applied"]["version"]
    with edited.ledger().read() as work:
        assert back == work.heads("tiny")[1].version
    assert [entry["in_force"] for entry in nse("blame", "alba", "--json").json] == [True, False]


def test_two_apply_at_once_leave_one_head(edited: Workspace, corrections: Callable[..., Path], nse: Nse) -> None:
    nse("ingest", corrections(("Cyra", "Accra", "Lima"), name="later.csv"))
    nse("plan", "--by", "Pia")
    nse("approve", "2", "--by", "Rex", "--reason", "checked")
    command = [sys.executable, "-m", "flows.cli", "apply", "2", "--by"]
    both = [
        subprocess.Popen([*command, name], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for name in ("Rex", "Tim")
    ]
    said = [process.communicate(timeout=120) for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes[0] == 0, said
    loser = next((err for process, (_, err) in zip(both, said, strict=True) if process.returncode), "")
    # one that begins after the other has ended finds it applied; a slow one that holds the lock is named
    assert codes == [0, 0] or "meanwhile" in loser or "is writing to this workspace" in loser, said
    assert nse("status", "--json").json["head"]["position"] == 2
    assert nse("verify").code == 0
    assert nse("apply", "2", "--by", "Rex", "--json").json["already"] is True


def test_the_second_of_two_changesets_on_one_head_is_stale(
    workspace: Workspace, corrections: Callable[..., Path], nse: Nse
) -> None:
    for number, row in ((1, ("Alba", "Paris", "Rome")), (2, ("Borea", "Tokyo", "Oslo"))):
        nse("ingest", corrections(row))
        nse("plan", "--by", "Pia")
        nse("approve", number, "--by", "Rex", "--reason", "checked")
    assert nse("apply", "--by", "Rex").code == 2  # which one?
    assert nse("apply", "2", "--by", "Rex").code == 0
    late = nse("apply", "1", "--by", "Rex")
    assert late.code == 1
    assert "changeset #1 is stale" in late.error
    replanned = nse("plan", "--by", "Pia", "--json").json
    assert [belief["subject"] for belief in replanned["beliefs"]] == ["Alba"]


def test_a_second_writer_is_told_who_writes(workspace: Workspace) -> None:
    from flows.errors import FlowError
    from flows.lock import writer

    with (
        writer(workspace, "plan", "Pia"),
        pytest.raises(FlowError, match=r"Pia \(`nse plan`, process \d+"),
        writer(workspace, "apply", "Rex", patience=0),
    ):
        pass


def test_how_long_it_will_take_is_told_before_it_starts(
    workspace: Workspace, corrections: Callable[..., Path], nse: Nse
) -> None:
    nse("ingest", corrections(("Alba", "Paris", "Rome"), ("Borea", "Tokyo", "Oslo")))
    lines = nse("plan", "--by", "Pia").err.splitlines()
    told = next(line for line in lines if line.startswith("expected: values "))
    assert told.endswith(" in all")
    assert ", edit " in told
    assert ", evaluation " in told


def test_what_is_in_the_caches_is_not_expected_again(
    workspace: Workspace, corrections: Callable[..., Path], nse: Nse
) -> None:
    nse("ingest", corrections(("Alba", "Paris", "Rome")))
    nse("values")
    steps = Round(Session(workspace), by="Pia")
    plan = steps.choose()
    assert plan is not None
    before = steps.expected(plan)
    steps.edit(plan)
    steps.evaluate(plan)
    assert before["values"] == 0 < before["evaluation"]
    assert steps.expected(plan)["evaluation"] < before["evaluation"]
