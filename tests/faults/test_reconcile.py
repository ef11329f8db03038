"""`nse reconcile`: what it finishes, what it undoes, and what it must never touch."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete

from flows.checkpoints import record
from flows.lock import DIED, writer
from flows.reconcile import reconcile, repairs
from flows.workspace import Workspace
from ledger import tables
from ledger.artifacts import DvcStore
from ledger.records import PolicyAdopted
from tests.flows.conftest import corrections, edited, git_log, nse, workspace

__all__ = ["corrections", "edited", "git_log", "nse", "workspace"]
Nse = Callable[..., Any]


def deltas(workspace: Workspace) -> Path:
    return workspace.root / "artifacts" / "deltas"


def files(workspace: Workspace) -> list[str]:
    return sorted(path.name for path in deltas(workspace).iterdir())


def lines(workspace: Workspace) -> list[str]:
    """What a thorough reconciliation does; called again it must do nothing."""
    found = [str(repair) for repair in repairs(workspace, thorough=True)]
    assert repairs(workspace, thorough=True) == []
    return found


def test_where_nothing_died_there_is_nothing_to_do(edited: Workspace, nse: Nse) -> None:
    lines(edited)  # the draft of the round
    before = files(edited)
    assert nse("reconcile").out.strip() == "nothing is half done"
    assert nse("reconcile", "--json").json == {"done": [], "not_done": []}
    assert files(edited) == before


def test_a_missing_artifact_is_restored_from_the_remote_and_checked(edited: Workspace, nse: Nse) -> None:
    lines(edited)
    [artifact] = deltas(edited).glob("*.safetensors")
    there = artifact.read_bytes()
    artifact.unlink()
    shutil.rmtree(edited.root / ".dvc" / "cache")
    assert reconcile(edited) == []  # a flow fetches what it needs when it needs it
    [line] = lines(edited)
    assert line.startswith(f"restored artifacts/deltas/{artifact.name} from the remote")
    assert artifact.read_bytes() == there


def test_what_cannot_be_restored_is_said_and_the_answer_is_no(edited: Workspace, nse: Nse) -> None:
    lines(edited)
    [artifact] = deltas(edited).glob("*.safetensors")
    artifact.unlink()
    shutil.rmtree(edited.root / ".dvc" / "cache")
    shutil.rmtree(edited.root.parent / f"{edited.root.name}-remote")
    found = nse("reconcile", "--json")
    assert found.code == 1
    [line] = found.json["not_done"]
    assert line.startswith(f"artifacts/deltas/{artifact.name} is missing and cannot be restored")


@pytest.mark.parametrize("tracked", [False, True])
def test_an_artifact_that_was_not_stored_to_the_end_and_that_nobody_needs_is_removed(
    edited: Workspace, tracked: bool
) -> None:
    lines(edited)
    before = files(edited)
    orphan = deltas(edited) / f"{'0' * 16}.safetensors"
    orphan.write_bytes(b"factors")
    if tracked:
        with DvcStore(edited.root)._exclusively(str(orphan)) as repo:
            repo.add([str(orphan)])
    [line] = lines(edited)
    assert line == f"removed artifacts/deltas/{orphan.name}: it was not stored to the end, and nothing needs it"
    assert files(edited) == before


def test_an_artifact_that_is_whole_stays_even_if_this_ledger_does_not_name_it(
    edited: Workspace, tmp_path: Path, git_log: Callable[[], list[str]]
) -> None:
    lines(edited)
    whole = tmp_path / "delta"
    whole.write_bytes(b"factors of a ledger of which only an older backup is left")
    stored = edited.store().put(whole, "artifacts/deltas")
    commits = git_log()
    assert lines(edited) == []
    assert (edited.root / stored.path).exists()
    assert git_log() == commits


def test_files_that_are_no_deltas_are_left_alone(edited: Workspace) -> None:
    lines(edited)
    other = deltas(edited) / "notes.txt"
    other.write_text("mine")
    assert lines(edited) == []
    assert other.exists()
    assert edited.second_moment.exists()


def test_a_draft_of_a_head_that_is_past_is_removed_and_one_of_the_head_is_not(edited: Workspace) -> None:
    lines(edited)
    with edited.ledger().read() as work:
        head = work.head(edited.model)
    drafts = edited.state / "drafts"
    for name, parent in (("a" * 64, None), ("b" * 64, head.changeset_id)):
        (drafts / name).mkdir()
        (drafts / name / "plan.json").write_text(json.dumps({"parent": parent}))
        (drafts / name / ".evidence.4711").write_text('{"half')
    (drafts / ("c" * 64)).mkdir()
    assert lines(edited) == [
        f"removed the draft {'a' * 12}: the head has moved since it was planned",
        f"removed .nse/drafts/{'b' * 64}/.evidence.4711, half a file",
        f"removed the draft {'c' * 12}: its plan was not written",
    ]
    assert [path.name for path in drafts.iterdir()] == ["b" * 64]


def test_half_a_copy_is_removed(edited: Workspace) -> None:
    lines(edited)
    partial = deltas(edited) / ".0000.safetensors.partial"
    partial.write_bytes(b"fac")
    assert lines(edited) == [f"removed artifacts/deltas/{partial.name}, half a copy"]


def test_who_died_while_writing_is_said_once(edited: Workspace) -> None:
    (edited.state / "writer.json").write_text('{"doing": "plan", "by": "Pia", "since": "noon", "pid": 4}')
    with writer(edited, "apply", "Rex"):
        assert (edited.state / DIED).exists()
        assert "`nse plan` by Pia (process 4, since noon) had died" in reconcile(edited)
        assert reconcile(edited) == []
    assert not (edited.state / "writer.json").exists()


def test_the_index_of_what_waits_is_made_anew(workspace: Workspace, corrections: Callable[..., Path], nse: Nse) -> None:
    nse("ingest", corrections(("Alba", "Paris", "Rome"), ("Borea", "Tokyo", "Oslo")))
    ledger = workspace.ledger()
    with ledger.begin() as work:
        waiting = work.waiting(workspace.model)
        work.connection.execute(delete(tables.waiting).where(tables.waiting.c.correction_id == waiting[0]))
    assert lines(workspace) == ["made the index of what waits anew: 1 put in, 0 taken out"]
    with ledger.read() as work:
        assert work.waiting(workspace.model) == waiting


def test_a_checkpoint_that_did_not_come_into_git_is_committed(
    edited: Workspace, git_log: Callable[[], list[str]]
) -> None:
    record(edited, push=False)  # makes the log's key
    lines(edited)
    with edited.ledger().begin() as work:
        work.add_policy(PolicyAdopted(model=edited.model, text="{}", adopted_by="Ann", adopted_at=edited.now()))
        size = work.log.size() + 1
    assert lines(edited) == [f"committed checkpoints/{size}.note, the checkpoint of the ledger's last event"]
    assert git_log()[0] == f"Checkpoint of the ledger at {size} events"
