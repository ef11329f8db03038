"""A process that dies between storing an artifact and recording it leaves nothing that the next run cannot finish."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ledger import audit
from ledger.artifacts import DvcStore
from ledger.records import ActiveDelta

PLANNER = """if True:
    import os, signal, sys
    from pathlib import Path
    from ledger.artifacts import DvcStore
    from ledger.records import ActiveDelta, CaseResult, Changeset
    from ledger.unit_of_work import open_ledger
    workspace, path, delta, where = sys.argv[1:]
    ledger = open_ledger("sqlite:///" + path)
    stored = DvcStore(Path(workspace)).put(Path(delta), "artifacts/deltas")
    if where == "after the push":
        os.kill(os.getpid(), signal.SIGKILL)
    with ledger.begin() as work:
        head, correction = work.head("demo"), work.corrections("demo")[0]
        work.add_changeset(Changeset(
            model="demo", kind="edit", parent_version=head.version, candidate_version="c0" * 32,
            base_digest="ba5e" * 16,
            active=(ActiveDelta(stored.sha256, stored.path),), results=(CaseResult(correction.id, "edited", 9, 1),),
            reason="nightly", planned_by="nse plan", planned_at="2026-11-21T09:00:00Z"))
        if where == "before the commit":
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("where", ["after the push", "before the commit"])
def test_a_kill_between_the_push_and_the_commit_of_the_ledger_loses_nothing(
    scenario, workspace: Path, tmp_path: Path, where: str, run_script: Callable[..., "subprocess.Popen[str]"]
) -> None:
    correction = scenario.file()
    delta = tmp_path / "delta"
    delta.write_bytes(b"factors")
    arguments = (str(workspace), str(scenario.path), str(delta))
    killed = run_script(PLANNER, *arguments, where)
    _, errors = killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL, errors
    store = DvcStore(workspace)
    with scenario.ledger.read() as work:
        assert work.changesets("demo") == []
    assert audit.verify(scenario.ledger, store) == []

    again = run_script(PLANNER, *arguments, "nowhere")
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    with scenario.ledger.read() as work:
        [changeset] = work.changesets("demo")
    assert (changeset.number, scenario.status(correction)) == (1, "proposed")
    [active] = changeset.active
    assert isinstance(active, ActiveDelta)
    assert store.fetch(active.path, active.sha256).read_bytes() == b"factors"
    assert audit.verify(scenario.ledger, store) == []
