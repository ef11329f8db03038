"""Whatever goes wrong in whichever step: the ledger verifies, `nse reconcile` tidies up, and the same run comes to the same end.

Real processes, killed or hindered, on SQLite and PostgreSQL. The outcomes are the table of `docs/ledger.md`.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, text

from tests.faults.conftest import Outcome, Scene, Stage, Zygote

_ROUND = ("compute values", "edit", "evaluate", "store delta", "propose changeset", "checkpoint")
STEPS = {
    "plan": ("reconcile", "choose corrections", *_ROUND),
    "apply": ("reconcile", "check decision", "check weights", "move head", "checkpoint"),
    "revert": ("reconcile", "choose what stays", *_ROUND),
}
DOCUMENT = Path(__file__).parents[2] / "docs" / "ledger.md"
BEGIN, END = "<!-- made by tests/faults/test_matrix.py -->", "<!-- end -->"
BOTH = ("SQLite", "PostgreSQL")


@dataclass(frozen=True)
class Case:
    """Something that goes wrong at one place of a flow."""

    flow: str
    step: str
    fault: str
    kind: str | None = None
    place: str = "before"
    databases: tuple[str, ...] = BOTH
    around: str | None = None  # what is wrong with the surroundings, see `_SURROUNDINGS`
    done: bool = False  # whether the run comes to its end all the same

    def __str__(self) -> str:
        return f"{self.flow}-{self.step}-{self.fault}".replace(" ", "_")

    @property
    def planted(self) -> dict[str, str]:
        return {"step": self.step, "place": self.place, "kind": self.kind} if self.kind else {}


def _cases() -> Iterator[Case]:
    for flow, steps in STEPS.items():
        yield Case(flow, steps[0], "killed before it", "kill")
        for step in steps:
            yield Case(flow, step, "killed after it", "kill", "after")
        yield from _cases_of_apply() if flow == "apply" else _cases_of_a_round(flow)
        writes = steps[-2]  # to the ledger
        yield Case(flow, writes, "killed before the commit", "kill", "before the commit")
        yield Case(flow, writes, "no room on the disk", "no room", databases=("SQLite",))
        yield Case(flow, writes, "read-only database", "read-only")
        yield Case(
            flow, writes, "connection lost before the commit", "disconnect", "before the commit", ("PostgreSQL",)
        )
        yield Case(flow, writes, "the clock is an hour back", around="clock")
        for place in ("before the commit", "before git commit"):
            yield Case(flow, "checkpoint", f"killed {place}", "kill", place)
        yield Case(flow, steps[0], "the schema is newer than the program", around="schema")
    yield from _cases_of_a_consolidation()


def _cases_of_a_round(flow: str) -> Iterator[Case]:
    for step in ("edit", "evaluate"):
        yield Case(flow, step, "killed while its draft is written", "kill", "while its draft is written")
    for place in ("while it is copied", "after the copy", "after dvc add", "after git commit"):
        yield Case(flow, "store delta", f"killed {place}", "kill", place)
    yield Case(flow, "store delta", "the remote cannot be reached", around="remote")
    for place in ("after the copy", "after git commit"):
        fault = f"killed {place}, and the remote cannot be reached"
        yield Case(flow, "store delta", fault, "kill", place, around="remote")
    for step in ("edit", "store delta"):
        yield Case(flow, step, "no room on the disk", "no room")


def _cases_of_a_consolidation() -> Iterator[Case]:
    """Only kills: its steps are those of a round. Where the ledger has no part in a step, one database is enough."""
    for step in ("reconcile", "choose what is in force", *_ROUND):
        databases = BOTH if step in ("propose changeset", "checkpoint") else ("SQLite",)
        yield Case("consolidate", step, "killed after it", "kill", "after", databases)
    for step, place in (("edit", "while its draft is written"), ("store delta", "after the copy")):
        yield Case("consolidate", step, f"killed {place}", "kill", place, ("SQLite",))
    yield Case("consolidate", "propose changeset", "killed before the commit", "kill", "before the commit")
    yield Case("consolidate", "checkpoint", "killed before git commit", "kill", "before git commit", ("SQLite",))


def _cases_of_apply() -> Iterator[Case]:
    gone = "an artifact is gone, and the remote cannot be reached"
    yield Case("apply", "check weights", gone, around="artifact and remote")
    yield Case("apply", "checkpoint", "the remote cannot be reached", around="remote", done=True)


CASES = tuple(_cases())


# --- what can be wrong with the surroundings: a function that makes it so, and returns one that makes it right


def _without_remote(scene: Scene) -> Callable[[], None]:
    away = scene.remote.with_name("away")
    scene.remote.rename(away)
    scene.remote.write_text("no folder")

    def back() -> None:
        scene.remote.unlink()
        away.rename(scene.remote)

    return back


def _without_artifact(scene: Scene) -> Callable[[], None]:
    for artifact in (scene.workspace / "artifacts" / "deltas").glob("*.safetensors"):
        artifact.unlink()
    shutil.rmtree(scene.workspace / ".dvc" / "cache")
    return _without_remote(scene)


def _newer(scene: Scene) -> Callable[[], None]:
    engine = create_engine(scene.ledger.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        known = connection.scalar(text("SELECT version_num FROM alembic_version"))
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    def back() -> None:
        with engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = :known"), {"known": known})
        engine.dispose()

    return back


_SURROUNDINGS: dict[str | None, Callable[[Scene], Callable[[], None]]] = {
    None: lambda _: lambda: None,
    "clock": lambda _: lambda: None,
    "remote": _without_remote,
    "artifact and remote": _without_artifact,
    "schema": _newer,
}


def _writable(scene: Scene) -> None:
    if scene.ledger.startswith("sqlite"):
        Path(scene.ledger.removeprefix("sqlite:///")).chmod(0o644)
        return
    name = psycopg.conninfo.conninfo_to_dict(scene.ledger)["dbname"]
    with psycopg.connect(scene.ledger, autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")  # type: ignore[arg-type]


# --- what comes of it


@dataclass(frozen=True)
class Result:
    """What came of a case on one database."""

    run: Outcome
    without: Outcome | None  # the examination while the surroundings were wrong
    examined: Outcome
    finished: Outcome

    @property
    def cells(self) -> tuple[str, str]:
        """How the run ended, and what `nse reconcile` did: without what differs from one time to the next."""
        ended = "killed" if self.run.code == -9 else f"exit {self.run.code}"
        if self.run.code in (1, 2):
            ended += f": {plain(self.run.error)}"
        lines = [*(self.without.answer["reconcile"] if self.without else ()), *self.examined.answer["reconcile"]]
        return ended, "; ".join(plain(line) for line in lines) or "nothing to do"


_DIFFERS = (  # from one time to the next
    (r"'[^']*/space[^']*'", "…"),
    (r"/[^ ,:)]*/space[^ ,:)]*", "…"),
    (r"scene_\d+ on \S+", "…"),
    (r"\b[0-9a-f]{12,64}\b", "…"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "…"),
    (r"process \d+, since \S+", "process …, since …"),
    (r"\.\d+, half", ", half"),
    (r"\|", r"\\|"),
)


def plain(line: str) -> str:
    """Returns a line without digests, places, process numbers and times."""
    for pattern, instead in _DIFFERS:
        line = re.sub(pattern, instead, line)
    return line.strip()


@dataclass
class Matrix:
    """The outcomes of all cases: each is made once, when it is first asked for, on both databases at the same time."""

    zygote: Zygote
    stages: dict[str, Stage]
    _results: dict[Case, dict[str, Result]] = field(default_factory=dict)
    _clean: dict[str, list[Outcome]] = field(default_factory=dict)

    def clean(self, flow: str) -> dict[str, Any]:
        """What a flow comes to when nothing goes wrong."""
        if flow not in self._clean:
            scenes = [stage.scene(flow) for stage in self.stages.values()]
            self._clean[flow] = self.zygote.run(*(scene.job("finish", flow=flow) for scene in scenes))
        return {name: outcome.answer for name, outcome in zip(self.stages, self._clean[flow], strict=True)}

    def results(self, case: Case) -> dict[str, Result]:
        """What comes of a case, by database."""
        if case not in self._results:
            self._results[case] = self._made(case)
        return self._results[case]

    def _made(self, case: Case) -> dict[str, Result]:
        scenes = {name: self.stages[name].scene(case.flow) for name in case.databases}
        back = [_SURROUNDINGS[case.around](scene) for scene in scenes.values()]
        more = {"fault": case.planted, **({"clock": -3600} if case.around == "clock" else {})}
        runs = self.zygote.run(*(scene.job(case.flow, **more) for scene in scenes.values()))
        without: list[Outcome | None] = [None] * len(scenes)
        if case.kind == "kill" and case.around == "remote":
            without = [*self.zygote.run(*(scene.job("reconcile") for scene in scenes.values()))]
        for made_right in back:
            made_right()
        if case.kind == "read-only":
            for scene in scenes.values():
                _writable(scene)
        examined = self.zygote.run(*(scene.job("examine") for scene in scenes.values()))
        finished = self.zygote.run(*(scene.job("finish", flow=case.flow) for scene in scenes.values()))
        for scene in scenes.values():
            shutil.rmtree(scene.place)
        made = zip(scenes, runs, without, examined, finished, strict=True)
        return {name: Result(*outcomes) for name, *outcomes in made}  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def matrix(zygote: Zygote, stages: dict[str, Stage]) -> Matrix:
    return Matrix(zygote, stages)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_after_a_fault_the_ledger_verifies_and_the_same_run_comes_to_the_same_end(case: Case, matrix: Matrix) -> None:
    clean = matrix.clean(case.flow)
    for database, result in matrix.results(case).items():
        assert result.run.code in ((-9,) if case.kind == "kill" else (0,) if case.done else (1, 2)), (
            database,
            result.run,
        )
        assert result.run.code in (-9, 0) or result.run.error, (database, result.run)
        assert result.examined.code == 0, (database, result.examined)
        assert result.examined.answer["findings"] == [], database
        assert result.examined.answer["again"] == [], database
        assert result.finished.code == 0, (database, result.finished)
        assert result.finished.answer["findings"] == [], database
        assert result.finished.answer == clean[database], database


def test_the_fault_matrix_of_the_documentation_is_what_the_tests_saw(matrix: Matrix) -> None:
    rows = [*_rows(matrix)]
    header = ("flow", "step", "what goes wrong", "database", "the run ends with", "`nse reconcile`", "run again")
    lines = ["| " + " | ".join(row) + " |" for row in (header, ("---",) * len(header), *rows)]
    table = "\n".join((BEGIN, *lines, END))
    there = DOCUMENT.read_text(encoding="utf-8")
    made = re.sub(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: table, there, flags=re.DOTALL)
    if os.environ.get("NSE_UPDATE_DOCS") == "1":
        DOCUMENT.write_text(made, encoding="utf-8")
    assert DOCUMENT.read_text(encoding="utf-8") == made, "run these tests with NSE_UPDATE_DOCS=1"


def _rows(matrix: Matrix) -> Iterator[tuple[str, ...]]:
    for case in CASES:
        clean, results = matrix.clean(case.flow), matrix.results(case)
        cells = {
            name: (*result.cells, "same result" if result.finished.answer == clean[name] else "OTHER RESULT")
            for name, result in results.items()
        }
        if len(cells) == 2 and len(set(cells.values())) == 1:
            cells = {"both": cells["SQLite"]}
        for name, cell in cells.items():
            yield case.flow, case.step, case.fault, name, *cell
