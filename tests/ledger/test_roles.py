"""What the roles of a PostgreSQL ledger can do, tried as these roles on a real server."""

from dataclasses import dataclass

import pytest
from sqlalchemy import Engine, delete, insert, make_url, select, text

from ledger import tables
from ledger.database import connect, transaction
from ledger.errors import LedgerError
from ledger.roles import grant_statements
from ledger.tables import metadata
from tests.ledger.rows import counts, fill, row
from tests.postgres import PostgresServer

OWNER, APP, AUDITOR = "ledger_owner", 'the "app"', "Auditor's"


@dataclass
class Roles:
    """One ledger, as each of its roles has it."""

    owner: Engine
    app: Engine
    auditor: Engine


@pytest.fixture(scope="module")
def roles(postgres: PostgresServer) -> Roles:
    """A ledger that `OWNER` made, one row in every table, with its grants."""
    for name in (OWNER, APP, AUDITOR):
        quoted = name.replace('"', '""')
        postgres.execute(f'CREATE ROLE "{quoted}" LOGIN')
    database = str(make_url(postgres.new_url(empty=True)).database)
    postgres.execute(f"CREATE SCHEMA facts AUTHORIZATION {OWNER}", database)
    urls = [
        make_url(postgres.url(database)).set(username=name).update_query_dict({"options": "-csearch_path=facts"})
        for name in (OWNER, APP, AUDITOR)
    ]
    shown = [url.render_as_string(hide_password=False) for url in urls]
    owner = connect(shown[0], create=True)
    fill(owner)
    for _ in range(2):  # after an upgrade they are run again
        with transaction(owner, write=True) as connection:
            for statement in grant_statements("facts", APP, AUDITOR):
                connection.execute(text(statement))
    return Roles(owner, connect(shown[1], create=True), connect(shown[2], create=False))


def test_the_application_can_write_every_table_and_erase_text(roles: Roles) -> None:
    fill(roles.app, 2)
    with transaction(roles.app, write=True) as connection:
        connection.execute(insert(tables.erasure), row(tables.erasure, 5) | {"ref": "id-2"})
        for table, owner in tables.TEXT_TABLES.items():
            connection.execute(delete(table).where(table.c[owner or "changeset_id"] == "id-2"))
        connection.execute(delete(tables.waiting).where(tables.waiting.c.sequence == 2))
    with transaction(roles.app, write=False) as connection:
        assert counts(connection)["correction"] == 2
        assert counts(connection)["correction_text"] == 1


@pytest.mark.parametrize("table", [table.name for table in metadata.sorted_tables])
@pytest.mark.parametrize("what", ["UPDATE {0} SET {1} = {1}", "TRUNCATE {0} CASCADE", "DROP TABLE {0}"])
def test_the_application_can_change_no_row(roles: Roles, table: str, what: str) -> None:
    statement = what.format(table, metadata.tables[table].primary_key.columns[0].name)
    with (
        pytest.raises(LedgerError, match=r"permission denied|must be owner"),
        transaction(roles.app, write=True) as work,
    ):
        work.execute(text(statement))


@pytest.mark.parametrize("table", [table.name for table in tables.INSERT_ONLY])
def test_the_application_can_delete_no_record(roles: Roles, table: str) -> None:
    match = f"permission denied for table {table}"
    with pytest.raises(LedgerError, match=match), transaction(roles.app, write=True) as connection:
        connection.execute(text(f"DELETE FROM {table}"))


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TRIGGER decision_refuse_update ON decision",
        "ALTER TABLE decision DISABLE TRIGGER ALL",
        "ALTER TABLE decision DISABLE TRIGGER decision_refuse_update",
        "ALTER TABLE decision DROP COLUMN reason",
        "ALTER TABLE decision OWNER TO CURRENT_USER",
        "CREATE TRIGGER a BEFORE INSERT ON decision FOR EACH ROW EXECUTE FUNCTION ledger_refuse('x')",
        "CREATE RULE a AS ON INSERT TO decision DO INSTEAD NOTHING",
        "CREATE OR REPLACE FUNCTION ledger_refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END'",
        "DROP FUNCTION ledger_refuse CASCADE",
        "CREATE TABLE mine (a int)",
        "UPDATE alembic_version SET version_num = '0'",
        "INSERT INTO alembic_version VALUES ('0')",
        "SET session_replication_role = replica",
        "SET LOCAL session_replication_role = replica",
        f"SET ROLE {OWNER}",
        "DROP SCHEMA facts CASCADE",
    ],
)
def test_the_application_can_change_nothing_of_what_guards_the_rows(roles: Roles, statement: str) -> None:
    match = r"permission denied|must be (owner|able)"
    for engine in (roles.app, roles.auditor):
        with pytest.raises(LedgerError, match=match), transaction(engine, write=True) as connection:
            connection.execute(text(statement))


def test_text_that_is_not_erased_can_be_deleted_by_no_role(roles: Roles) -> None:
    temporary = "CREATE TEMPORARY TABLE erasure AS SELECT 'id-1' AS ref"
    for engine in (roles.app, roles.owner):
        for first in ("SELECT 1", temporary):
            match = "before its erasure"
            with pytest.raises(LedgerError, match=match), transaction(engine, write=True) as connection:  # noqa: PT012
                connection.execute(text(first))
                connection.execute(
                    delete(tables.correction_text).where(tables.correction_text.c.correction_id == "id-1")
                )


@pytest.mark.parametrize("table", [table.name for table in metadata.sorted_tables])
def test_the_auditor_reads_all_and_writes_nothing(roles: Roles, table: str) -> None:
    with transaction(roles.auditor, write=False) as connection:
        assert connection.execute(select(metadata.tables[table])).first() is not None
    for statement in (
        insert(metadata.tables[table]).values(row(metadata.tables[table], 9)),
        delete(metadata.tables[table]),
    ):
        with (
            pytest.raises(LedgerError, match="permission denied"),
            transaction(roles.auditor, write=True) as connection,
        ):
            connection.execute(statement)


def test_the_auditor_reads_the_views(roles: Roles) -> None:
    from ledger.sql_views import VIEWS

    with transaction(roles.auditor, write=False) as connection:
        for view in VIEWS:
            connection.execute(text(f"SELECT * FROM {view}"))


@pytest.mark.parametrize("names", [("", "a", "b"), ("s", "a\0", "b"), ("s", "a", "a")])
def test_names_that_are_none_are_refused(names: tuple[str, str, str]) -> None:
    with pytest.raises(LedgerError):
        grant_statements(*names)
