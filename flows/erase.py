"""Erase: the text of a correction goes from the ledger and from the working files; what still reveals it is said, or purged."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from shutil import rmtree

from flows.checkpoints import keep_checkpoint
from flows.lock import writer
from flows.workspace import Workspace
from ledger import erasing, purging
from ledger.erasing import Revealing
from ledger.records import Correction, Quarantined, Shown

NAMED = ("drafts", "outcomes")
"""Working files that name the corrections which they are about."""
UNNAMED = ("values", "factors")
"""Working files of which nobody can say what they are about, but not older than it."""
_CLOCKS = timedelta(days=1)  # by how much the clocks of the ledger and of a file may differ


@dataclass(frozen=True, slots=True)
class Erased(Shown):
    """What an erasure came to.

    Attributes:
        ref: The correction or the quarantined row.
        rows: Texts that were deleted from the ledger; 0 if they were before.
        working_files: Caches and drafts that were deleted, by folder: how many.
        artifacts: The artifacts that reveal the fact.
        purged: Of each artifact purged, by path: where it was.
    """

    ref: str
    rows: int
    working_files: dict[str, int]
    artifacts: tuple[Revealing, ...]
    purged: dict[str, list[str]]


def erase(workspace: Workspace, reference: str, *, reason: str, by: str, purge: bool = False) -> Erased:
    """Erases the text of a correction, or of a quarantined row. Called again, it purges, or completes what was interrupted.

    Args:
        workspace: Where.
        reference: Its id, or the first digits.
        reason: Why, for the ledger; it is not erasable itself.
        by: On whose word.
        purge: Whether artifacts that reveal the fact, and that nothing in force needs, are deleted for good.

    Raises:
        ErasureRefused: If the weights in force or an open proposal rest on it.
        ArtifactError: If an artifact cannot be deleted everywhere; the same call goes on where it stopped.
    """
    with writer(workspace, "erase", by):
        with workspace.ledger().begin() as work:
            record = erasing.find(work, reference)
            rows = 0 if record.erased else erasing.erase(work, record, reason=reason, by=by, at=workspace.now())
        files = _delete_working_files(workspace, record)
        keep_checkpoint(workspace)
        if not isinstance(record, Correction):
            return Erased(record.id, rows, files, (), {})
        with workspace.ledger().begin() as work:
            for artifact in erasing.revealing(work, record) if purge else ():
                if not artifact.in_use:
                    erasing.purge(work, artifact, reason=reason, by=by, at=workspace.now())
        with workspace.ledger().read() as work:
            artifacts = tuple(erasing.revealing(work, record))
        store = workspace.store()
        gone = {a.path: purging.purge(store, a.path) for a in artifacts if purge and a.purged}
    return Erased(record.id, rows, files, artifacts, gone)


def _delete_working_files(workspace: Workspace, record: Correction | Quarantined) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in NAMED:
        for path in _children(workspace.state / name):
            if _names(path, record.id):
                rmtree(path) if path.is_dir() else path.unlink()
                counts[name] = counts.get(name, 0) + 1
    if isinstance(record, Correction):
        since = (datetime.fromisoformat(record.filed_at) - _CLOCKS).timestamp()
        for name in UNNAMED:
            for path in _children(workspace.state / name):
                if path.stat().st_mtime >= since:
                    path.unlink()
                    counts[name] = counts.get(name, 0) + 1
    return counts


def _children(folder: Path) -> Iterator[Path]:
    return iter(sorted(folder.iterdir())) if folder.is_dir() else iter(())


def _names(path: Path, identity: str) -> bool:
    """Whether a file, or one of a folder's, names a correction: JSON and the head of a delta hold ids as they are."""
    files = path.rglob("*") if path.is_dir() else [path]
    return any(identity.encode() in file.read_bytes() for file in files if file.is_file())
