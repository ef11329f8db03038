"""`nse erase`: the text goes from the ledger and the working files; artifacts that reveal it are named, or purged."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from flows.commands import erase as command
from flows.erase import Erased, erase
from flows.workspace import Workspace
from ledger.errors import ArtifactError, ErasureRefused
from ledger.records import ERASED, CaseResult, CaseRow, Changeset, Correction, DeltaChange, Gate, Quarantined

SECRET = "Zanzibarbara"


def file(workspace: Workspace, subject: str = SECRET) -> Correction:
    filed = Correction(
        model=workspace.model,
        subject=subject,
        relation="capital",
        prompt_template="The capital of {} is",
        target_new="Paris",
        source="gazette",
        submitter="Sue",
        reason="moved",
        filed_at=workspace.now(),
        file_name="x.csv",
        line=2,
    )
    with workspace.ledger().begin() as work:
        found = work.add_correction(filed).record
    assert isinstance(found, Correction)
    return found


def write(workspace: Workspace, change: DeltaChange, *corrections: Correction, kind: str = "edit") -> Changeset:
    """Puts a changeset in force; who approves is of no account here."""
    ids = [correction.id for correction in corrections]
    with workspace.ledger().begin() as work:
        head = work.head(workspace.model)
        edit = kind == "edit"
        changeset = work.add_changeset(
            Changeset(
                model=workspace.model,
                kind="edit" if edit else "revert",
                parent=head.changeset_id,
                parent_version=head.version,
                candidate_version=f"{head.position + 1:064x}",
                base_digest=workspace.params.model.digest,
                changes=(change,),
                results=tuple(CaseResult(i, "edited", 1, 0, change.sha256) for i in ids) if edit else (),
                reverted=() if edit else tuple(ids),
                gates=(Gate("efficacy", ">=", 0.5, 1, True),),
                cases=tuple(CaseRow("efficacy", "candidate", i, f"{SECRET}?", "Paris", 1, "Paris", True) for i in ids),
                reason="round",
                planned_by="Pia",
                planned_at=workspace.now(),
            )
        )
        to = changeset.candidate_version
        work.move_head(
            workspace.model, expected=head, version=to, changeset_id=changeset.id, at=workspace.now(), by="Rex"
        )
    return changeset


@pytest.fixture
def stored(workspace: Workspace, tmp_path: Path) -> DeltaChange:
    """A real artifact on the real remote."""
    (tmp_path / "delta").write_bytes(b"columns of Zanzibarbara")
    artifact = workspace.store().put(tmp_path / "delta", "artifacts/deltas")
    (tmp_path / "delta").unlink()
    return DeltaChange(artifact.sha256, artifact.path)


@pytest.fixture
def reverted(workspace: Workspace, stored: DeltaChange) -> Correction:
    """A correction that was in force once."""
    correction = file(workspace)
    write(workspace, stored, correction)
    write(workspace, DeltaChange(stored.sha256, stored.path, removed=True), correction, kind="revert")
    return correction


@pytest.fixture
def run() -> Callable[..., Result]:
    """Runs `nse erase ...`."""
    app = typer.Typer()
    app.command()(command.erase)
    return lambda *arguments: CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def secrets(folder: Path) -> list[str]:
    """The files that hold the secret."""
    found = [path for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    return [str(path.relative_to(folder)) for path in found if not path.name.startswith("ledger.db")]


def test_the_text_goes_from_the_ledger_and_from_working_files_that_name_it(workspace: Workspace) -> None:
    correction, other = file(workspace), file(workspace, "Dorn")
    for plan, named in (("p1", correction), ("p2", other)):
        draft = workspace.state / "drafts" / plan
        draft.mkdir(parents=True)
        (draft / "plan.json").write_text(json.dumps({"rounds": [[named.id]]}))
        (draft / "evidence.json").write_text(json.dumps({"prompt": named.subject}))
    outcomes = workspace.state / "outcomes"
    outcomes.mkdir()
    (outcomes / "v1.json").write_text(json.dumps({"k": {"case_id": correction.id, "prompt": SECRET}}))
    (outcomes / "v2.json").write_text(json.dumps({"k": {"case_id": other.id, "prompt": "Dorn"}}))
    assert secrets(workspace.root)
    done = erase(workspace, correction.id[:8], reason="she asked", by="Ann")
    assert (done.rows, done.working_files, done.artifacts) == (1, {"drafts": 1, "outcomes": 1}, ())
    assert secrets(workspace.root) == []
    assert (workspace.state / "drafts" / "p2" / "plan.json").is_file()
    assert (outcomes / "v2.json").is_file()
    with workspace.ledger().read() as work:
        assert work.correction(correction.id).subject == ERASED
        assert work.correction(other.id).subject == "Dorn"


def test_values_and_factors_go_unless_they_are_older_than_the_correction(workspace: Workspace) -> None:
    for name in ("values", "factors"):
        folder = workspace.state / name
        folder.mkdir(parents=True)
        for file_name in ("old", "new"):
            (folder / file_name).write_bytes(b"numbers")
        os.utime(folder / "old", (1e9, 1e9))
    done = erase(workspace, file(workspace).id, reason="she asked", by="Ann")
    assert done.working_files == {"values": 1, "factors": 1}
    assert [path.name for path in (workspace.state / "values").iterdir()] == ["old"]


def test_what_still_reveals_it_is_named_and_purged_later(workspace: Workspace, reverted: Correction) -> None:
    done = erase(workspace, reverted.id, reason="she asked", by="Ann")
    (artifact,) = done.artifacts
    assert ([(s.start, s.end) for s in artifact.versions], artifact.in_use, done.purged) == ([(1, 2)], False, {})
    assert artifact.path in secrets(workspace.root)
    again = erase(workspace, reverted.id, reason="she asked", by="Ann", purge=True)
    assert (again.rows, again.purged) == (0, {artifact.path: ["the DVC remote", "DVC's cache", "the workspace"]})
    assert secrets(workspace.root.parent) == []
    with workspace.ledger().read() as work:
        size = work.log.size()
    once_more = erase(workspace, reverted.id, reason="she asked", by="Ann", purge=True)
    assert once_more.purged == {artifact.path: []}
    with workspace.ledger().read() as work:
        assert work.log.size() == size  # nothing is recorded twice


def test_a_purge_that_the_remote_refuses_is_completed_by_the_same_call(
    workspace: Workspace, reverted: Correction
) -> None:
    remote = next(workspace.root.parent.glob("*-remote"))
    away = remote.rename(remote.with_name("away"))
    remote.write_text("no folder")
    with pytest.raises(ArtifactError):
        erase(workspace, reverted.id, reason="she asked", by="Ann", purge=True)
    remote.unlink()
    away.rename(remote)
    assert secrets(workspace.root.parent)
    erase(workspace, reverted.id, reason="she asked", by="Ann", purge=True)
    assert secrets(workspace.root.parent) == []


def test_what_is_in_force_is_not_erased_and_its_artifact_not_purged(workspace: Workspace, stored: DeltaChange) -> None:
    correction, other = file(workspace), file(workspace, "Dorn")
    write(workspace, stored, correction, other)
    with pytest.raises(ErasureRefused, match="is in force: revert it first"):
        erase(workspace, correction.id, reason="she asked", by="Ann", purge=True)
    dropped = DeltaChange(stored.sha256, stored.path, dropped=(correction.id,))
    write(workspace, dropped, correction, kind="revert")
    done = erase(workspace, correction.id, reason="she asked", by="Ann", purge=True)
    assert [(a.in_use, a.purged) for a in done.artifacts] == [(True, False)]
    assert done.purged == {}
    assert workspace.store().check(stored.path, stored.sha256) == []


def test_a_quarantined_row_is_erased(workspace: Workspace) -> None:
    row = Quarantined(
        file_name="x.csv",
        file_digest="f1" * 32,
        line=3,
        field="subject",
        reason="is empty",
        row_text=SECRET,
        quarantined_at=workspace.now(),
    )
    with workspace.ledger().begin() as work:
        kept = work.add_quarantined(row).record
    assert erase(workspace, kept.id, reason="she asked", by="Ann") == Erased(kept.id, 1, {}, (), {})


def test_the_command_says_what_went_and_what_stays(
    workspace: Workspace, reverted: Correction, run: Callable[..., Result]
) -> None:
    plain = run(reverted.id, "--reason", "she asked", "--by", "Ann")
    assert "3 texts erased" in plain.stdout  # its own, and a case of each of its two changesets
    assert "--purge deletes it" in plain.stdout
    assert "backups still have the text" in " ".join(plain.stderr.split())
    purged = run(reverted.id, "--reason", "she asked", "--by", "Ann", "--purge", "--json")
    assert (purged.exit_code, json.loads(purged.stdout)["artifacts"][0]["purged"]) == (0, True)
    assert "cannot be composed any more" in run(reverted.id, "--reason", "again", "--by", "Ann").stderr


def test_the_command_exits_with_one_when_a_purge_has_to_wait(
    workspace: Workspace, stored: DeltaChange, run: Callable[..., Result]
) -> None:
    correction, other = file(workspace), file(workspace, "Dorn")
    write(workspace, stored, correction, other)
    write(workspace, DeltaChange(stored.sha256, stored.path, (correction.id,)), correction, kind="revert")
    done = run(correction.id, "--reason", "she asked", "--by", "Ann", "--purge")
    assert (done.exit_code, "needed" in done.stdout) == (1, True)
    assert "--mode replay" in " ".join(done.stderr.split())
