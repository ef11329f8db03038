"""The index of what waits, derived again from the records: to compare it (`verify`), or to make it anew.

A correction waits until a changeset that wrote it, or one that supersedes it, is applied; until a changeset that wrote it
is rejected; or until it is erased. `repository.wait` and `repository.settle` keep the index as records are written.
"""

from typing import Any

from sqlalchemy import CompoundSelect, Select, delete, except_, insert, select

from ledger import tables
from ledger.repository import AT_ONCE
from ledger.unit_of_work import UnitOfWork

_INDEX = (tables.waiting.c.model, tables.waiting.c.sequence, tables.waiting.c.correction_id)


def derived() -> Select[Any]:
    """Return the query for what the index has to hold: model, sequence and id of every correction that waits."""
    correction, result = tables.correction, tables.changeset_result
    of_applied = select(result.c.correction_id.label("id")).join(
        tables.head_move, tables.head_move.c.changeset_id == result.c.changeset_id
    )
    applied = of_applied.cte("applied", recursive=True)
    earlier = select(correction.c.supersedes).join(applied, applied.c.id == correction.c.id)
    applied = applied.union(earlier.where(correction.c.supersedes.is_not(None)))
    rejected = select(result.c.correction_id).join(
        tables.decision, tables.decision.c.changeset_id == result.c.changeset_id
    )
    waits = except_(  # not NOT IN, which PostgreSQL makes a loop of once the ids do not fit its working memory
        select(correction.c.id),
        select(applied.c.id),
        rejected.where(tables.decision.c.verdict == "reject"),
        select(tables.erasure.c.ref),
    ).subquery()
    return select(correction.c.model, correction.c.sequence, correction.c.id).join(waits, waits.c.id == correction.c.id)


def lacking() -> CompoundSelect[Any]:
    """Return the query for the rows that the index lacks."""
    return except_(derived(), select(*_INDEX))


def surplus() -> CompoundSelect[Any]:
    """Return the query for the rows that the index should not have."""
    return except_(select(*_INDEX), derived())


def rebuild_waiting(work: UnitOfWork) -> tuple[int, int]:
    """Make the index what the records say; returns how many rows were put in and how many taken out.

    It reads every record that settles a correction: half a minute for a million of them.
    """
    connection, table = work.connection, tables.waiting
    out = list(connection.execute(surplus()))
    for start in range(0, len(out), AT_ONCE):
        numbers = [row.sequence for row in out[start : start + AT_ONCE]]
        connection.execute(delete(table).where(table.c.sequence.in_(numbers)))
    rows = [{"model": model, "sequence": sequence, "correction_id": i} for model, sequence, i in
            connection.execute(lacking())]  # fmt: skip
    if rows:
        connection.execute(insert(table), rows)
    return len(rows), len(out)
