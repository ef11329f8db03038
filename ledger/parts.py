"""Whether the parts of changesets are those that were written: every digest and salted hash, and the ids of the changesets.

Tables are streamed; what is kept is some hundred bytes a changeset.
"""

import hashlib
from collections import defaultdict

from sqlalchemy import select

from ledger import repository, tables
from ledger.forms import Shapes, Unreadable, identity_form, part_form, query_columns, rows_query, shape_of
from ledger.integrity import check_identity
from ledger.reading import Reading
from ledger.records import PARTS, CaseRow, Changeset
from ledger.texts import erased_refs, text_check

_NO_PARTS = hashlib.sha256(b"").hexdigest()
_CHANGED = "the row was changed"
Digests = dict[str, dict[str, str]]
"""Of each changeset, the digest of all its parts of one name."""


def check_parts(reading: Reading) -> None:
    """Check every row of every table of parts, and that each changeset has the parts its id covers."""
    erased, digests = erased_refs(reading), defaultdict[str, dict[str, str]](dict)
    for name, kind in PARTS.items():
        table = repository.PART_TABLE[kind].name
        reading.guard(f"table {table}", lambda n=name, k=kind: _part_table(reading, n, k, erased, digests))  # type: ignore[misc]
    reading.guard("table changeset", lambda: _identities(reading, digests))


def _part_table(reading: Reading, name: str, kind: type, erased: frozenset[str], digests: Digests) -> None:
    table, columns, shape_of_row = repository.PART_TABLE[kind], query_columns(kind), Shapes()
    form, stored = part_form(kind), [column.name for column in columns].index("row_digest")
    check_text = text_check(reading, kind, erased) if kind is CaseRow else None
    owner, expected = None, 0
    written: list[str] = []
    for row in reading.rows(rows_query(kind).order_by(table.c.changeset_id, table.c.position)):
        if row[0] != owner:
            _keep(digests, owner, name, written)
            owner, expected, written = row[0], 0, []
        if row[1] != expected:
            reading.find_row(table, row, f"it stands where position {expected} belongs")
        expected += 1
        shape = shape_of_row(row)
        try:
            digest = form.digest(row, shape)
        except Unreadable as error:
            digest = ""
            reading.find_row(table, row, f"{_CHANGED}: {error}")
        if digest and digest != row[stored]:
            reading.find_row(table, row, f"{_CHANGED}: it does not match its digest")
        written.append(digest)
        if check_text is not None:
            check_text(row, shape)
    _keep(digests, owner, name, written)


def _keep(digests: Digests, owner: str | None, name: str, written: list[str]) -> None:
    if owner is not None:
        digests[owner][name] = hashlib.sha256("".join(written).encode()).hexdigest()


def _identities(reading: Reading, digests: Digests) -> None:
    form = identity_form(Changeset)
    for changeset in reading.rows(select(tables.changeset)):
        parts = digests.get(changeset[0], {})
        row = (*changeset, *(parts.get(name, _NO_PARTS) for name in PARTS))
        more = ": a part was changed, added or removed"
        check_identity(reading, tables.changeset, form, row, shape_of(row), more)
