"""A row for every table, made from the tables alone: for tests of what a database refuses, whatever the row says."""

from typing import Any

from sqlalchemy import Connection, Engine, Integer, Table, func, insert, select

from ledger.database import transaction
from ledger.tables import JSON_COLUMNS, metadata


def row(table: Table, number: int = 1) -> dict[str, Any]:
    """Return row `number` of a table: every id is `id-NUMBER`, whatever refers to another table refers to its row."""
    values: dict[str, Any] = {}
    for column in table.columns:
        to = {key.column.table for key in column.foreign_keys}
        if to:
            values[column.name] = None if to == {table} else f"id-{number}"
        elif column.name in JSON_COLUMNS:
            values[column.name] = "[]"
        elif column.name in ("id", "case_id"):
            values[column.name] = f"id-{number}"
        elif column.name == "at" or column.name.endswith("_at"):
            values[column.name] = f"2026-11-21T09:00:{number % 60:02}Z"
        elif isinstance(column.type, Integer):
            values[column.name] = number
        else:
            values[column.name] = 0.5 if column.type.python_type is float else f"{column.name} {number} ☃ 'x"
    return values


def fill(engine: Engine, number: int = 1) -> None:
    """Put row `number` into every table, in one transaction."""
    with transaction(engine, write=True) as connection:
        for table in metadata.sorted_tables:
            connection.execute(insert(table), row(table, number))


def counts(connection: Connection) -> dict[str, int]:
    """Return how many rows each table has."""
    return {
        table.name: connection.scalar(select(func.count()).select_from(table)) or 0 for table in metadata.sorted_tables
    }
