"""Rows from records and records from rows: inserts, and the queries that every reader shares.

It knows nothing of transactions (`unit_of_work`) and checks no rules (`policy`).
"""

import dataclasses
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import Column, ColumnElement, Connection, Double, Select, Table, delete, func, insert, select

from ledger import tables
from ledger.errors import LedgerError
from ledger.records import (
    ERASED,
    PARTS,
    CaseResult,
    CaseRow,
    Changeset,
    Correction,
    Decision,
    DeltaChange,
    Erasable,
    Erasure,
    Gate,
    HeadMove,
    KeyEvent,
    Metric,
    Part,
    PolicyAdopted,
    Quarantined,
    canonical_json,
    part_digest,
    subject_key,
)

T = TypeVar("T")
Row = Mapping[Any, Any]
"""A row, by column name."""
TABLE_OF: dict[type, Table] = {
    Correction: tables.correction,
    Quarantined: tables.quarantined,
    Changeset: tables.changeset,
    Decision: tables.decision,
    HeadMove: tables.head_move,
    KeyEvent: tables.key_event,
    PolicyAdopted: tables.policy,
    Erasure: tables.erasure,
}
TEXT_OF: dict[type, Table] = {
    Correction: tables.correction_text,
    Quarantined: tables.quarantined_text,
    CaseRow: tables.case_text,
}
PART_TABLE: dict[type, Table] = {
    DeltaChange: tables.changeset_change,
    CaseResult: tables.changeset_result,
    Metric: tables.changeset_metric,
    Gate: tables.changeset_gate,
    CaseRow: tables.changeset_case,
}
AT_ONCE = 5_000
"""Values in one IN: SQLite takes 32,766 variables, PostgreSQL 65,535."""


def leaf(table: Table, row: Row) -> bytes:
    """Return what the log hashes of a record: canonical JSON of its row under `event`, JSON columns as JSON.

    Erasable text is not in the row; of a changeset's parts the id holds the digests.
    """
    values = {c.name: json.loads(row[c.name]) if c.name in tables.JSON_COLUMNS else row[c.name] for c in table.columns}
    return canonical_json({"event": table.name, **values}).encode()


# --- writing


def insert_records(connection: Connection, records: Sequence[tuple[int, T]]) -> list[Row]:
    """Insert records of one kind, each with its sequence number; returns their rows."""
    kind = type(records[0][1])
    table = TABLE_OF[kind]
    rows: list[Row] = [_row(table, record, sequence=sequence) for sequence, record in records]
    connection.execute(insert(table), rows)
    for _, record in records:
        if isinstance(record, Changeset):
            _insert_parts(connection, record)
    if kind in TEXT_OF:
        owner = str(tables.TEXT_TABLES[TEXT_OF[kind]])
        connection.execute(insert(TEXT_OF[kind]), [_text_row(record, {owner: record.id}) for _, record in records])  # type: ignore[attr-defined]
    return rows


def _insert_parts(connection: Connection, changeset: Changeset) -> None:
    for name, kind in PARTS.items():
        parts: tuple[Part, ...] = getattr(changeset, name)
        keys = [{"changeset_id": changeset.id, "position": position} for position in range(len(parts))]
        if not parts:
            continue
        table = PART_TABLE[kind]
        rows = [_row(table, part, **key, row_digest=part_digest(part)) for part, key in zip(parts, keys, strict=True)]
        connection.execute(insert(table), rows)
        if kind in TEXT_OF:
            connection.execute(insert(TEXT_OF[kind]), [_text_row(p, k) for p, k in zip(parts, keys, strict=True)])


def _row(table: Table, record: Any, **more: Any) -> dict[str, Any]:
    row = {}
    for column in table.columns:
        value = more[column.name] if column.name in more else getattr(record, column.name)
        is_json = column.name in tables.JSON_COLUMNS
        row[column.name] = canonical_json(value) if is_json else tables.stored(value, column.type)
    return row


def _text_row(record: Any, key: Row) -> dict[str, Any]:
    row = {**key, "salt": record.salt, **{name: getattr(record, name) for name in record.erasable}}
    if isinstance(record, Correction):
        row["subject_key"] = subject_key(record.subject)
    if not isinstance(record, CaseRow):
        row["text_digest"] = record.text_digest()
    return row


# --- reading


def in_chunks(
    connection: Connection, statement: Select[Any], column: Column[Any], values: Collection[Any]
) -> Iterator[Any]:
    """Yield the rows of `statement` whose `column` is one of `values`, however many these are, as mappings."""
    for chunk in _chunks(values):
        yield from connection.execute(statement.where(column.in_(chunk))).mappings()


def owners(connection: Connection, kind: type, column: str, values: Collection[Any]) -> list[str]:
    """Return the ids of the records of `kind` whose text has one of `values` in `column`.

    Apart from the query for the records: of a join of the two SQLite would walk through all records first.
    """
    text = TEXT_OF[kind]
    owner = text.c[str(tables.TEXT_TABLES[text])]
    rows = in_chunks(connection, select(owner.label("owner")), text.c[column], values)
    return [row["owner"] for row in rows]


def _chunks(values: Collection[T]) -> Iterator[list[T]]:
    rest = iter(dict.fromkeys(values))
    while chunk := list(islice(rest, AT_ONCE)):
        yield chunk


def select_rows(connection: Connection, table: Table, *conditions: ColumnElement[bool]) -> list[Row]:
    """Return the rows of a table, records in the order of filing, parts in their own order."""
    order = [table.c.sequence] if "sequence" in table.c else list(table.primary_key.columns)
    statement = select(table).where(*conditions).order_by(*order)
    return [dict(row) for row in connection.execute(statement).mappings()]


