"""What an audit finds: one thing that is wrong, where it is, and what to do. And how rows are named and read for one."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Connection, Row, Select, Table

from ledger.records import Shown

Progress = Callable[[str, int, int], None]
"""Called as `progress(stage, done, total)`."""
RESTORE = "restore the ledger from a backup"
AT_ONCE = 5_000
"""Rows fetched at once: what a check holds in memory of a table."""


@dataclass(frozen=True, slots=True)
class Finding(Shown):
    """One thing that is wrong, where, and what to do."""

    where: str
    problem: str
    advice: str


def name_of(table: Table, columns: Sequence[Column[Any]], row: Sequence[Any]) -> str:
    """Name a row of a query for people: the table and its primary key, whatever that holds."""
    keys = [row[place] for place, column in enumerate(columns) if column.table is table and column.primary_key]
    return " ".join([table.name, *map(plain, keys)])


def plain(value: Any) -> str:
    """Return a text that can be printed, of whatever a column holds."""
    return str(value).encode(errors="backslashreplace").decode()


def partitions(connection: Connection, statement: Select[Any]) -> Iterator[Sequence[Row[Any]]]:
    """Yield the rows of a query, some at a time, without holding them all."""
    yield from connection.execute(statement, execution_options={"yield_per": AT_ONCE}).partitions()
