"""Whether the erasable text beside a row is the one whose salted hash the row holds, or was erased on the record."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from sqlalchemy import Table, select

from ledger import repository, tables
from ledger.findings import plain
from ledger.forms import Shape, Unreadable, query_columns, said_form, text_form
from ledger.reading import Reading
from ledger.records import CaseRow, Correction, Erasable, subject_key


def text_check(
    reading: Reading, kind: type[Erasable], erased: Collection[str]
) -> Callable[[Sequence[Any], Shape], None]:
    """Return how to compare the text beside a row with the row's salted hash, and what is derived from the text with it.

    Args:
        reading: Where what is wrong is noted.
        kind: Of the rows: those of `forms.rows_query`.
        erased: What the erasures of the ledger name.
    """
    columns, table = query_columns(kind), repository.TEXT_OF[kind]
    names = [(column.table, column.name) for column in columns]
    owner_table = (repository.TABLE_OF | repository.PART_TABLE)[kind]

    def place(of: Table, name: str) -> int:
        return names.index((of, name))

    form, hash_at = text_form(kind), place(owner_table, "text_hash")
    # what an erasure names, and whether there is a text row
    ref_at = place(owner_table, "case_id" if kind is CaseRow else "id")
    there_at = place(table, next(iter(table.primary_key.columns)).name)
    keys = [place(owner_table, column.name) for column in owner_table.primary_key.columns]
    said = None if kind is CaseRow else (said_form(kind), place(table, "text_digest"))  # type: ignore[arg-type]
    key_at = (place(table, "subject"), place(table, "subject_key")) if kind is Correction else None

    def problem_of(row: Sequence[Any], shape: Shape) -> str | None:
        there = row[there_at] is not None
        if row[ref_at] in erased:
            return "its erasure is recorded, and the text is still there" if there else None
        if not there:
            return "the text is gone, and no erasure says so"
        try:
            if form.digest(row, shape) != row[hash_at]:
                return "the text is not the one whose salted hash was recorded"
            if key_at is not None and subject_key(row[key_at[0]]) != row[key_at[1]]:
                return "the subject_key is not that of the subject"
            if said is not None and said[0].digest(row, shape) != row[said[1]]:
                return "the text_digest is not that of the text"
        except Unreadable as error:
            return f"the row was changed: {error}"
        return None

    def check(row: Sequence[Any], shape: Shape) -> None:
        problem = problem_of(row, shape)
        if problem is not None:
            reading.find(" ".join([table.name, *(plain(row[key]) for key in keys)]), problem)

    return check


def erased_refs(reading: Reading) -> frozenset[str]:
    """Return what the erasures of the ledger name."""
    found: set[str] = set()
    reading.guard("table erasure", lambda: found.update(reading.connection.scalars(select(tables.erasure.c.ref))))
    return frozenset(found)
