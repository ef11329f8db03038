"""No row of the ledger can be changed, whatever SQL is used, on either database; only erased text can go."""

import pytest
from sqlalchemy import Engine, Table, delete, insert, select, text

from ledger import tables
from ledger.database import connect, transaction
from ledger.errors import LedgerError
from ledger.tables import metadata
from ledger.triggers import expected_triggers, present_triggers, trigger_problems
from tests.ledger.rows import counts, fill, row

GUARDED = [table.name for table in (*tables.INSERT_ONLY, *tables.TEXT_TABLES)]
REPLACE = "REPLACE INTO {table} SELECT * FROM {table}"
INSERTS = (REPLACE, *(f"INSERT OR {word} INTO {{table}} SELECT * FROM {{table}}" for word in ("REPLACE", "IGNORE")))
UPSERT = "INSERT INTO {table} SELECT * FROM {table} WHERE true ON CONFLICT ({key}) DO UPDATE SET {key} = excluded.{key}"


@pytest.fixture
def ledger(ledger_url: str) -> Engine:
    """A ledger with one row in every table; the only erasure in it is of something else."""
    engine = connect(ledger_url, create=False)
    fill(engine)
    return engine


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def kept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The same, one for all tests that leave it as it is."""
    on_sqlite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path_factory.mktemp('kept')}/ledger.db" if on_sqlite else ""
    engine = connect(url or request.getfixturevalue("postgres").new_url(), create=True)
    fill(engine)
    return engine


def refuses(ledger: Engine, statement: str, match: str) -> None:
    """Checks that a statement is refused with a line that matches, and leaves every row."""
    with transaction(ledger, write=False) as connection:
        before = counts(connection)
    assert all(before.values())
    with pytest.raises(LedgerError, match=match), transaction(ledger, write=True) as connection:
        connection.execute(text(statement))
    with transaction(ledger, write=False) as connection:
        assert counts(connection) == before


def test_every_table_is_guarded_or_an_index() -> None:
    assert sorted([*GUARDED, "waiting"]) == sorted(metadata.tables)


@pytest.mark.parametrize("table", [*GUARDED, "waiting"])
def test_no_row_can_be_updated(kept: Engine, table: str) -> None:
    column = list(metadata.tables[table].columns)[-1].name
    refuses(kept, f"UPDATE {table} SET {column} = {column}", f"insert-only: a row of {table} cannot be updated")


@pytest.mark.parametrize("table", GUARDED)
def test_no_row_can_be_deleted(kept: Engine, table: str) -> None:
    refuses(kept, f"DELETE FROM {table}", f"insert-only: a row of {table} cannot be deleted")


@pytest.mark.parametrize("table", GUARDED)
def test_no_row_can_be_replaced(kept: Engine, table: str) -> None:
    key = ", ".join(column.name for column in metadata.tables[table].primary_key.columns)
    first = next(column.name for column in metadata.tables[table].primary_key.columns)
    upsert = UPSERT.replace("{key}", key, 1).format(table=table, key=first)
    if kept.dialect.name == "postgresql":
        refuses(kept, upsert, f"insert-only: a row of {table} cannot be updated")
        return
    for statement in (
        *(verb.format(table=table) for verb in INSERTS),
        f"UPDATE OR REPLACE {table} SET {first} = 1",
    ):
        refuses(kept, statement, f"insert-only: a row of {table} cannot be (replaced|updated)")
    refuses(kept, upsert, f"insert-only: a row of {table} cannot be replaced")


@pytest.mark.parametrize(
    ("table", "key"),
    [(table.name, column.name) for table in metadata.sorted_tables for column in table.columns if column.unique],
)
def test_a_row_cannot_be_replaced_over_another_unique_column(ledger: Engine, table: str, key: str) -> None:
    new = row(metadata.tables[table], 2) | {key: row(metadata.tables[table])[key]}
    names = [f":{name}" for name in new]
    verb = "REPLACE" if ledger.dialect.name == "sqlite" else "INSERT"
    match = "cannot be replaced" if verb == "REPLACE" else "duplicate key value"
    with transaction(ledger, write=True) as connection:  # what row 2 refers to
        for other in metadata.sorted_tables:
            if other.name in ("correction", "changeset", "policy", "quarantined") and other.name != table:
                connection.execute(insert(other), row(other, 2))
    with pytest.raises(LedgerError, match=match), transaction(ledger, write=True) as connection:
        connection.execute(text(f"{verb} INTO {table} ({', '.join(new)}) VALUES ({', '.join(names)})"), new)


@pytest.mark.parametrize("kept", ["sqlite"], indirect=True)
@pytest.mark.parametrize("table", [*GUARDED, "waiting"])
def test_sqlite_has_no_hidden_rowid_to_replace_a_row_by(kept: Engine, table: str) -> None:
    with pytest.raises(LedgerError, match="rowid"), transaction(kept, write=False) as connection:
        connection.execute(text(f"SELECT rowid FROM {table}"))


@pytest.mark.parametrize("kept", ["postgres"], indirect=True)
@pytest.mark.parametrize("table", GUARDED)
def test_postgresql_truncates_no_table(kept: Engine, table: str) -> None:
    refuses(kept, f"TRUNCATE {table} CASCADE", r"insert-only: a row of \w+ cannot be truncated")


@pytest.mark.parametrize("kept", ["postgres"], indirect=True)
def test_postgresql_refuses_in_replication_roles_too(kept: Engine) -> None:
    refuses(kept, "SET LOCAL session_replication_role = replica; DELETE FROM decision", "cannot be deleted")


def test_the_index_of_what_waits_comes_and_goes(ledger: Engine) -> None:
    with transaction(ledger, write=True) as connection:
        connection.execute(delete(tables.waiting))
        connection.execute(insert(tables.waiting), row(tables.waiting))


@pytest.mark.parametrize("table", tables.TEXT_TABLES, ids=lambda table: table.name)
def test_text_can_go_once_an_erasure_names_its_owner_and_no_other_text_with_it(ledger: Engine, table: Table) -> None:
    fill(ledger, 2)
    with transaction(ledger, write=True) as connection:
        connection.execute(insert(tables.erasure), row(tables.erasure, 3) | {"ref": "id-1"})
    with (
        pytest.raises(LedgerError, match="before its erasure is recorded"),
        transaction(ledger, write=True) as connection,
    ):
        connection.execute(delete(table))
    owner = tables.TEXT_TABLES[table] or "changeset_id"
    with transaction(ledger, write=True) as connection:
        connection.execute(delete(table).where(table.c[owner] == "id-1"))
        assert connection.scalars(select(table.c[owner])).all() == ["id-2"]


def test_the_text_of_a_case_goes_with_the_correction_it_names_only(ledger: Engine) -> None:
    cases = row(tables.changeset_case) | {"position": 7, "case_id": "of the suite"}
    with transaction(ledger, write=True) as connection:
        connection.execute(insert(tables.changeset_case), cases)
        connection.execute(insert(tables.case_text), row(tables.case_text) | {"position": 7})
        connection.execute(insert(tables.erasure), row(tables.erasure, 3) | {"ref": "id-1"})
    with pytest.raises(LedgerError, match="before its erasure"), transaction(ledger, write=True) as connection:
        connection.execute(delete(tables.case_text).where(tables.case_text.c.position == 7))


def test_a_temporary_table_does_not_stand_in_for_the_erasures(ledger: Engine) -> None:
    temporary = "CREATE TEMPORARY TABLE erasure AS SELECT 'id-1' AS ref"
    match = "before its erasure"
    with pytest.raises(LedgerError, match=match), transaction(ledger, write=True) as connection:  # noqa: PT012
        connection.execute(text(temporary))
        connection.execute(delete(tables.correction_text))


# --- whether the triggers are there


def test_a_new_ledger_has_every_trigger_as_the_migrations_make_it(ledger: Engine) -> None:
    with transaction(ledger, write=False) as connection:
        assert present_triggers(connection) == expected_triggers(ledger.dialect.name)
        assert trigger_problems(connection) == {}


def test_a_trigger_that_is_missing_or_strange_is_named(ledger: Engine) -> None:
    on_sqlite = ledger.dialect.name == "sqlite"
    do = "BEGIN SELECT 1; END" if on_sqlite else "FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()"
    with transaction(ledger, write=True) as connection:
        connection.execute(text("DROP TRIGGER decision_refuse_delete" + ("" if on_sqlite else " ON decision")))
        connection.execute(text(f"CREATE TRIGGER quiet BEFORE UPDATE ON erasure {do}"))
    with transaction(ledger, write=False) as connection:
        problems = {"decision_refuse_delete": "missing", "quiet on erasure": "not one of the ledger's"}
        assert trigger_problems(connection) == problems


def test_a_trigger_that_was_altered_is_named(ledger: Engine) -> None:
    with transaction(ledger, write=True) as connection:
        if ledger.dialect.name == "sqlite":
            connection.execute(text("DROP TRIGGER decision_refuse_delete"))
            connection.execute(
                text("CREATE TRIGGER decision_refuse_delete BEFORE DELETE ON decision BEGIN SELECT 1; END")
            )
            altered = {"decision_refuse_delete"}
        else:
            body = (
                "CREATE OR REPLACE FUNCTION ledger_refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END'"
            )
            connection.execute(text(body))
            own = {f"{table.name}_refuse_delete" for table in tables.TEXT_TABLES}
            altered = set(expected_triggers("postgresql")) - own
    with transaction(ledger, write=False) as connection:
        assert trigger_problems(connection) == dict.fromkeys(altered, "altered")


@pytest.mark.parametrize("ledger_url", ["postgres"], indirect=True)
@pytest.mark.parametrize("how", ["DISABLE TRIGGER", "ENABLE TRIGGER", "ENABLE REPLICA TRIGGER"])
def test_a_trigger_that_was_disabled_on_postgresql_is_named(ledger: Engine, how: str) -> None:
    with transaction(ledger, write=True) as connection:
        connection.execute(text(f"ALTER TABLE decision {how} decision_refuse_delete"))
    with transaction(ledger, write=False) as connection:
        assert trigger_problems(connection) == {"decision_refuse_delete": "disabled"}
