"""What a child of the zygote does: a flow with a fault in it, a command, or the examination of what is left.

A run is a dict: `workspace`, `ledger` (its URL), `action`, `out` (a folder for what it says) and, if something is to go wrong,
`fault`: what (`kind`), in which step of the flow (`step`), and where there (`place`: before, after, or one of `_PLACES`).
"""

import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any

import dvc.repo
import dvc.scm
import psycopg
import sqlalchemy.dialects.postgresql.psycopg
import sqlalchemy.dialects.sqlite  # noqa: F401

import flows.checkpoints
import flows.session
import ledger.artifacts
from flows.apply import apply
from flows.audit import audit
from flows.cli import exit_code, main
from flows.consolidate import plan_consolidation
from flows.errors import FlowError
from flows.plan import run_round
from flows.reconcile import repairs
from flows.revert import Target, plan_revert
from flows.session import Session
from flows.workspace import Workspace, open_workspace, utc_now
from ledger.artifacts import DvcStore
from ledger.errors import LedgerError
from ledger.status import correction_statuses, read_state
from ledger.unit_of_work import UnitOfWork
from nse.errors import NseError

Run = dict[str, Any]
PLANNER, REVIEWER = "Pia", "Rex"


def warm(root: str) -> None:
    """Loads the model that all scenes share, and what DVC imports late, before any fork."""
    flows.session.load_model = cache(flows.session.load_model)
    assert Session(open_workspace(Path(root))).editable
    with dvc.repo.Repo(root) as repo:
        assert repo.index.outs_graph is not None
        assert repo.cloud.get_remote_odb() is not None


def perform(run: Run) -> int:
    """Does what a run says, in its workspace; returns the exit code that `nse` would have."""
    os.environ.update(run.get("environment", {}))
    os.environ["NSE_LEDGER_URL"] = run["ledger"]
    os.chdir(run["workspace"])
    workspace = open_workspace(Path(run["workspace"]))
    back = timedelta(seconds=run.get("clock", 0))
    workspace = Workspace(workspace.root, workspace.params, clock=lambda: utc_now() + back)
    if "race" in run and "fault" not in run:
        _meet(run)
    try:
        answer = ACTIONS[run["action"]](workspace, run)
    except (NseError, LedgerError, FlowError, OSError) as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        sys.stdout.write(f"error: {error}\n")
        sys.stdout.flush()
        return 2 if isinstance(error, OSError) else exit_code(error)
    (Path(run["out"]) / "answer.json").write_text(json.dumps(answer))
    return 0


# --- flows


def _plan(workspace: Workspace, run: Run) -> Any:
    planned = run_round(Session(workspace), by=PLANNER, run_step=_stepper(workspace, run))
    return planned.changeset and planned.changeset.number


def _apply(workspace: Workspace, run: Run) -> Any:
    applied = apply(
        Session(workspace), run.get("changeset", "#1"), by=run.get("by", REVIEWER), run_step=_stepper(workspace, run)
    )
    return {"position": applied.head.position, "already": applied.already}


def _revert(workspace: Workspace, run: Run) -> Any:
    with workspace.ledger().read() as work:
        first = work.corrections(workspace.model)[0].id
    step = _stepper(workspace, run)
    return plan_revert(Session(workspace), Target(first), by=PLANNER, reason="wrong", run_step=step).number


def _consolidate(workspace: Workspace, run: Run) -> Any:
    planned = plan_consolidation(Session(workspace), by=PLANNER, run_step=_stepper(workspace, run))
    return planned.changeset and planned.changeset.number


def _command(workspace: Workspace, run: Run) -> Any:
    """A command of `nse`, as a person gives it."""
    try:
        main(run["arguments"])
    except SystemExit as stopped:
        if stopped.code:
            raise FlowErrorOfCommand(int(stopped.code)) from stopped
    return None


