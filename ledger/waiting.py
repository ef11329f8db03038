"""The index of what waits, derived again from the records: to compare it (`verify`), or to make it anew.

A correction waits until a changeset that wrote it, or one that supersedes it, is applied; until a changeset that wrote it
is rejected; or until it is erased. `repository.wait` and `repository.settle` keep the index as records are written.
"""

from typing import Any

from sqlalchemy import ColumnElement, CompoundSelect, Select, delete, except_, insert, literal, select, union_all

from ledger import tables
from ledger.repository import AT_ONCE
from ledger.unit_of_work import UnitOfWork

_INDEX = (tables.waiting.c.model, tables.waiting.c.sequence, tables.waiting.c.correction_id)


def derived() -> Select[Any]:
    """Return the query for what the index has to hold: model, sequence and id of every correction that waits."""
    correction, of_waiting = tables.correction, _columns()
    replaced = select(correction.c.supersedes.label("id")).where(correction.c.supersedes.is_not(None), _applied())
    replaced_by_applied = replaced.cte("replaced", recursive=True)
    earlier = select(correction.c.supersedes).join(replaced_by_applied, replaced_by_applied.c.id == correction.c.id)
    replaced_by_applied = replaced_by_applied.union(earlier.where(correction.c.supersedes.is_not(None)))
    erased = select(1).where(tables.erasure.c.ref == correction.c.id).exists()
    # EXCEPT for what may be many ids without an index: of NOT IN PostgreSQL makes a loop once they do not fit its memory
    waits = except_(
        select(*of_waiting).where(~_applied(), ~_rejected(), ~erased),
        select(*of_waiting).join(replaced_by_applied, replaced_by_applied.c.id == correction.c.id),
    )
    return select(waits.subquery())


def _columns() -> tuple[Any, ...]:
    return tables.correction.c.model, tables.correction.c.sequence, tables.correction.c.id


def _applied() -> ColumnElement[bool]:
    result, move = tables.changeset_result, tables.head_move
    joined = select(1).select_from(result.join(move, move.c.changeset_id == result.c.changeset_id))
    return joined.where(result.c.correction_id == tables.correction.c.id).exists()


def _rejected() -> ColumnElement[bool]:
    result, decision = tables.changeset_result, tables.decision
    joined = select(1).select_from(result.join(decision, decision.c.changeset_id == result.c.changeset_id))
    return joined.where(result.c.correction_id == tables.correction.c.id, decision.c.verdict == "reject").exists()


def difference() -> CompoundSelect[Any]:
    """Return the query for what is wrong with the index: 1 and a row that it should not have, or 0 and one that it lacks."""
    waits = derived().cte("waits")
    listed, right = select(*_INDEX), select(waits)
    surplus, lacking = except_(listed, right).subquery(), except_(right, listed).subquery()
    return union_all(select(literal(1).label("listed"), surplus), select(literal(0).label("listed"), lacking))


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
