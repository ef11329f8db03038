"""Proof that the ledger is what it was when it was written: every digest, rule, chain, checkpoint and artifact, checked again.

An audit reports every problem it finds and changes nothing. That records were cut off the end, or that somebody rewrote rows
with every digest above them, it sees only against a checkpoint from outside.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from ledger import tables
from ledger.artifacts import ArtifactStore
from ledger.checkpoints import stated
from ledger.erasing import purged
from ledger.findings import RESTORE, Finding, Progress
from ledger.integrity import Integrity, Undecodable
from ledger.notes import Checkpoint, NoteError, VerifierKey
from ledger.rules import broken_rules
from ledger.triggers import trigger_problems
from ledger.unit_of_work import Ledger, UnitOfWork

__all__ = ["Finding", "check_artifacts", "check_records", "verify"]

_RESTORE_CHECKPOINT = "restore it: from Git, from the DVC remote, or from a backup of the ledger"
_RESTORE_ARTIFACT = "delete the local file to have it pulled again, or restore the DVC remote from a backup"


def silent(_stage: str, _done: int, _total: int) -> None:
    """The progress of those who do not want to see any."""


def verify(
    ledger: Ledger,
    store: ArtifactStore,
    *,
    keys: Iterable[VerifierKey] = (),
    checkpoints: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> list[Finding]:
    """Check everything; an empty list means that all is well.

    - the insert-only triggers, the leaf of every record, the log and its nodes, every digest, salted hash and reference;
    - that each applied changeset was approved by people who may, with its gates passed, and every decision signed;
    - that each model's heads are an unbroken chain from its base, and all changesets edit the same base;
    - that every checkpoint is one of this log;
    - that every artifact a changeset names, unless it was purged, is here and on the remote, with the recorded bytes.

    Args:
        ledger: What to check.
        store: Where its artifacts are.
        keys: The keys that sign the log's checkpoints; without any, signatures on checkpoints are not checked.
        checkpoints: Notes that were kept outside the ledger, by name.
        progress: Told how far it is.
    """
    with ledger.read() as work:
        findings = check_records(work, keys=keys, checkpoints=checkpoints, progress=progress)
        artifacts = artifacts_of(work)
    return findings + check_artifacts(artifacts, store, progress=progress)


def check_records(
    work: UnitOfWork,
    *,
    keys: Iterable[VerifierKey] = (),
    checkpoints: Mapping[str, str] | None = None,
    rules: bool = True,
    progress: Progress = silent,
) -> list[Finding]:
    """Check all that is in the ledger's database, see `verify`; without `rules`, whether it was written and not whether it
    should have been."""
    connection = work.connection
    _take_texts(work, lenient=True)
    findings = [
        Finding(f"trigger {name}", f"it is {problem}", RESTORE)
        for name, problem in trigger_problems(connection).items()
    ]
    notes = _checkpoints(work, checkpoints or {}, tuple(keys), findings)
    integrity = _integrity(work, {note.checkpoint.size for note in notes}, progress)
    findings += integrity.findings
    findings += _compared(notes, integrity)
    if rules:
        findings += broken_rules(work, progress)
    return findings


def _integrity(work: UnitOfWork, sizes: Collection[int], progress: Progress) -> Integrity:
    """Check every row: as texts, which is quick, and once more with spoilt bytes as surrogates if there are any."""
    _take_texts(work, lenient=False)
    integrity = Integrity(work.connection, roots_at=sizes, progress=progress)
    try:
        integrity.check()
    except Undecodable:
        _take_texts(work, lenient=True)
        integrity = Integrity(work.connection, roots_at=sizes, progress=progress, lenient=True)
        integrity.check()
    _take_texts(work, lenient=True)
    return integrity


def _take_texts(work: UnitOfWork, *, lenient: bool) -> None:
    """Have SQLite give bytes that are no text as surrogates (`lenient`), so that a spoilt byte is a finding, not the end."""
    if work.connection.dialect.name == "sqlite":
        driver: Any = work.connection.connection.driver_connection
        driver.text_factory = (lambda raw: raw.decode(errors="surrogateescape")) if lenient else str


def artifacts_of(work: UnitOfWork) -> list[tuple[str, str]]:
    """Return path and SHA-256 of every artifact that must be there: all that changesets name, less the purged."""
    table = tables.changeset_change
    gone = purged(work)
    named = work.connection.execute(select(table.c.path, table.c.sha256).distinct().order_by(table.c.path))
    # what is no path at all is said by its row
    return [
        (path, sha256) for path, sha256 in named if sha256 not in gone and isinstance(path, str) and "\0" not in path
    ]


def check_artifacts(
    artifacts: Sequence[tuple[str, str]], store: ArtifactStore, *, progress: Progress = silent
) -> list[Finding]:
    """Check that artifacts, by path and SHA-256, are in the store with their bytes."""
    findings = []
    for done, (path, sha256) in enumerate(artifacts, 1):
        findings += [Finding(f"artifact {path}", problem, _RESTORE_ARTIFACT) for problem in store.check(path, sha256)]
        progress("artifacts", done, len(artifacts))
    return findings


@dataclass(frozen=True, slots=True)
class _Note:
    where: str
    checkpoint: Checkpoint


def _checkpoints(
    work: UnitOfWork, outside: Mapping[str, str], keys: Sequence[VerifierKey], findings: list[Finding]
) -> list[_Note]:
    """Read the checkpoints of the ledger and those from outside; what is wrong with one by itself is a finding."""
    table = tables.checkpoint
    try:
        kept = [tuple(row) for row in work.connection.execute(select(table).order_by(table.c.size))]
    except DBAPIError as error:
        kept = []
        findings.append(Finding("table checkpoint", f"the database cannot read it: {error.orig}", RESTORE))
    named = [(f"checkpoint {size}", size, note) for size, note in kept]
    named += [(f"checkpoint file {name}", None, note) for name, note in outside.items()]
    notes = []
    for where, size, note in named:
        try:
            checkpoint = stated(str(note), keys)
        except NoteError as error:
            findings.append(Finding(where, error.problem, _RESTORE_CHECKPOINT))
            continue
        if size is not None and checkpoint.size != size:
            findings.append(Finding(where, f"it states the size {checkpoint.size}", RESTORE))
        notes.append(_Note(where, checkpoint))
    sizes = {size for size, _ in kept}
    for note in notes:
        if note.checkpoint.size not in sizes:
            findings.append(Finding(note.where, "it was made of this log, and the ledger does not hold it", RESTORE))
    return notes


def _compared(notes: Iterable[_Note], integrity: Integrity) -> Iterator[Finding]:
    """Compare checkpoints with the log."""
    for note in notes:
        size, root = note.checkpoint.size, note.checkpoint.root
        if size > integrity.size:
            problem = f"the log had {size} events then and has {integrity.size}: records were cut off its end"
            yield Finding(note.where, problem, RESTORE)
        elif integrity.roots.get(size) != root:
            problem = f"the first {size} events of the log have another root now: the history was rewritten"
            yield Finding(note.where, problem, RESTORE)
