"""The same steps through Prefect: readable tasks, an artifact with the report, a schedule."""

import logging
import os
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.environment import prepare
from flows.workspace import Workspace

Nse = Callable[..., Any]


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A real Prefect server with a database of its own."""
    prepare(tmp_path_factory.mktemp("prefect"))
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("prefect")]:
        logging.getLogger(name).handlers.clear()  # they write to what pytest has closed when the server stops at exit


@pytest.mark.slow
def test_a_night_through_prefect_leaves_readable_tasks_and_the_report(
    prefect: None, workspace: Workspace, corrections: Callable[..., Path], nse: Nse
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    rows = corrections(("Alba", "Paris", "Rome"), ("Borea", "Tokyo", "Oslo"))
    assert nse("ingest", rows, "--prefect").code == 0
    planned = nse("plan", "--by", "Pia", "--prefect", "--json")
    assert planned.code == 0, planned.err
    assert nse("approve", "1", "--by", "Rex", "--reason", "checked").code == 0
    assert nse("apply", "1", "--by", "Rex", "--prefect").code == 0
    correction = nse("blame", "Borea", "--json").json[0]["correction"]["id"]
    assert nse("revert", correction, "--by", "Pia", "--reason", "test", "--prefect").code == 0
    assert nse("approve", "2", "--by", "Rex", "--reason", "checked").code == 0
    assert nse("apply", "2", "--by", "Rex").code == 0
    params = workspace.root / "params.yaml"
    params.write_text(params.read_text().replace("consolidate_every: 0", "consolidate_every: 1"))
    due = nse("plan", "--by", "Pia", "--prefect", "--json")  # a night, of which the policy makes a consolidation
    assert due.json["changeset"]["kind"] == "consolidate", due.err
    asked = nse("consolidate", "--by", "Pia", "--prefect", "--json")
    assert asked.json["changeset"]["number"] == due.json["changeset"]["number"] == 3, asked.err
    with get_client(sync_client=True) as client:
        tasks = {run.name for run in client.read_task_runs()}
        flows = {flow.name for flow in client.read_flows()}
        wanted = ArtifactFilter(key=ArtifactFilterKey(any_=["changeset-1"]))
        artifacts = client.read_artifacts(artifact_filter=wanted)
    assert {"file corrections", "choose corrections", "compute values", "edit", "store delta", "move head"} <= tasks
    assert "choose what is in force" in tasks
    assert flows == {"nse ingest", "nse nightly", "nse apply", "nse revert", "nse consolidate"}
    pages = [str(artifact.data) for artifact in artifacts]
    assert any(page.startswith("# Changeset #1") and "| Alba | capital | Rome | Paris |" in page for page in pages)


def test_serve_deploys_the_schedule_of_the_params(workspace: Workspace) -> None:
    prepare(workspace.root)
    from flows.deploy import deployment

    made = deployment(workspace, by="nse serve")
    [schedule] = made.schedules or []
    assert (schedule.schedule.cron, schedule.schedule.timezone) == ("0 2 * * *", "Europe/Berlin")
    assert made.parameters == {"workspace": str(workspace.root), "by": "nse serve"}
    assert made.entrypoint == "flows.deploy.nightly_flow"


def test_prefect_yaml_deploys_flows_that_exist() -> None:
    import flows.deploy

    text = (Path(__file__).parents[2] / "prefect.yaml").read_text()
    for entry in yaml.safe_load(text)["deployments"]:
        module, _, name = entry["entrypoint"].rpartition(".")
        assert module == "flows.deploy"
        assert set(entry["parameters"]) <= set(getattr(flows.deploy, name).parameters.properties)


def test_prefects_scheduler_works_with_the_installed_sqlalchemy() -> None:
    # Prefect 3.8 inserts scheduled runs in bulk through a hybrid attribute, which SQLAlchemy 2.1 refuses: the server
    # logs "Can't evaluate bulk DML statement" and `nse serve` waits for ever.
    installed = tuple(int(part) for part in version("sqlalchemy").split(".")[:2])
    assert installed < (2, 1)


def test_the_environment_is_not_taken_from_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFECT_HOME", "/elsewhere")
    monkeypatch.delenv("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", raising=False)
    prepare(tmp_path)
    assert os.environ["PREFECT_HOME"] == "/elsewhere"
    assert os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] == "90"
