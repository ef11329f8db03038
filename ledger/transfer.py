"""A whole ledger as files, and files as a ledger in any database: with the same events, ids, numbers and root.

`events.jsonl` has a line for each event of the log: its leaf, its erasable text unless that was erased, and of a changeset
the parts. `statements.jsonl` has a signed statement for each changeset in force (`statements`), `checkpoints/` the signed
checkpoints, `export.json` the number of events and the root of the log.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import Table, func, insert, select

from ledger import tables
from ledger.audit import check_records, silent
from ledger.checkpoints import FOLDER, CheckpointFolder, SignedCheckpoint
from ledger.errors import LedgerError
from ledger.findings import Progress
from ledger.lines import AT_ONCE, LineError, LineReader, lines_of
from ledger.notes import VerifierKey
from ledger.persons import Signer
from ledger.records import Shown
from ledger.statements import moves_by_changeset, sealed, statement_of
from ledger.unit_of_work import Ledger, UnitOfWork
from ledger.waiting import rebuild_waiting

FORMAT = "nse.export/v1"
EVENTS, STATEMENTS, SUMMARY = "events.jsonl", "statements.jsonl", "export.json"
_WRONG = "the export was changed or is damaged: make it again"


class TransferError(LedgerError):
    """An export cannot be written, or is not what a ledger wrote."""


@dataclass(frozen=True, slots=True)
class Exported(Shown):
    """What was exported or imported."""

    events: int
    root: str
    statements: int


# --- out


def export_ledger(
    work: UnitOfWork,
    folder: Path,
    *,
    signer: Signer | None = None,
    keys: Sequence[VerifierKey] = (),
    progress: Progress = silent,
) -> Exported:
    """Write a ledger into a new or empty folder.

    Args:
        work: The ledger.
        folder: Where to.
        signer: The key of the log; without it the statements are not signed.
        keys: The keys that checkpoints are signed with, for those who read the export.
        progress: Told how far it is.

    Raises:
        TransferError: The folder holds something, or a row is not what the log recorded.
    """
    if folder.exists() and any(folder.iterdir()):
        raise TransferError(f"{folder} is not empty", "name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    size = work.log.size()
    with (folder / EVENTS).open("w", encoding="utf-8", newline="\n") as file:
        for done, line in enumerate(lines_of(work, size), 1):
            file.write(f"{line}\n")
            if done % AT_ONCE == 0 or done == size:
                progress("events", done, size)
    moves = moves_by_changeset(work)
    with (folder / STATEMENTS).open("w", encoding="utf-8", newline="\n") as file:
        for done, move in enumerate(moves, 1):
            file.write(f"{sealed(statement_of(work, move), signer)}\n")
            progress("statements", done, len(moves))
    kept, table = CheckpointFolder(folder / FOLDER), tables.checkpoint
    for row in work.connection.execute(select(table).order_by(table.c.size)):
        for key in keys:
            kept.keep(SignedCheckpoint(row.size, row.note), key)
    exported = Exported(size, work.log.root(size).hex(), len(moves))
    summary = {"format": FORMAT, **exported.to_dict()}
    (folder / SUMMARY).write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return exported


# --- in


def import_ledger(
    ledger: Ledger, folder: Path, *, keys: Iterable[VerifierKey] = (), progress: Progress = silent
) -> Exported:
    """Read an export into an empty ledger, all of it or nothing; every event is checked, and what came of them.

    Args:
        ledger: An empty one.
        folder: The export.
        keys: Those that sign the log's checkpoints; without any, those that the export names.
        progress: Told how far it is.

    Raises:
        TransferError: The ledger is not empty, or the export is not what a ledger wrote; the line is named.
    """
    summary, kept = _summary(folder), CheckpointFolder(folder / FOLDER)
    with ledger.begin() as work:
        for table in tables.metadata.sorted_tables:
            if work.connection.scalar(select(func.count()).select_from(table)):
                raise TransferError(f"the ledger is not empty: {table.name} has rows", "import into a new one")
        count, root = _read_events(work, folder / EVENTS, summary.events, progress)
        if (count, root) != (summary.events, summary.root):
            problem = f"{EVENTS} has {count} events with root {root}"
            raise TransferError(f"{problem}, {SUMMARY} says {summary.events} with root {summary.root}", _WRONG)
        rebuild_waiting(work)
        notes = kept.notes()
        if notes:
            rows = [{"size": int(name.removesuffix(".note")), "note": note} for name, note in notes.items()]
            work.connection.execute(insert(tables.checkpoint), rows)
        findings = check_records(work, keys=tuple(keys) or kept.keys(), rules=False, progress=progress)
        if findings:
            more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
            raise TransferError(f"the export is not sound: {findings[0].where}: {findings[0].problem}{more}", _WRONG)
    return summary


def _read_events(work: UnitOfWork, path: Path, expected: int, progress: Progress) -> tuple[int, str]:
    """Write the events of a file into an empty ledger; returns their number and the root over them."""
    reader = LineReader()
    try:
        with path.open("rb") as file:
            while lines := list(islice(file, AT_ONCE)):
                rows: dict[Table, list[dict[str, Any]]] = {table: [] for table in tables.metadata.sorted_tables}
                events = [reader.read(line.decode(), rows) for line in lines]
                for table, some in rows.items():  # in the order in which they refer to one another
                    if some:
                        work.connection.execute(insert(table), some)
                work.log.append(events)
                progress("events", reader.line, max(expected, reader.line))
    except OSError as error:
        raise TransferError(f"cannot read {path} ({error.strerror})", "name the folder of an export") from error
    except (LineError, UnicodeDecodeError) as error:
        raise TransferError(f"{path.name} line {reader.line}: {error}", _WRONG) from error
    for ref, line in reader.textless.items():
        if ref not in reader.erased:
            raise TransferError(f"{path.name} line {line}: the text is gone, and no erasure says so", _WRONG)
    return reader.line, work.log.root().hex()


def _summary(folder: Path) -> Exported:
    path = folder / SUMMARY
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        if said.pop("format") != FORMAT:
            raise ValueError("it has another format")
        return Exported(int(said["events"]), str(said["root"]), int(said["statements"]))
    except OSError as error:
        raise TransferError(f"cannot read {path} ({error.strerror})", "name the folder of an export") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise TransferError(f"{path} is not what an export says ({error})", _WRONG) from error
