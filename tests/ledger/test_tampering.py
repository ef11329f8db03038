"""Whatever was changed past the triggers, in any column of any table, is found, and the row is named."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Double, Engine, Integer, Table, event, func, insert, select, text, update

from ledger import merkle, repository, tables
from ledger.audit import check_records
from ledger.checkpoints import at_size
from ledger.database import engine_of
from ledger.findings import Finding
from ledger.log import Log, LogEvent
from ledger.tables import metadata
from ledger.unit_of_work import UnitOfWork
from tests.ledger.attack import last, strip, where_is
from tests.ledger.history import LOG, full_history

COLUMNS = [(table.name, column.name) for table in metadata.sorted_tables for column in table.columns]


@dataclass(frozen=True)
class Attacked:
    """A ledger, somebody who can do anything to it, and what was kept outside."""

    engine: Engine
    outside: dict[str, str]

    @contextmanager
    def attack(self, *names: str) -> Iterator[Connection]:
        """Let the block change some tables past their triggers and constraints; nothing of it remains."""
        with self.engine.execution_options(ledger_write=True).connect() as connection:
            for name in names:
                strip(connection, metadata.tables[name])
            yield connection
            connection.rollback()

    def findings(self, connection: Connection, *, outside: bool = False) -> list[Finding]:
        """Return what an audit of the records finds, less what it says of the triggers that the attack took away."""
        work = UnitOfWork(connection, new_salt=str)
        checkpoints = self.outside if outside else {}
        found = check_records(work, keys=[LOG.key], checkpoints=checkpoints)
        return [finding for finding in found if not finding.where.startswith("trigger ")]


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def attacked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    if request.param == "postgres":
        url = request.getfixturevalue("postgres").new_url()
    else:
        url = f"sqlite:///{tmp_path_factory.mktemp('attacked') / 'ledger.db'}"
    history = full_history(url)
    with history.ledger.read() as work:
        size = work.log.size() - 2
        note = at_size(work, size)
    assert note is not None
    engine = engine_of(url)
    if request.param == "sqlite":
        for pragma in ("foreign_keys=OFF", "legacy_alter_table=ON"):  # the second leaves views alone
            event.listen(engine, "connect", lambda connection, _, p=pragma: connection.execute(f"PRAGMA {p}"))
    yield Attacked(engine, {f"{size}.note": note.note})
    engine.dispose()


def named(findings: list[Finding], *names: str) -> bool:
    said = "\n".join(f"{finding.where}\n{finding.problem}" for finding in findings)
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", said) for name in names)


def test_a_ledger_nobody_touched_has_no_findings(attacked: Attacked) -> None:
    with attacked.attack() as connection:
        assert attacked.findings(connection, outside=True) == []


@pytest.mark.parametrize(("table_name", "column_name"), COLUMNS)
def test_one_changed_value_in_any_column_of_any_table_is_found_and_its_row_named(
    attacked: Attacked, table_name: str, column_name: str
) -> None:
    table = metadata.tables[table_name]
    column = table.c[column_name]
    with attacked.attack(table_name) as connection:
        row = last(connection, table)
        old = row[column_name]
        number = isinstance(column.type, Integer | Double)
        new = (old or 0) + 1000 if number else (old or "") + "x"
        connection.execute(update(table).where(*where_is(table, row)).values({column_name: new}))
        found = attacked.findings(connection)
    assert named(found, tables.row_name(table, row), tables.row_name(table, {**row, column_name: new})), found


def spoilt_values() -> Iterator[tuple[str, str, str]]:
    """Yield what the columns of SQLite can be made to hold beside what they should."""
    for table in metadata.sorted_tables:
        for column in table.columns:
            yield table.name, column.name, "NULL"
            number = isinstance(column.type, Integer | Double)
            other = "-1e300" if number else "'[{'" if column.name in tables.JSON_COLUMNS else "CAST(x'41ff42' AS TEXT)"
            yield table.name, column.name, other if hash_of(table.name, column.name) % 2 else "x'ff00'"


def hash_of(*names: str) -> int:
    return sum(map(ord, "".join(names)))


@pytest.mark.parametrize(("table_name", "column_name", "spoilt"), list(spoilt_values()))
@pytest.mark.parametrize("attacked", ["sqlite"], indirect=True)
def test_whatever_a_value_is_spoilt_to_verification_goes_on_to_its_end(
    attacked: Attacked, table_name: str, column_name: str, spoilt: str
) -> None:
    table = metadata.tables[table_name]
    with attacked.attack(table_name) as connection:
        row = last(connection, table)
        where = " AND ".join(f"{column.name} = :{column.name}" for column in table.primary_key.columns)
        keys = {column.name: row[column.name] for column in table.primary_key.columns}
        changed = f"{column_name} IS NOT {spoilt}"
        statement = f"UPDATE {table_name} SET {column_name} = {spoilt} WHERE {where} AND {changed}"
        if not connection.execute(text(statement), keys).rowcount:
            return  # it was that before
        connection.execute(text("DROP TRIGGER IF EXISTS policy_refuse_delete"))  # and something else is wrong besides
        work = UnitOfWork(connection, new_salt=str)
        found = check_records(work, keys=[LOG.key])
    # a part whose owner was spoilt belongs to nobody: its changeset lacks it
    names = [table_name, f"changeset {row['changeset_id']}"] if "changeset_id" in row else [table_name]
    assert named([finding for finding in found if not finding.where.startswith("trigger ")], *names), found
    assert named(found, "trigger policy_refuse_delete")


@pytest.mark.parametrize("table_name", [table.name for table in metadata.sorted_tables])
@pytest.mark.parametrize("attacked", ["postgres"], indirect=True)
def test_a_null_in_postgresql_is_found_as_well(attacked: Attacked, table_name: str) -> None:
    table = metadata.tables[table_name]
    for column in table.columns:
        with attacked.attack(table_name) as connection:
            row = last(connection, table)
            if column.primary_key or row[column.name] is None:
                continue
            connection.execute(update(table).where(*where_is(table, row)).values({column.name: None}))
            assert named(attacked.findings(connection), tables.row_name(table, row)), column.name


@pytest.mark.parametrize("table_name", [table.name for table in metadata.sorted_tables])
def test_a_deleted_row_is_missed(attacked: Attacked, table_name: str) -> None:
    table = metadata.tables[table_name]
    with attacked.attack(table_name) as connection:
        row = last(connection, table)
        connection.execute(table.delete().where(*where_is(table, row)))
        found = attacked.findings(connection, outside=True)
    owner = row.get("changeset_id", "")
    names = [tables.row_name(table, row), f"changeset {owner}", f"changeset #{row.get('number')}"]
    if table_name == "log_event":
        names = [f"{row['kind']} {row['ref']}"]
    if table_name == "checkpoint":
        names = [f"checkpoint file {row['size']}.note"]
    assert named(found, *names), found


@pytest.mark.parametrize("table_name", [table.name for table in metadata.sorted_tables])
def test_an_inserted_row_is_found_and_named(attacked: Attacked, table_name: str) -> None:
    table = metadata.tables[table_name]
    with attacked.attack(table_name) as connection:
        row = last(connection, table)
        more = {name: _other(value) for name, value in row.items() if table.c[name].primary_key}
        for unique in ("sequence", "number"):
            if unique in row:
                more[unique] = row[unique] + 1000
        if table_name == "head_move":
            more |= {"model": row["model"], "changeset_id": "another"}
        if "text_digest" in row:
            more["text_digest"] = "another"
        connection.execute(insert(table), {**row, **more})
        found = attacked.findings(connection)
    assert named(found, tables.row_name(table, {**row, **more})), found


def _other(value: Any) -> Any:
    return value + 1 if isinstance(value, int) else f"{value}x"


def test_all_problems_are_reported_and_not_only_the_first(attacked: Attacked) -> None:
    with attacked.attack(*(table.name for table in metadata.sorted_tables)) as connection:
        names = []
        for table in metadata.sorted_tables:
            row = last(connection, table)
            column = next(c for c in reversed(list(table.columns)) if not c.primary_key and not c.foreign_keys)
            new = row[column.name] + 1000 if isinstance(row[column.name], int) else "spoilt"
            connection.execute(update(table).where(*where_is(table, row)).values({column.name: new}))
            names.append(tables.row_name(table, row))
        found = attacked.findings(connection)
    assert [name for name in names if not named(found, name)] == []


def test_records_cut_off_the_end_are_missed_by_who_holds_a_later_checkpoint_and_by_nobody_else(
    attacked: Attacked,
) -> None:
    every = [table.name for table in metadata.sorted_tables]
    with attacked.attack(*every) as connection:
        size = connection.scalar(select(func.max(tables.log_event.c.sequence))) or 0
        cut = size - 5  # the last events are corrections that wait
        ids = list(connection.scalars(select(tables.correction.c.id).where(tables.correction.c.sequence > cut)))
        connection.execute(tables.correction_text.delete().where(tables.correction_text.c.correction_id.in_(ids)))
        for table in (tables.correction, tables.waiting, tables.log_event):
            connection.execute(table.delete().where(table.c.sequence > cut))
        connection.execute(tables.checkpoint.delete().where(tables.checkpoint.c.size > cut))
        assert len(ids) == 5
        assert attacked.findings(connection) == []
        found = attacked.findings(connection, outside=True)
    assert [finding.where for finding in found] == [f"checkpoint file {size - 2}.note"] * 2
    assert f"the log had {size - 2} events then and has {cut}: records were cut off its end" in found[1].problem


def test_a_row_rewritten_with_its_leaf_and_every_node_above_is_found_through_a_checkpoint(attacked: Attacked) -> None:
    every = [table.name for table in metadata.sorted_tables]
    with attacked.attack(*every) as connection:
        rewrite(connection, tables.correction, 6, {"filed_at": "2020-01-01T00:00:00Z"})
        connection.execute(tables.checkpoint.delete())
        assert attacked.findings(connection) == []
        found = attacked.findings(connection, outside=True)
    assert any("the history was rewritten" in finding.problem for finding in found)


def rewrite(connection: Connection, table: Table, sequence: int, values: dict[str, Any]) -> None:
    """Change a record, and the whole log so that it fits."""
    place = table.c.sequence >= sequence
    chosen = connection.scalar(select(func.min(table.c.sequence)).where(place))
    connection.execute(update(table).where(table.c.sequence == chosen).values(values))
    row = connection.execute(select(table).where(table.c.sequence == chosen)).mappings().one()
    leaf_hash = merkle.leaf_hash(repository.leaf(table, row)).hex()
    log = tables.log_event
    connection.execute(update(log).where(log.c.sequence == chosen).values(leaf_hash=leaf_hash))
    events = [LogEvent(*event) for event in connection.execute(select(log).order_by(log.c.sequence)).all()]
    connection.execute(log.delete())
    connection.execute(tables.log_node.delete())
    Log(connection).append(events)


def test_a_changed_character_of_a_kept_checkpoint_is_found(attacked: Attacked) -> None:
    [(name, note)] = attacked.outside.items()
    with attacked.attack() as connection:
        spoilt = note.replace("nse/world", "nse/w0rld", 1)
        work = UnitOfWork(connection, new_salt=str)
        found = check_records(work, keys=[LOG.key], checkpoints={name: spoilt})
    assert [finding.where for finding in found] == [f"checkpoint file {name}"]
    assert "signature" in found[0].problem


def test_a_missing_disabled_or_foreign_trigger_is_found(attacked: Attacked, tmp_path: Path) -> None:
    with attacked.attack() as connection:
        if connection.dialect.name == "sqlite":
            connection.execute(text("DROP TRIGGER decision_refuse_delete"))
        else:
            connection.execute(text("DROP TRIGGER decision_refuse_delete ON decision"))
        found = check_records(UnitOfWork(connection, new_salt=str), keys=[LOG.key])
    assert [(f.where, f.problem) for f in found] == [("trigger decision_refuse_delete", "it is missing")]
