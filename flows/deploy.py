"""The pipeline as Prefect flows: the same steps as the plain path, each a task that a person can read in Prefect's UI.

Import it late, and after `flows.environment.prepare`: Prefect takes seconds and reads its settings on import.
"""

from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect import serve as serve_deployments
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.deployments.runner import RunnerDeployment
from prefect.logging import get_run_logger
from prefect.schedules import Cron
from prefect.types.entrypoint import EntrypointType

from flows.apply import apply
from flows.consolidate import plan_consolidation, run_night
from flows.dependencies import Mode
from flows.ingest import ingest
from flows.progress import Progress, lines
from flows.report import report
from flows.revert import Query, Target, plan_revert
from flows.rows import read_sources
from flows.session import Session
from flows.workspace import Workspace, open_workspace
from ledger.views import show

RETRIES = {"store delta": (3, 10.0), "checkpoint": (3, 10.0)}
"""Times and seconds of delay, by step. Only what talks to a remote can come right by itself."""


def as_task(name: str, function: Any, *arguments: Any) -> Any:
    """Runs a step as a Prefect task; what goes in and comes out is digests, ids and paths."""
    times, delay = RETRIES.get(name, (0, 0.0))

    @task(
        name=name,
        task_run_name=name,
        retries=times,
        retry_delay_seconds=delay,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    def step(*given: Any) -> Any:
        return function(*given)

    return step(*arguments)


@flow(name="nse ingest", flow_run_name="ingest {path}")
def ingest_flow(workspace: str, path: str, submitter: str | None = None) -> dict[str, Any]:
    """Files corrections; a task of its own for reading, so that a bad file is seen there."""
    place = open_workspace(Path(workspace))

    def file_rows(text: str) -> dict[str, Any]:
        tokenizer = Session(place).tokenizer
        return ingest(place, read_sources(Path(text)), tokenizer=tokenizer, submitter=submitter).to_dict()

    found: dict[str, Any] = as_task("file corrections", file_rows, path)
    return found


@flow(name="nse nightly", flow_run_name="nightly round in {workspace}")
def nightly_flow(workspace: str, by: str, reason: str = "") -> dict[str, Any]:
    """Plans a round, or a consolidation that is due; ends with a proposed changeset, which a person approves or rejects."""
    session = Session(open_workspace(Path(workspace)))
    log = get_run_logger()
    planned = run_night(session, by=by, run_step=as_task, progress=_logged(), reason=reason, foretell=log.info)
    if planned.changeset is None:
        log.info("nothing pending")
        return {"changeset": None, "repeated": False}
    number = planned.changeset.number or 0
    _publish(session.workspace, number)
    return {"changeset": number, "repeated": planned.repeated}


@flow(name="nse apply", flow_run_name="apply changeset {changeset}")
def apply_flow(workspace: str, changeset: str, by: str) -> dict[str, Any]:
    """Puts an approved changeset in force."""
    session = Session(open_workspace(Path(workspace)))
    applied = apply(session, changeset, by=by, run_step=as_task)
    _publish(session.workspace, applied.changeset.number or 0)
    return {"changeset": applied.changeset.number, "already": applied.already}


@flow(name="nse revert", flow_run_name="revert {reference}{version}{source}{submitter}{since}{until}")
def revert_flow(
    workspace: str,
    by: str,
    reason: str,
    reference: str = "",
    version: str = "",
    source: str = "",
    submitter: str = "",
    since: str = "",
    until: str = "",
    mode: Mode = "drop",
) -> dict[str, Any]:
    """Plans the revert of a correction, a changeset, everything since a version, or all from a source, a person or a time."""
    session = Session(open_workspace(Path(workspace)))
    query = Query(source or None, submitter or None, since or None, until or None)
    changeset = plan_revert(
        session,
        Target(reference or None, version or None, query),
        by=by,
        reason=reason,
        mode=mode,
        run_step=as_task,
        tell=lambda entailed: get_run_logger().info("; ".join(entailed.lines())),
        progress=_logged(),
    )
    _publish(session.workspace, changeset.number or 0)
    return {"changeset": changeset.number}


@flow(name="nse consolidate", flow_run_name="consolidate {workspace}")
def consolidate_flow(workspace: str, by: str, reason: str = "") -> dict[str, Any]:
    """Plans one delta in place of all that are in force."""
    session = Session(open_workspace(Path(workspace)))
    planned = plan_consolidation(
        session,
        by=by,
        reason=reason,
        run_step=as_task,
        tell=lambda entailed: get_run_logger().info("; ".join(entailed.lines())),
        progress=_logged(),
    )
    assert planned.changeset is not None
    _publish(session.workspace, planned.changeset.number or 0)
    return {"changeset": planned.changeset.number, "repeated": planned.repeated}


def deployment(workspace: Workspace, *, by: str) -> RunnerDeployment:
    """The nightly flow on the schedule of `params.yaml`."""
    schedule = workspace.params.schedule
    made = nightly_flow.to_deployment(
        name=f"nightly-{workspace.model}",
        schedule=Cron(schedule.cron, timezone=schedule.timezone),
        parameters={"workspace": str(workspace.root), "by": by},
        concurrency_limit=1,
        entrypoint_type=EntrypointType.MODULE_PATH,  # the run may begin in any folder
    )
    assert isinstance(made, RunnerDeployment)  # to_deployment is awaitable only inside an event loop
    return made


def serve(workspace: Workspace, *, by: str) -> None:
    """Runs the nightly flow on its schedule until it is stopped."""
    serve_deployments(deployment(workspace, by=by), pause_on_shutdown=False, limit=1)


def _logged() -> Progress:
    return lines(get_run_logger().info)


def _publish(workspace: Workspace, number: int) -> None:
    with workspace.ledger().read() as work:
        view = show(work, f"#{number}")
    create_markdown_artifact(
        key=f"changeset-{number}", markdown=report(view), description=f"Changeset #{number}: {view.status}"
    )
