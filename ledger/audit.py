"""Proof that the ledger is what it was when it was written: every digest, rule, chain, checkpoint and artifact, checked again.

An audit reports every problem it finds and changes nothing. That records were cut off the end, or that somebody rewrote rows
with every digest above them, it sees only against a checkpoint from outside.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Connection, func, select
from sqlalchemy.exc import DBAPIError

from ledger import tables
from ledger.artifacts import ArtifactStore, checked
from ledger.checkpoints import stated
from ledger.erasing import purged
from ledger.findings import RESTORE, Finding, Progress
from ledger.integrity import Logged, check_log_and_records
from ledger.notes import Checkpoint, NoteError, VerifierKey
from ledger.parts import check_parts
from ledger.reading import Reading, read_all, take_texts
from ledger.references import check_references
from ledger.rules import check_rules
from ledger.second import Second, Tell, in_two_processes
from ledger.triggers import trigger_problems
from ledger.unit_of_work import Ledger, UnitOfWork

__all__ = ["Finding", "check_artifacts", "check_records", "verify"]

_RESTORE_CHECKPOINT = "restore it: from Git, from the DVC remote, or from a backup of the ledger"
_RESTORE_ARTIFACT = "delete the local file to have it pulled again, or restore the DVC remote from a backup"

SECOND_PROCESS_FROM = 50_000
"""Events from which on `verify` starts a second process."""


def silent(_stage: str, _done: int, _total: int) -> None:
    """The progress of those who do not want to see any."""


def verify(
    ledger: Ledger,
    store: ArtifactStore,
    *,
    keys: Iterable[VerifierKey] = (),
    checkpoints: Mapping[str, str] | None = None,
    progress: Progress = silent,
    second_process_from: int = SECOND_PROCESS_FROM,
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
        second_process_from: From how many events on a second process checks half of it; it takes a second to start.

    Raises:
        LedgerError: The database refuses, or the second process ended before it was done.
    """
    with _opened(ledger, second_process_from) as (work, second):
        findings = check_records(work, keys=keys, checkpoints=checkpoints, progress=progress, second=second)
        artifacts = artifacts_of(work)
    return findings + check_artifacts(artifacts, store, progress=progress)


@contextmanager
def _opened(ledger: Ledger, second_process_from: int) -> Iterator[tuple[UnitOfWork, Second | None]]:
    with ledger.read() as work:
        size, url = work.log.size(), work.connection.engine.url
        if size < second_process_from:
            yield work, None
            return
    with in_two_processes(ledger, url, _check_in_second) as opened:
        yield opened


def check_records(
    work: UnitOfWork,
    *,
    keys: Iterable[VerifierKey] = (),
    checkpoints: Mapping[str, str] | None = None,
    rules: bool = True,
    progress: Progress = silent,
    second: Second | None = None,
) -> list[Finding]:
    """Check all that is in the ledger's database, see `verify`; without `rules`, whether it was written and not whether it
    should have been. A `second` process, which reads the same state, checks all but the log and the records."""
    connection = work.connection
    take_texts(connection, lenient=True)
    findings = [
        Finding(f"trigger {name}", f"it is {problem}", RESTORE)
        for name, problem in trigger_problems(connection).items()
    ]
    notes = _checkpoints(work, checkpoints or {}, tuple(keys), findings)
    rows = _Rows(connection, progress)
    if second is not None:
        second.begin({"rows": rows.add, "progress": progress})

    def on_rows(count: int) -> None:
        rows.add(count)
        if second is not None:
            second.listen()

    logged, found = read_all(
        connection,
        lambda reading: check_log_and_records(reading, roots_at={note.checkpoint.size for note in notes}),
        on_rows=on_rows,
    )
    more = second.result() if second is not None else _check_rest(connection, rows.add, progress, rules=rules)
    return list(dict.fromkeys([*findings, *found, *_compared(notes, logged), *more]))


def _check_in_second(connection: Connection, tell: Tell) -> list[Finding]:
    return _check_rest(connection, partial(tell, "rows"), partial(tell, "progress"), rules=True)


def _check_rest(
    connection: Connection, on_rows: Callable[[int], None], progress: Progress, *, rules: bool
) -> list[Finding]:
    """Check what does not need the log: parts, references, rules; about as much work as the log and the records."""

    def check(reading: Reading) -> None:
        check_parts(reading)
        check_references(reading)
        if rules:
            check_rules(reading, progress)

    return read_all(connection, check, on_rows=on_rows)[1]


class _Rows:
    """How many rows were read, by whichever process."""

    def __init__(self, connection: Connection, progress: Progress) -> None:
        self._done, self._total, self._progress = 0, 0, progress
        streamed = (tables.log_event, tables.log_node, *tables.RECORD_TABLES, *tables.PART_TABLES, tables.changeset)
        try:
            for table in streamed:
                self._total += connection.scalar(select(func.count()).select_from(table)) or 0
        except DBAPIError:
            return  # whoever reads that table says so

    def add(self, count: int) -> None:
        """Take note of more."""
        self._done += count
        self._progress("rows of the ledger", min(self._done, self._total), self._total)


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
    for done, ((path, _), problems) in enumerate(zip(artifacts, checked(store, artifacts), strict=True), 1):
        findings += [Finding(f"artifact {path}", problem, _RESTORE_ARTIFACT) for problem in problems]
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


def _compared(notes: Iterable[_Note], logged: Logged) -> Iterator[Finding]:
    """Compare checkpoints with the log."""
    for note in notes:
        size, root = note.checkpoint.size, note.checkpoint.root
        if size > logged.size:
            problem = f"the log had {size} events then and has {logged.size}: records were cut off its end"
            yield Finding(note.where, problem, RESTORE)
        elif logged.roots.get(size) != root:
            problem = f"the first {size} events of the log have another root now: the history was rewritten"
            yield Finding(note.where, problem, RESTORE)
