"""One reading of a ledger's tables by an audit: rows as they come, what is found, and what the database cannot read."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Select, Table, select
from sqlalchemy.exc import DBAPIError

from ledger.findings import RESTORE, Finding, name_of, partitions
from ledger.forms import rows_query
from ledger.repository import TABLE_OF, TEXT_OF

T = TypeVar("T")
_UNDECODABLE = "Could not decode to UTF-8"
_SQLITE_CACHE_KIB = 64 * 1024


class Undecodable(Exception):
    """A text column of SQLite holds bytes that are no text: read again with `lenient`, which is slower."""


class Reading:
    """What the checks of one process share."""

    def __init__(self, connection: Connection, *, on_rows: Callable[[int], None], lenient: bool = False) -> None:
        """Read in the transaction of a connection.

        Args:
            connection: It.
            on_rows: Told how many more rows were read.
            lenient: Whether the connection gives bytes that are no text as surrogates.
        """
        self.connection = connection
        self.findings: list[Finding] = []
        self._on_rows = on_rows
        self._lenient = lenient

    def partitions(self, statement: Select[Any]) -> Iterator[Sequence[tuple[Any, ...]]]:
        """Yield the rows of a query, some at a time, and tell how many."""
        for rows in partitions(self.connection, statement):
            yield rows
            self._on_rows(len(rows))

    def rows(self, statement: Select[Any]) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a query one by one, and tell how many."""
        for some in self.partitions(statement):
            yield from some

    def rows_with_text(self, kind: type) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of `rows_query(kind)`, where SQLite's texts are read side by side with the records, not looked up."""
        if self.connection.dialect.name != "sqlite" or self._lenient:
            yield from self.rows(rows_query(kind))
            return
        table, text = TABLE_OF[kind], TEXT_OF[kind]
        key, owner = table.c.id, next(iter(text.primary_key.columns))
        erased = (None,) * len(text.columns)
        for rows in self.partitions(select(table).order_by(key)):
            ids = [row[0] for row in rows if isinstance(row[0], str)] or [""]
            beside = select(text).where(owner.between(ids[0], ids[-1]))
            found = [row for some in partitions(self.connection, beside) for row in some]
            texts = {row[0]: row for row in found}  # the owner is the first column
            if len(texts) == len(found):
                yield from (row + texts.get(row[0], erased) for row in rows)
            else:  # some record has two texts, which its place in the log tells
                yield from self.rows(rows_query(kind).where(key.between(ids[0], ids[-1])))
                yield from (row + erased for row in rows if not isinstance(row[0], str))

    def find(self, where: str, problem: str, advice: str = RESTORE) -> None:
        """Take note of one thing that is wrong."""
        self.findings.append(Finding(where, problem, advice))

    def find_row(self, table: Table, row: Sequence[Any], problem: str) -> None:
        """Take note of what is wrong with a row whose first values are the columns of `table`."""
        self.find(name_of(table, list(table.columns), row), problem)

    def guard(self, name: str, check: Callable[[], None]) -> None:
        """Run a check; what the database cannot read is a finding, and the next check goes on.

        Raises:
            Undecodable: It met bytes that are no text, unless `lenient`.
        """
        try:
            check()
        except DBAPIError as error:
            if _UNDECODABLE in str(error.orig) and not self._lenient:
                raise Undecodable from error
            self.find(name, f"the database cannot read it: {' '.join(str(error.orig).split())}")


def read_all(
    connection: Connection, check: Callable[[Reading], T], *, on_rows: Callable[[int], None]
) -> tuple[T, list[Finding]]:
    """Run checks over a ledger and return their result and findings: with texts as they are, which is quick, and once
    more with spoilt bytes as surrogates if there are any."""
    _tune(connection)
    take_texts(connection, lenient=False)
    reading = Reading(connection, on_rows=on_rows)
    try:
        result = check(reading)
    except Undecodable:
        take_texts(connection, lenient=True)
        reading = Reading(connection, on_rows=on_rows, lenient=True)
        result = check(reading)
    take_texts(connection, lenient=True)
    return result, reading.findings


def take_texts(connection: Connection, *, lenient: bool) -> None:
    """Have SQLite give bytes that are no text as surrogates (`lenient`), so that a spoilt byte is a finding, not the end."""
    if connection.dialect.name == "sqlite":
        driver: Any = connection.connection.driver_connection
        driver.text_factory = (lambda raw: raw.decode(errors="surrogateescape")) if lenient else str


def _tune(connection: Connection) -> None:
    """Let the database expect what an audit does: it reads every row of every query."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"PRAGMA cache_size=-{_SQLITE_CACHE_KIB}")
    else:
        connection.exec_driver_sql("SET LOCAL cursor_tuple_fraction = 1")
