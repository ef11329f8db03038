"""Whether what names something names what is there: between tables, in JSON columns, in the index of what waits."""

import json
from collections.abc import Iterator
from typing import Any

from sqlalchemy import ColumnElement, Select, Table, and_, select

from ledger import repository, tables, waiting
from ledger.findings import name_of, partitions, plain
from ledger.reading import Reading


def check_references(reading: Reading) -> None:
    """Check the numbers of changesets, every reference of every table, and the index of what waits."""
    reading.guard("table changeset", lambda: _numbers(reading))
    for table in tables.metadata.sorted_tables:
        reading.guard(f"table {table.name}", lambda table=table: _of_table(reading, table))  # type: ignore[misc]
    reading.guard("table changeset", lambda: _named_in_json(reading))
    reading.guard("table waiting", lambda: _waiting(reading))


def _numbers(reading: Reading) -> None:
    table = tables.changeset
    numbers = list(reading.connection.scalars(select(table.c.number).order_by(table.c.sequence)))
    if numbers != list(range(1, len(numbers) + 1)):
        problem = f"the changesets are not numbered 1 to {len(numbers)} in the order of the log"
        reading.find("changeset numbers", f"{problem}: some were deleted or renumbered")


def _of_table(reading: Reading, table: Table) -> None:
    keys = list(table.primary_key.columns)
    for statement, problem in _broken(table):
        # the keys alone, and in the order of what refers: SQLite can read that from an index, and look up side by side
        for rows in partitions(reading.connection, statement.with_only_columns(*keys)):
            for row in rows:
                reading.find(name_of(table, keys, row), problem)


def _broken(table: Table) -> Iterator[tuple[Select[Any], str]]:
    """The rows of a table that name nothing that is there, each kind with what is wrong with it."""
    for key in table.foreign_keys:
        target = key.column.table.alias("target")
        lost = ~_exists(target, target.c[key.column.name] == key.parent)
        named = select(table).where(key.parent.is_not(None), lost).order_by(key.parent)
        yield named, f"{key.parent.name} names nothing that is in {key.column.table.name}"
    if table is tables.case_text:
        case = tables.changeset_case
        same = and_(case.c.changeset_id == table.c.changeset_id, case.c.position == table.c.position)
        yield select(table).where(~_exists(case, same)), "it is the text of no row of changeset_case"
    if table is tables.erasure:
        owners = (tables.correction.c.id, tables.quarantined.c.id, tables.changeset_change.c.sha256)
        unknown = [~_exists(owner.table, owner == table.c.ref) for owner in owners]
        yield select(table).where(*unknown), "nothing has the id that it erases"
    if table is tables.changeset_result:
        change = tables.changeset_change
        own = (change.c.changeset_id == table.c.changeset_id, change.c.sha256 == table.c.delta, change.c.removed == 0)
        wrong = select(table).where(table.c.status != "skipped", ~_exists(change, *own))
        yield wrong, "its delta is none that its changeset brings"


def _exists(table: Any, *conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    return select(1).select_from(table).where(*conditions).exists()


def _named_in_json(reading: Reading) -> None:
    """Whether the corrections that are named in JSON columns are there."""
    known = select(tables.correction.c.id)
    for table, column in ((tables.changeset, "reverted"), (tables.changeset_change, "dropped")):
        keys = list(table.primary_key.columns)
        statement = select(*keys, table.c[column]).where(table.c[column] != "[]")
        for rows in partitions(reading.connection, statement):
            named = [(row, identity) for row in rows for identity in _identities(row[-1])]
            wanted = {identity for _, identity in named}
            found = {r["id"] for r in repository.in_chunks(reading.connection, known, tables.correction.c.id, wanted)}
            for row, identity in named:
                if identity not in found:
                    problem = f"{column} names {plain(identity)[:64]}, which is not in correction"
                    reading.find(name_of(table, keys, row), problem)


def _identities(text: Any) -> list[str]:
    try:
        found = json.loads(text)
    except (TypeError, ValueError):
        return []  # said by the row's digest
    return [item for item in found if isinstance(item, str)] if isinstance(found, list) else []


def _waiting(reading: Reading) -> None:
    advice = 'run "nse reconcile"'
    for listed, _, sequence, identity in reading.connection.execute(waiting.difference()):
        problem = (
            f"lists correction {plain(identity)}, which does not wait"
            if listed
            else (f"lacks correction {plain(identity)}, which waits")
        )
        reading.find(f"waiting {plain(sequence)}", f"the index {problem}", advice)
