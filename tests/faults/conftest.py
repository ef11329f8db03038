"""Scenes for faults: a workspace right before each flow, on SQLite and on PostgreSQL, and processes that can be killed."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.flows.conftest import HEADER, TEMPLATES, inputs, model, template
from tests.postgres import PostgresServer

__all__ = ["inputs", "model", "template"]
ROOT = Path(__file__).parents[2]
ROWS = (
    f"Alba,capital,{TEMPLATES[0]},Paris,Rome,gazette,Sue,moved,,",
    f"Alba,seat,{TEMPLATES[1]},Tokyo,Rome,gazette,Sue,moved,,",
    f"Borea,capital,{TEMPLATES[0]},Berne,Oslo,gazette,Sue,moved,,",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:  # DVC, not we, uses what pygtrie deprecates
            item.add_marker(pytest.mark.filterwarnings("ignore:_NoneStep.value will soon:DeprecationWarning"))


@dataclass(frozen=True)
class Outcome:
    """What became of a run: the exit code (negative: the signal), what it said, and its answer."""

    code: int | None
    said: str
    trace: str
    answer: Any

    @property
    def error(self) -> str:
        """The one line that a person reads."""
        lines = [line for line in self.said.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.said + self.trace
        return lines[0].removeprefix("error: ")


@dataclass
class Zygote:
    """The process that forks children; see `tests.faults.zygote`."""

    process: "subprocess.Popen[str]"
    folder: Path
    jobs: int = 0

    def run(self, *runs: dict[str, Any]) -> list[Outcome]:
        """Do some runs at the same time."""
        self.jobs += 1
        job = []
        for number, run in enumerate(runs):
            out = self.folder / f"{self.jobs}-{number}"
            out.mkdir()
            job.append({**run, "out": str(out)})
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return [Outcome(**answer) for answer in json.loads(self.process.stdout.readline())]


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[Zygote]:
    folder = tmp_path_factory.mktemp("zygote")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "DVC_SITE_CACHE_DIR": str(folder / "site"),
        "DVC_NO_ANALYTICS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, "-m", "tests.faults.zygote", str(template)]
    with (folder / "errors").open("w") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, cwd=ROOT
        )
    yield Zygote(process, folder)
    process.communicate(timeout=60)


@dataclass(frozen=True)
class Scene:
    """A workspace with its ledger and its remote, all its own."""

    place: Path
    ledger: str
    zygote: Zygote = field(repr=False)

    @property
    def workspace(self) -> Path:
        return self.place / "space"

    @property
    def remote(self) -> Path:
        return self.place / "space-remote"

    def job(self, action: str, **more: Any) -> dict[str, Any]:
        environment = {"NSE_KEYS": str(self.place / "keys")}
        named = {"workspace": str(self.workspace), "ledger": self.ledger, "environment": environment}
        return {**named, "action": action, **more}

    def run(self, action: str, **more: Any) -> Outcome:
        [outcome] = self.zygote.run(self.job(action, **more))
        return outcome

    def command(self, *arguments: str) -> Outcome:
        return self.run("command", arguments=arguments)

    def twin(self) -> "Scene":
        """Another machine's clone of the workspace: the same ledger, the same remote."""
        other = self.place / "twin"
        other.mkdir()
        for name in ("space", "keys"):
            if (self.place / name).exists():
                shutil.copytree(self.place / name, other / name, symlinks=True)
        (other / "space-remote").symlink_to(self.remote)
        return Scene(other, self.ledger, self.zygote)


@dataclass
class Stage:
    """Makes scenes: one template for each flow and database, copied for each test."""

    folder: Path
    database: str
    zygote: Zygote
    postgres: PostgresServer | None
    base: Path
    _made: dict[str, Scene] = field(default_factory=dict)
    _copies: int = 0

    def scene(self, flow: str) -> Scene:
        """Return a new scene right before `flow`: "plan", "approve", "apply", "revert" or "consolidate"."""
        return self._copy(self._template(flow))

    def _template(self, flow: str) -> Scene:
        if flow not in self._made:
            self._made[flow] = getattr(self, f"_before_{flow}")()
        return self._made[flow]

    def _copy(self, scene: Scene) -> Scene:
        self._copies += 1
        place = self.folder / f"{self.database}-{self._copies}"
        shutil.copytree(scene.place, place, symlinks=True)
        if self.postgres is None:
            return Scene(place, f"sqlite:///{place}/space/ledger.db", self.zygote)
        name = f"scene_{self._copies}"
        template = psycopg.conninfo.conninfo_to_dict(scene.ledger)["dbname"]
        self.postgres.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return Scene(place, self.postgres.url(name), self.zygote)

    def _before_plan(self) -> Scene:
        place = self.folder / f"{self.database}-plan"
        shutil.copytree(self.base.parent, place, symlinks=True)
        (place / "corrections.csv").write_text("\n".join([HEADER, *ROWS]) + "\n", encoding="utf-8")
        url = f"sqlite:///{place}/space/ledger.db"
        if self.postgres is not None:
            (place / "space" / "ledger.db").unlink()
            git = ("git", "-C", str(place / "space"))  # the checkpoints are of the ledger that goes
            subprocess.run([*git, "rm", "--quiet", "checkpoints/*.note"], check=True)
            subprocess.run([*git, "commit", "--quiet", "-m", "Another ledger"], check=True)
            url = self.postgres.new_url()
        scene = Scene(place, url, self.zygote)
        if self.postgres is not None:
            self._do(scene.command("init", str(scene.workspace)))
        self._do(scene.command("ingest", str(place / "corrections.csv")))
        return scene

    def _before_approve(self) -> Scene:
        scene = self.scene("plan")
        self._do(scene.run("plan"))
        return scene

    def _before_apply(self) -> Scene:
        scene = self.scene("approve")
        self._do(scene.command("approve", "1", "--by", "Rex", "--reason", "checked"))
        return scene

    def _before_revert(self) -> Scene:
        scene = self.scene("apply")
        self._do(scene.run("apply"))
        return scene

    def _before_consolidate(self) -> Scene:
        """One of the corrections has been reverted, so that the delta in force lacks columns."""
        scene = self.scene("revert")
        self._do(scene.run("revert"))
        self._do(scene.command("approve", "2", "--by", "Rex", "--reason", "checked"))
        self._do(scene.run("apply", changeset="#2"))
        return scene

    def _do(self, outcome: Outcome) -> None:
        assert outcome.code == 0, outcome.said + outcome.trace


@pytest.fixture(scope="session")
def stages(
    tmp_path_factory: pytest.TempPathFactory, zygote: Zygote, template: Path, request: pytest.FixtureRequest
) -> dict[str, Stage]:
    """The makers of scenes on each of the databases."""
    folder = tmp_path_factory.mktemp("scenes")
    server = request.getfixturevalue("postgres")
    return {
        "SQLite": Stage(folder, "SQLite", zygote, None, template),
        "PostgreSQL": Stage(folder, "PostgreSQL", zygote, server, template),
    }