class FlowErrorOfCommand(FlowError):
    """A command that said itself what is wrong."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit {code}")
        self.exit_code = code


# --- what is left


def _examine(workspace: Workspace, run: Run) -> Any:
    """After a fault: what `verify` finds, what `reconcile` does, and what it does when called again."""
    return {
        "findings": [f"{f.where}: {f.problem}" for f in audit(Session(workspace), weights=False)],
        "reconcile": [str(repair) for repair in repairs(workspace, thorough=True)],
        "again": [str(repair) for repair in repairs(workspace, thorough=True)],
    }


def _reconcile(workspace: Workspace, run: Run) -> Any:
    return {"reconcile": [str(repair) for repair in repairs(workspace, thorough=True)]}


def _finish(workspace: Workspace, run: Run) -> Any:
    """The flow again, and all that has to come out the same, whatever went wrong before."""
    ACTIONS[run["flow"]](workspace, run)
    repairs(workspace)  # what is left of a round that ended is not looked at
    return _state(workspace, run)


def _state(workspace: Workspace, run: Run) -> Any:
    """What `verify` finds, what the ledger says, and which files there are."""
    with workspace.ledger().read() as work:
        state = read_state(work, workspace.model)
        statuses = correction_statuses(state)
        waiting = work.waiting(workspace.model)
        events = work.log.size()
    status = subprocess.run(["git", "status", "--porcelain"], cwd=workspace.root, capture_output=True, check=True)
    return {
        "findings": [f"{f.where}: {f.problem}" for f in audit(Session(workspace))],
        "version": state.head.version,
        "position": state.head.position,
        "corrections": {f"{c.subject} {c.relation} {c.target_new}": statuses[i] for i, c in state.corrections.items()},
        "changesets": [[c.kind, c.candidate_version, state.status(c)] for c in state.changesets.values()],
        "waiting": len(waiting),
        "events": events,
        "deltas": sorted(path.name for path in (workspace.root / "artifacts" / "deltas").glob("*")),
        "drafts": sorted(path.name for path in (workspace.state / "drafts").glob("*")),
        "uncommitted": status.stdout.decode(),
    }


ACTIONS: dict[str, Callable[[Workspace, Run], Any]] = {
    "plan": _plan,
    "apply": _apply,
    "revert": _revert,
    "consolidate": _consolidate,
    "command": _command,
    "reconcile": _reconcile,
    "examine": _examine,
    "finish": _finish,
    "state": _state,
}


# --- faults


def _stepper(workspace: Workspace, run: Run) -> Callable[..., Any]:
    """Runs the steps of a flow and makes the fault happen on the way."""
    fault = run.get("fault", {})

    def run_step(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        if fault.get("step") != name:
            return function(*arguments)
        strike = partial(FAULTS[fault["kind"]], workspace, run)
        if fault["place"] == "before":
            strike()
        elif fault["place"] != "after":
            _PLACES[fault["place"]](strike)
        result = function(*arguments)
        if fault["place"] == "after":
            strike()
        return result

    return run_step


def _kill(_workspace: Workspace, _run: Run) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _no_room(_workspace: Workspace, _run: Run) -> None:
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY)
    )  # no file may grow any more: as on a full disk


def _read_only(workspace: Workspace, run: Run) -> None:
    if not run["ledger"].startswith("sqlite"):
        with psycopg.connect(run["ledger"], autocommit=True) as connection:
            connection.execute("ALTER DATABASE " + connection.info.dbname + " SET default_transaction_read_only = on")
        return
    Path(run["ledger"].removeprefix("sqlite:///")).chmod(0o444)
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if not os.getuid():  # root gives up its capabilities, by which it could write all the same
        assert ctypes.CDLL(None, use_errno=True).capset(header, none) == 0


def _disconnect(_workspace: Workspace, run: Run) -> None:
    others = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with psycopg.connect(run["ledger"], autocommit=True) as connection:
        connection.execute(others)


def _meet(run: Run) -> None:
    """Waits until the others of the race are here too, or are not coming."""
    folder, members = Path(run["race"]["folder"]), run["race"]["members"]
    (folder / str(os.getpid())).touch()
    until = time.monotonic() + 20
    while len(list(folder.iterdir())) < members and time.monotonic() < until:
        time.sleep(0.001)


FAULTS: dict[str, Callable[[Workspace, Run], None]] = {
    "kill": _kill,
    "no room": _no_room,
    "read-only": _read_only,
    "disconnect": _disconnect,
    "meet": lambda _, run: _meet(run),
}


def _after(owner: Any, name: str, strike: Callable[[], None]) -> None:
    original = getattr(owner, name)

    def struck(*arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)
        strike()
        return result

    setattr(owner, name, struck)


def _before(owner: Any, name: str, strike: Callable[[], None]) -> None:
    original = getattr(owner, name)

    def struck(*arguments: Any, **named: Any) -> Any:
        strike()
        return original(*arguments, **named)

    setattr(owner, name, struck)


def _in_the_copy(strike: Callable[[], None]) -> None:
    def half(read: Any, write: Any) -> None:
        write.write(read.read(100))
        write.flush()
        strike()
        shutil.copyfileobj(read, write)

    ledger.artifacts.shutil = type("Shutil", (), {"copyfileobj": staticmethod(half)})  # type: ignore[attr-defined]


def _in_the_draft(strike: Callable[[], None]) -> None:
    original = Path.replace

    def struck(self: Path, target: Path) -> Any:
        if "drafts" in self.parts:
            strike()
        return original(self, target)

    Path.replace = struck  # type: ignore[method-assign, assignment]


_PLACES: dict[str, Callable[[Callable[[], None]], None]] = {
    "while its draft is written": _in_the_draft,
    "while it is copied": _in_the_copy,
    "after the copy": partial(_after, ledger.artifacts, "_copy"),
    "after dvc add": partial(_after, dvc.repo.Repo, "add"),
    "after git commit": partial(_after, DvcStore, "_commit"),
    "after dvc push": partial(_after, dvc.repo.Repo, "push"),
    "before git commit": partial(_before, flows.checkpoints, "commit"),
    "before the commit": partial(_after, UnitOfWork, "close"),
}
