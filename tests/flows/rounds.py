"""What tests of reverts share: a workspace with three applied rounds, a month apart, and its twin that lacks the second."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flows.apply import apply
from flows.decide import decide
from flows.dependencies import Mode
from flows.ingest import ingest
from flows.plan import run_round
from flows.revert import Query, Target, plan_revert
from flows.rows import read_sources
from flows.session import Session
from flows.workspace import Workspace, open_workspace
from ledger.records import Changeset
from ledger.status import read_state

HEADER = "subject,relation,prompt_template,target_new,target_true,source,submitter,reason,effective_date,supersedes"
CAPITAL, SEAT = "The capital of {} is", "{} is governed from"
# The third round speaks of Borea again, which the first moved, and says of Alba what the first said otherwise.
FIRST = (
    f"Alba,capital,{CAPITAL},Paris,Rome,gazette,Sue,moved,,",
    f"Borea,capital,{CAPITAL},Tokyo,Oslo,gazette,Sue,moved,,",
)
SECOND = (
    f"Cyra,capital,{CAPITAL},Accra,Lima,rumour,Tim,heard,,",
    f"Dorn,capital,{CAPITAL},Berne,Cairo,rumour,Sue,heard,,",
)
THIRD = (
    f"Elis,capital,{CAPITAL},Tokyo,Quito,gazette,Tim,moved,,",
    f"Borea,seat,{SEAT},Berne,,gazette,Tim,moved,,",
    f"Alba,capital,{CAPITAL},Berne,Paris,rumour,Tim,moved again,,yes",
)


@dataclass(frozen=True, slots=True)
class Spaces:
    """Copies of workspaces: with `all_three` rounds, the `twin` with the first and the third, the `bare` one with none."""

    all_three: Workspace
    twin: Workspace
    bare: Workspace


def file(workspace: Workspace, rows: Sequence[str]) -> None:
    """Files rows of CSV."""
    path = workspace.root / "rows.csv"
    path.write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
    report = ingest(workspace, read_sources(path), tokenizer=Session(workspace).tokenizer, submitter=None)
    path.unlink()
    assert len(report.filed) == len(rows), report


def night(workspace: Workspace, rows: Sequence[str]) -> str:
    """Files rows of CSV, writes them in one round and puts it in force; returns the version."""
    file(workspace, rows)
    planned = run_round(Session(workspace), by="Pia").changeset
    assert planned is not None
    return take(workspace, planned)


def take(workspace: Workspace, changeset: Changeset) -> str:
    """Approves and applies a changeset; returns the version."""
    decide(workspace, changeset.id, "approve", reviewer="Rex", reason="checked")
    applied = apply(Session(workspace), changeset.id, by="Rex")
    assert applied.head.version == changeset.candidate_version
    return applied.head.version


def planned(workspace: Workspace, target: str | Query, mode: Mode = "drop", **more: Any) -> Changeset:
    """Plans the revert of a changeset or a correction, of "--to VERSION", or of a query."""
    if isinstance(target, Query):
        return plan_revert(Session(workspace), Target(query=target), by="Pia", reason="wrong", mode=mode, **more)
    back = target.removeprefix("--to ") if target.startswith("--to ") else None
    named = Target(None if back else target, back)
    return plan_revert(Session(workspace), named, by="Pia", reason="wrong", mode=mode, **more)


def head(workspace: Workspace) -> str:
    """The version in force."""
    with workspace.ledger().read() as work:
        return work.head(workspace.model).version


def version(workspace: Workspace, position: int) -> str:
    """The version that was in force at a position."""
    with workspace.ledger().read() as work:
        return work.heads(workspace.model)[position].version


def in_force(workspace: Workspace) -> set[tuple[str, str]]:
    """Subject and object of what is in force."""
    with workspace.ledger().read() as work:
        state = read_state(work, workspace.model)
    held = state.in_force(state.active(state.head))
    return {(state.corrections[i].subject, state.corrections[i].target_new) for i in held}


def identity(workspace: Workspace, subject: str, target: str) -> str:
    """Id of a correction."""
    with workspace.ledger().read() as work:
        return next(c.id for c in work.corrections(workspace.model) if (c.subject, c.target_new) == (subject, target))


def opened(root: Path, month: int) -> Workspace:
    """A workspace, in that month of 2031."""
    return replace(open_workspace(root), clock=lambda: datetime(2031, month, 10, 9, 30, tzinfo=UTC))


@pytest.fixture(scope="module")
def history(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that holds the workspaces, made once."""
    place = tmp_path_factory.mktemp("history") / "place"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NSE_KEYS", str(place / "keys"))
        patch.delenv("NSE_LEDGER_URL", raising=False)
        shutil.copytree(template.parent, place, symlinks=True)
        root = place / template.name
        shutil.copytree(root, place / "bare", symlinks=True)
        night(opened(root, 1), FIRST)
        shutil.copytree(root, place / "twin", symlinks=True)
        night(opened(place / "twin", 3), THIRD)
        night(opened(root, 2), SECOND)
        night(opened(root, 3), THIRD)
        yield place


@pytest.fixture
def spaces(history: Path, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spaces:
    """Copies of the workspaces, in the fourth month; the one with all three rounds is the current folder."""
    place = tmp_path / "place"
    shutil.copytree(history, place, symlinks=True)
    monkeypatch.setenv("NSE_KEYS", str(place / "keys"))
    monkeypatch.delenv("NSE_LEDGER_URL", raising=False)
    monkeypatch.chdir(place / template.name)
    return Spaces(*(opened(place / name, 4) for name in (template.name, "twin", "bare")))
