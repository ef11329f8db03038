"""A record with its place in the log: what came before what is decided by the log, never by clocks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, Connection

from ledger import repository

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Placed(Generic[T]):
    """A record, and its sequence number in the log."""

    place: int
    record: T


def read_placed(connection: Connection, kind: type[T], *conditions: ColumnElement[bool]) -> list[Placed[T]]:
    """Return the records of one kind, each with its place, in order.

    Raises:
        LedgerError: A row cannot be read as a record: it was changed past the triggers.
    """
    table = repository.TABLE_OF[kind]
    statement = repository.with_text(kind).where(*conditions).order_by(table.c.sequence)
    rows: list[dict[str, Any]] = [dict(row) for row in connection.execute(statement).mappings()]
    records = repository.read_records(connection, kind, rows)
    return [Placed(row["sequence"], record) for row, record in zip(rows, records, strict=True)]


def before(records: Iterable[Placed[T]], place: int | None) -> Sequence[Placed[T]]:
    """Return those before a place of the log; all of them if it is None, the end."""
    return [placed for placed in records if place is None or placed.place < place]
