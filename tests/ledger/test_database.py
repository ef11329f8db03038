"""Opening a ledger, on either database: its place, its schema, its transactions, and what is said when it cannot be."""

import os
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, func, insert, inspect, make_url, select, text

from ledger import database, tables
from ledger.database import connect, engine_of, transaction
from ledger.errors import LedgerError, SchemaError
from ledger.tables import metadata
from tests.ledger.rows import fill, row
from tests.postgres import PostgresServer

EVENT = row(tables.log_event)


@pytest.fixture
def ledger(ledger_url: str) -> Engine:
    return connect(ledger_url, create=False)


def count(connection: Connection) -> int:
    return connection.scalar(select(func.count()).select_from(tables.log_event)) or 0


def set_schema(ledger: Engine, revision: str) -> None:
    with transaction(ledger, write=True) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})


def refusal(url: str, *, create: bool = False) -> str:
    """Returns the one line that opening a ledger is refused with."""
    with pytest.raises(LedgerError) as caught:
        connect(url, create=create)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def in_threads(work: Callable[[], Any], *, number: int = 4) -> list[Exception]:
    """Runs `work` in threads that begin at once; returns what they raised."""
    failed: list[Exception] = []
    together = threading.Barrier(number)

    def run() -> None:
        together.wait()
        try:
            work()
        except LedgerError as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failed


# --- the schema


def shape(engine: Engine) -> dict[str, Any]:
    """Returns all that a database says about the tables of a ledger."""
    found = inspect(engine)
    if engine.dialect.name == "sqlite":
        made = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND type IN ('table', 'index')"
        with engine.connect() as connection:
            return {
                name: sorted(part.strip() for part in sql.split(","))
                for name, sql in connection.execute(text(made))
                if name != "alembic_version"
            }
    return {
        table: (
            [{**column, "type": str(column["type"])} for column in found.get_columns(table)],
            found.get_pk_constraint(table),
            sorted(found.get_foreign_keys(table), key=str),
            sorted(found.get_unique_constraints(table), key=str),
            sorted(found.get_indexes(table), key=str),
        )
        for table in found.get_table_names()
        if table != "alembic_version"
    }


def test_the_migrations_make_the_tables_that_the_code_knows(ledger: Engine, request: Any, tmp_path: Path) -> None:
    on_sqlite = ledger.dialect.name == "sqlite"
    url = f"sqlite:///{tmp_path}/other.db" if on_sqlite else request.getfixturevalue("postgres").new_url(empty=True)
    other = create_engine(engine_of(url).url)
    metadata.create_all(other)
    expected = shape(other)
    other.dispose()
    assert set(metadata.tables) <= set(expected)
    assert shape(ledger) == expected


def test_the_schema_that_the_program_knows_is_the_last_of_the_migrations() -> None:
    from alembic.script import ScriptDirectory

    assert ScriptDirectory.from_config(database._config()).get_heads() == [database.SCHEMA]