def with_text(kind: type) -> Select[Any]:
    """Return the query for rows of `kind` with their text, NULL where it was erased."""
    table = TABLE_OF.get(kind)
    table = PART_TABLE[kind] if table is None else table
    if kind not in TEXT_OF:
        return select(table)
    text = TEXT_OF[kind]
    names = ("salt", *kind.erasable)  # type: ignore[attr-defined]
    joined: ColumnElement[bool]
    if kind is CaseRow:
        joined = (table.c.changeset_id == text.c.changeset_id) & (table.c.position == text.c.position)
    else:
        joined = table.c.id == text.c[str(tables.TEXT_TABLES[text])]
    return select(table, *(text.c[name] for name in names)).select_from(table.outerjoin(text, joined))


def select_records(connection: Connection, kind: type[T], *conditions: ColumnElement[bool]) -> list[T]:
    """Return the records of one kind in the order of filing.

    Raises:
        LedgerError: A row cannot be read as a record: it was changed past the triggers.
    """
    table = TABLE_OF[kind]
    rows = connection.execute(with_text(kind).where(*conditions).order_by(table.c.sequence)).mappings()
    return read_records(connection, kind, list(rows))


def read_records(connection: Connection, kind: type[T], rows: Sequence[Row]) -> list[T]:
    """Return the records of rows that `with_text` gave, of changesets with all their parts."""
    table = TABLE_OF[kind]
    if kind is not Changeset:
        return [record_of(kind, table, row) for row in rows]
    owners = [row["id"] for row in rows]
    parts: dict[str, dict[str, list[Any]]] = {name: parts_of(connection, PARTS[name], owners) for name in PARTS}
    made = []
    for row in rows:
        own = {name: tuple(of_changeset.get(row["id"], ())) for name, of_changeset in parts.items()}
        made.append(record_of(kind, table, {**row, **own}))
    return made


def parts_of(connection: Connection, kind: type[T], changesets: Collection[str]) -> dict[str, list[T]]:
    """Return the parts of one kind of each changeset, in order."""
    table = PART_TABLE[kind]
    found: dict[str, list[T]] = {}
    statement = with_text(kind).order_by(table.c.changeset_id, table.c.position)
    for row in in_chunks(connection, statement, table.c.changeset_id, changesets):
        found.setdefault(row["changeset_id"], []).append(record_of(kind, table, row))
    return found


def record_of(kind: type[T], table: Table, row: Row) -> T:
    """Return the record that a row holds.

    Raises:
        LedgerError: It holds none: it was changed past the triggers.
    """
    values = {}
    erased = issubclass(kind, Erasable) and row["salt"] is None
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]  # every kind is a dataclass
        value = row[field.name]
        if isinstance(value, bytes):
            raise _unreadable(table, row, f"{field.name} is not text")
        if field.name in tables.JSON_COLUMNS:
            value = json_value(table, row, field.name)
        elif field.name in table.c and isinstance(table.c[field.name].type, Double):
            value = math.nan if value is None else value
        elif field.name in ("passed", "removed"):
            value = bool(value)
        elif erased and field.name in ("salt", *kind.erasable):  # type: ignore[attr-defined]
            value = "" if field.name == "salt" else ERASED
        values[field.name] = value
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise _unreadable(table, row, str(error)) from error


def json_value(table: Table, row: Row, name: str) -> Any:
    """Return what a JSON column holds, arrays as tuples.

    Raises:
        LedgerError: It holds something else: it was changed past the triggers.
    """
    try:
        value = json.loads(row[name])
    except (TypeError, ValueError) as error:
        raise _unreadable(table, row, f"{name} is not JSON") from error
    if not isinstance(value, dict if name == "provenance" else list):
        raise _unreadable(table, row, f"{name} has another shape")
    return value if name == "provenance" else tuple(value)


def _unreadable(table: Table, row: Row, problem: str) -> LedgerError:
    return LedgerError(f"row {tables.row_name(table, row)} cannot be read ({problem})", 'run "nse verify"')


# --- the index of what waits


def wait(connection: Connection, corrections: Sequence[tuple[int, Correction]]) -> None:
    """Put corrections, each with its sequence number, into the index of what waits."""
    rows = [{"model": c.model, "sequence": sequence, "correction_id": c.id} for sequence, c in corrections]
    connection.execute(insert(tables.waiting), rows)


def settle(connection: Connection, corrections: Collection[str], *, superseded: bool) -> None:
    """Take corrections out of the index of what waits; with `superseded`, also those that they supersede, through others too."""
    table, found = tables.correction, set(corrections)
    last = found if superseded else set()
    while last:
        earlier = in_chunks(
            connection, select(table.c.supersedes).where(table.c.supersedes.is_not(None)), table.c.id, last
        )
        last = {row["supersedes"] for row in earlier} - found
        found |= last
    for chunk in _chunks(found):
        connection.execute(delete(tables.waiting).where(tables.waiting.c.correction_id.in_(chunk)))


def last_sequence(connection: Connection) -> int:
    """Return the number of the last event of the log, 0 when it is empty."""
    return connection.scalar(select(func.max(tables.log_event.c.sequence))) or 0


def last_time(connection: Connection) -> str | None:
    """Return the time that the last event of the log names, None when the log is empty."""
    event, last = tables.log_event, last_sequence(connection)
    kind = connection.scalar(select(event.c.kind).where(event.c.sequence == last))
    if kind not in tables.TIME_OF:
        return None
    column = tables.TIME_OF[kind]
    return connection.scalar(select(column).where(column.table.c.sequence == last))
