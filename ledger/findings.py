"""What an audit finds: one thing that is wrong, where it is, and what to do. And how rows are named and read for one."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from sqlalchemy import Column, Connection, Select, Table
from sqlalchemy.exc import DBAPIError

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


def partitions(connection: Connection, statement: Select[Any]) -> Iterator[list[tuple[Any, ...]]]:
    """Yield the rows of a query as plain tuples, some at a time, without holding them all.

    Straight from the driver: an audit reads every row there is, and making a `Row` of each takes as long as reading it.

    Raises:
        DBAPIError: The database refuses.
    """
    compiled, dialect = statement.compile(dialect=connection.dialect), connection.dialect
    driver: Any = connection.connection.driver_connection
    on_sqlite = dialect.name == "sqlite"
    values = [compiled.params[name] for name in compiled.positiontup or ()] if on_sqlite else compiled.params
    try:
        with closing(driver.cursor() if on_sqlite else driver.cursor(f"audit_{uuid4().hex}")) as cursor:
            cursor.execute(str(compiled), values)
            while rows := cursor.fetchmany(AT_ONCE):
                yield rows
    except dialect.loaded_dbapi.Error as error:
        raise DBAPIError(str(compiled), None, error) from error