def test_opening_a_ledger_loads_no_migrations(ledger_url: str) -> None:
    script = (
        "import sys; from ledger.database import connect; connect(sys.argv[1], create=False);"
        "print([m for m in sys.modules if m.startswith('alembic') or m.startswith('ledger.migrations')])"
    )
    done = subprocess.run([sys.executable, "-c", script, ledger_url], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_ledger_in_a_folder_with_a_percent_sign_and_spaces_can_be_made(tmp_path: Path) -> None:
    folder = tmp_path / "100% ledger"
    folder.mkdir()
    connect(f"sqlite:///{folder}/ledger.db", create=True)
    connect(f"sqlite:///{folder}/ledger.db", create=False)
    assert (folder / "ledger.db").is_file()


def test_a_file_that_is_not_there_is_not_made_by_opening_it(tmp_path: Path) -> None:
    assert f'there is no ledger at {tmp_path}/none.db: run "nse init"' in refusal(f"sqlite:///{tmp_path}/none.db")
    assert list(tmp_path.iterdir()) == []


def test_a_database_with_nothing_in_it_is_no_ledger_until_it_is_made_one(postgres: PostgresServer) -> None:
    url = postgres.new_url(empty=True)
    assert 'is not a ledger: run "nse init"' in refusal(url)
    fill(connect(url, create=True))
    with transaction(connect(url, create=False), write=False) as connection:
        assert count(connection) == 1


def test_creating_a_ledger_that_is_there_changes_nothing(ledger: Engine, ledger_url: str) -> None:
    fill(ledger)
    with transaction(connect(ledger_url, create=True), write=False) as connection:
        assert count(connection) == 1


def test_many_can_create_the_same_file_at_once(tmp_path: Path) -> None:
    assert in_threads(lambda: connect(f"sqlite:///{tmp_path}/ledger.db", create=True)) == []


def test_many_can_create_the_ledger_of_one_database_at_once(postgres: PostgresServer) -> None:
    url = postgres.new_url(empty=True)
    assert in_threads(lambda: connect(url, create=True)) == []
    connect(url, create=False)


@pytest.mark.parametrize("create", [False, True])
def test_a_newer_schema_is_refused_with_one_clear_line(ledger: Engine, ledger_url: str, create: bool) -> None:
    set_schema(ledger, "0999")
    with pytest.raises(SchemaError, match=r"^ledger .+ has schema 0999, this program knows 0001: upgrade the program$"):
        connect(ledger_url, create=create)


def test_an_older_schema_is_refused_with_advice(
    ledger: Engine, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "SCHEMA", "0002")
    with pytest.raises(SchemaError, match=r"has the older schema 0001, not 0002: .* upgrade"):
        connect(ledger_url, create=False)


def test_two_schemas_of_one_database_are_two_ledgers_that_do_not_wait_for_each_other(postgres: PostgresServer) -> None:
    url = postgres.new_url(empty=True)
    name = str(make_url(url).database)
    engines = []
    for schema in ("one", "Two"):
        postgres.execute(f'CREATE SCHEMA "{schema}"', name)
        engines.append(connect(f'{url}&options=-csearch_path="{schema}",public', create=True))
    with transaction(engines[0], write=True) as one, transaction(engines[1], write=True) as two:
        one.execute(insert(tables.log_event), EVENT)
        assert (count(one), count(two)) == (1, 0)


def test_the_schema_of_another_program_further_down_the_path_is_not_looked_at(postgres: PostgresServer) -> None:
    url = postgres.new_url()  # with a ledger in public
    postgres.execute("CREATE SCHEMA mine", str(make_url(url).database))
    mine = f"{url}&options=-csearch_path=mine,public"
    assert "is not a ledger" in refusal(mine)
    fill(connect(mine, create=True))
    with transaction(connect(url, create=False), write=False) as connection:
        assert count(connection) == 0


# --- transactions


def test_readers_see_one_state_while_a_writer_writes(ledger: Engine) -> None:
    with transaction(ledger, write=False) as reader:
        assert count(reader) == 0
        with transaction(ledger, write=True) as writer:
            writer.execute(insert(tables.log_event), EVENT)
        assert count(reader) == 0


def test_a_reader_cannot_write(ledger: Engine) -> None:
    with pytest.raises(LedgerError, match=r"read-?only"), transaction(ledger, write=False) as connection:
        connection.execute(insert(tables.log_event), EVENT)


def test_a_block_that_fails_leaves_nothing(ledger: Engine) -> None:
    with pytest.raises(ZeroDivisionError), transaction(ledger, write=True) as connection:  # noqa: PT012
        connection.execute(insert(tables.log_event), EVENT)
        raise ZeroDivisionError
    with transaction(ledger, write=False) as connection:
        assert count(connection) == 0


def test_writers_wait_for_one_another_so_that_none_reads_what_another_is_changing(ledger: Engine) -> None:
    def write_the_next() -> None:
        with transaction(ledger, write=True) as connection:
            connection.execute(insert(tables.log_event), {**EVENT, "sequence": count(connection) + 1})

    assert in_threads(write_the_next, number=6) == []
    with transaction(ledger, write=False) as connection:
        assert list(connection.scalars(select(tables.log_event.c.sequence))) == [1, 2, 3, 4, 5, 6]


def test_a_writer_gives_up_after_a_while_with_one_line(ledger: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "TIMEOUT_MS", 50)
    with transaction(ledger, write=True), pytest.raises(LedgerError) as caught, transaction(ledger, write=True):
        pass
    assert "another program has been writing" in str(caught.value)


def test_sqlite_is_in_wal_mode_durable_and_checks_foreign_keys(tmp_path: Path) -> None:
    ledger = connect(f"sqlite:///{tmp_path}/ledger.db", create=True)
    with transaction(ledger, write=True) as connection:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        pragmas = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]
    assert pragmas == ["wal", 2, 1, 30_000]


@pytest.mark.parametrize("write", [True, False])
def test_postgresql_compiles_no_query(postgres: PostgresServer, write: bool) -> None:
    engine = connect(postgres.new_url(empty=True), create=True)
    with transaction(engine, write=write) as connection:
        assert connection.scalar(text("SHOW jit")) == "off"


def test_text_of_every_kind_comes_back_as_it_was(ledger: Engine) -> None:
    said = "ž ☃ 𝄞 'quoted' \"double\" %s :name ? \\ \t\n"
    with transaction(ledger, write=True) as connection:
        connection.execute(insert(tables.log_event), {**EVENT, "ref": said})
    with transaction(ledger, write=False) as connection:
        assert connection.scalar(select(tables.log_event.c.ref)) == said


# --- what is said when it cannot be


@pytest.mark.parametrize("content", [b"", b"this is a text file, long enough to be taken for a header of a database"])
def test_a_file_that_is_no_ledger_is_refused_with_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ledger.db").write_bytes(content)
    assert ("file is not a database" if content else 'not a ledger: run "nse init"') in refusal(
        f"sqlite:///{tmp_path}/ledger.db"
    )


