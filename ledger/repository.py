"""Rows from records and records from rows: the only module with queries and inserts.

It knows nothing of transactions (`unit_of_work`) and checks no rules (`policy`).
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Float, Table, func, insert, select

from ledger import tables
from ledger.errors import LedgerError
from ledger.records import (
    ActiveDelta,
    CaseResult,
    CaseRow,
    Changeset,
    Correction,
    Decision,
    Gate,
    HeadMove,
    Metric,
    Quarantined,
    Record,
    canonical_json,
)

T = TypeVar("T")
TABLE_OF: dict[type, Table] = {
    Correction: tables.correction,
    Quarantined: tables.quarantined,
    Changeset: tables.changeset,
    Decision: tables.decision,
    HeadMove: tables.head_move,
}
# The tuples of a changeset that have a table of their own: field name -> (class, table).
PARTS: dict[str, tuple[type, Table]] = {
    "active": (ActiveDelta, tables.changeset_delta),
    "results": (CaseResult, tables.changeset_result),
    "metrics": (Metric, tables.changeset_metric),
    "gates": (Gate, tables.changeset_gate),
    "cases": (CaseRow, tables.changeset_case),
}


def insert_record(connection: Connection, record: Record, sequence: int) -> None:
    """Insert a record as the `sequence`-th of the ledger; of a changeset, the rows of its parts too."""
    _insert(connection, TABLE_OF[type(record)], [{**_fields(record), "sequence": sequence}])
    if isinstance(record, Changeset):
        for name, (_, table) in PARTS.items():
            key = {"changeset_id": record.id}
            parts = enumerate(getattr(record, name))
            _insert(connection, table, [{**_fields(part), **key, "position": position} for position, part in parts])


def _fields(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def _insert(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    values = []
    for row in rows:
        value = {
            column.name: canonical_json(row[column.name])
            if column.name in tables.JSON_COLUMNS
            else tables.stored(row[column.name], column.type)
            for column in table.columns
            if column.name != "row_digest"
        }
        values.append({**value, "row_digest": tables.row_digest(table, value)})
    if values:
        connection.execute(insert(table), values)


def select_rows(connection: Connection, table: Table, *conditions: ColumnElement[bool]) -> list[Mapping[str, Any]]:
    """Return the rows of a table, records in the order of filing, parts in their own order."""
    order = [table.c.sequence] if "sequence" in table.c else list(table.primary_key.columns)
    statement = select(table).where(*conditions).order_by(*order)
    return [dict(row) for row in connection.execute(statement).mappings()]


def select_records(connection: Connection, kind: type[T], *conditions: ColumnElement[bool]) -> list[T]:
    """Return the records of one kind in the order of filing."""
    return [record for _, record in select_numbered(connection, kind, *conditions)]


def select_numbered(connection: Connection, kind: type[T], *conditions: ColumnElement[bool]) -> list[tuple[int, T]]:
    """Return the records of one kind, each with its sequence number.

    Raises:
        LedgerError: A row cannot be read as a record: it was changed past the triggers.
    """
    table = TABLE_OF[kind]
    rows = select_rows(connection, table, *conditions)
    if kind is not Changeset:
        return [(row["sequence"], _record(kind, table, row)) for row in rows]
    parts = {name: _parts(connection, name, conditions) for name in PARTS}
    made = []
    for row in rows:
        own = {name: tuple(of_changeset.get(row["id"], ())) for name, of_changeset in parts.items()}
        made.append((row["sequence"], _record(kind, table, {**row, **own})))
    return made


def _parts(connection: Connection, name: str, conditions: Sequence[ColumnElement[bool]]) -> dict[str, list[Any]]:
    kind, table = PARTS[name]
    wanted = select(tables.changeset.c.id).where(*conditions)
    found: dict[str, list[Any]] = {}
    for row in select_rows(connection, table, table.c.changeset_id.in_(wanted)):
        found.setdefault(row["changeset_id"], []).append(_record(kind, table, row))
    return found


def _record(kind: type[T], table: Table, row: Mapping[str, Any]) -> T:
    values = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]  # every kind is a dataclass
        value = row[field.name]
        if isinstance(value, bytes):
            raise _unreadable(table, row, f"{field.name} is not text")
        if field.name in tables.JSON_COLUMNS:
            value = _from_json(table, row, field.name)
        elif field.name in table.c and isinstance(table.c[field.name].type, Float):
            value = math.nan if value is None else value
        elif field.name == "passed":
            value = bool(value)
        values[field.name] = value
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise _unreadable(table, row, str(error)) from error


def _from_json(table: Table, row: Mapping[str, Any], name: str) -> Any:
    try:
        value = json.loads(row[name])
    except (TypeError, ValueError) as error:
        raise _unreadable(table, row, f"{name} is not JSON") from error
    if not isinstance(value, dict if name == "provenance" else list):
        raise _unreadable(table, row, f"{name} has another shape")
    return value if name == "provenance" else tuple(value)


def _unreadable(table: Table, row: Mapping[str, Any], problem: str) -> LedgerError:
    return LedgerError(f"row {tables.row_name(table, row)} cannot be read ({problem})", 'run "nse verify"')


def last_sequence(connection: Connection) -> int:
    """Return the number of the last record of the ledger, 0 when it is empty."""
    return max(connection.scalar(select(func.max(table.c.sequence))) or 0 for table in tables.RECORD_TABLES)