@pytest.mark.parametrize(
    "url",
    [
        "mysql://me:s3cret@host/ledger",
        "postgresql+psycopg2://me:s3cret@host/ledger",
        "postgresql:/me:s3cret@host/ledger",
        "postgresql://me:s3cret@host:port/ledger",
        "sqlite://",
        "sqlite:///:memory:",
        "ledger.db",
    ],
)
def test_a_url_that_no_ledger_can_be_at_is_refused_without_showing_its_password(url: str) -> None:
    said = refusal(url, create=True)
    assert said.endswith("write sqlite:///path/to/ledger.db or postgresql://user@host/database")
    assert "s3cret" not in said


@pytest.mark.parametrize("query", ["", "&password=s3cret"])
@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_a_server_that_does_not_answer_is_named_without_the_password(scheme: str, query: str) -> None:
    with socket.socket() as unused:  # bound, and not listening
        unused.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{unused.getsockname()[1]}"
        said = refusal(f"{scheme}://me:s3cret@{place}/ledger?connect_timeout=5{query}")
    assert "the ledger at ledger on 127.0.0.1 refused:" in said
    assert "check that the server runs" in said
    assert "s3cret" not in said


def test_a_server_that_wants_another_password_is_named_without_the_one_it_got(postgres: PostgresServer) -> None:
    rules = postgres.folder / "data" / "pg_hba.conf"
    postgres.execute("CREATE ROLE careful LOGIN PASSWORD 'other'")
    rules.write_text("local all careful scram-sha-256\n" + rules.read_text())
    postgres.execute("SELECT pg_reload_conf()")
    url = postgres.new_url().replace("postgres@", "careful:s3cret@")
    said = refusal(url)
    for _ in range(100):  # the server reads its rules a moment later
        if "password authentication failed" in said:
            break
        said = refusal(url)
    assert said.endswith("check the user and the password in the URL")
    assert "s3cret" not in said


def test_a_database_or_a_schema_that_is_not_there_is_named(postgres: PostgresServer) -> None:
    assert 'database "none" does not exist' in refusal(postgres.url("none"))
    said = refusal(f"{postgres.new_url()}&options=-csearch_path=none", create=True)
    assert said.endswith("make the schema first, or check its name in the URL")


def test_a_server_that_goes_away_in_a_transaction_is_one_line(postgres: PostgresServer) -> None:
    ledger = connect(postgres.new_url(), create=False)
    match = "check that the server runs"
    with pytest.raises(LedgerError, match=match), transaction(ledger, write=True) as connection:  # noqa: PT012
        backend = connection.scalar(text("SELECT pg_backend_pid()"))
        postgres.execute(f"SELECT pg_terminate_backend({backend}, 5000)")
        connection.execute(insert(tables.log_event), EVENT)


def test_a_server_that_takes_no_writes_is_one_line(postgres: PostgresServer) -> None:
    ledger = connect(f"{postgres.new_url()}&options=-cdefault_transaction_read_only=on", create=False)
    with pytest.raises(LedgerError, match="write to the primary"), transaction(ledger, write=True) as connection:
        connection.execute(insert(tables.log_event), EVENT)


def test_without_the_driver_a_person_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert 'needs psycopg: run: pip install "nse-pipeline[postgresql]"' in refusal("postgresql://me@host/ledger")


def test_a_folder_that_is_not_there_is_refused_with_one_line(tmp_path: Path) -> None:
    said = refusal(f"sqlite:///{tmp_path}/none/ledger.db", create=True)
    assert "unable to open database file: check that its folder exists" in said


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    ledger = connect(f"sqlite:///{tmp_path}/ledger.db", create=True)
    match = "make room on the disk"
    with pytest.raises(LedgerError, match=match), transaction(ledger, write=True) as connection:  # noqa: PT012
        connection.exec_driver_sql("PRAGMA max_page_count=1")  # no less than what there is
        connection.execute(insert(tables.log_event), {**EVENT, "ref": "x" * 100_000})


def write_event(url: str) -> None:
    with transaction(connect(url, create=False), write=True) as connection:
        connection.execute(insert(tables.log_event), EVENT)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Acts as a user who is not root, whom nothing would be refused."""
    before = os.geteuid()
    os.seteuid(before or 65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.parametrize(("file_mode", "folder_mode"), [(0o444, 0o777), (0o666, 0o555), (0o000, 0o777)])
def test_a_file_or_folder_that_may_not_be_written_is_one_line(file_mode: int, folder_mode: int) -> None:
    with TemporaryDirectory() as name:
        file = Path(name) / "ledger.db"
        connect(f"sqlite:///{file}", create=True)
        file.chmod(file_mode)
        file.parent.chmod(folder_mode)
        with unprivileged(), pytest.raises(LedgerError) as caught:
            write_event(f"sqlite:///{file}")
        file.parent.chmod(0o700)
        with closing(sqlite3.connect(file)) as connection:
            assert connection.execute("SELECT count(*) FROM log_event").fetchone() == (0,)
    assert "may" in str(caught.value).split(" refused: ")[1]
    assert "folder" in str(caught.value)
