"""A backup of a ledger in use, and the ledger back from it, on either database."""

import json
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine, insert, make_url, select, text

from ledger import tables
from ledger.backup import backup, restore
from ledger.database import connect, transaction
from ledger.errors import LedgerError, SchemaError
from ledger.tables import metadata
from ledger.triggers import trigger_problems
from tests.ledger.rows import counts, fill, row
from tests.postgres import PostgresServer

NewPlace = Callable[[], str]


@pytest.fixture
def ledger(ledger_url: str) -> Engine:
    """A ledger with two rows in every table, among them text with line ends, tabs and backslashes."""
    engine = connect(ledger_url, create=False)
    fill(engine)
    fill(engine, 2)
    strange = {"ref": "\\.\n\\.\nCOPY public.checkpoint (size, note) FROM stdin;\n\t\\N", "sequence": 3}
    with transaction(engine, write=True) as connection:
        connection.execute(insert(tables.log_event), row(tables.log_event, 3) | strange)
    return engine


@pytest.fixture
def new_place(ledger_url: str, request: pytest.FixtureRequest, tmp_path: Path) -> NewPlace:
    """Gives the URL of a place of the same kind where there is no ledger."""
    if ledger_url.startswith("sqlite"):
        return lambda: f"sqlite:///{tmp_path}/again.db"
    postgres: PostgresServer = request.getfixturevalue("postgres")
    return lambda: postgres.new_url(empty=True)


def content(engine: Engine) -> dict[str, list[tuple[object, ...]]]:
    """Returns every row of every table."""
    with transaction(engine, write=False) as connection:
        return {
            table.name: [
                tuple(found) for found in connection.execute(select(table).order_by(*table.primary_key.columns))
            ]
            for table in metadata.sorted_tables
        }


def test_what_is_restored_from_a_backup_is_the_ledger_row_by_row_and_guarded(
    ledger: Engine, ledger_url: str, new_place: NewPlace, tmp_path: Path
) -> None:
    rows = backup(ledger_url, tmp_path / "copy")
    assert rows["log_event"] == 3
    url = new_place()
    assert restore(tmp_path / "copy", url) == rows
    again = connect(url, create=False)
    assert content(again) == content(ledger)
    with transaction(again, write=False) as connection:
        assert trigger_problems(connection) == {}
    with pytest.raises(LedgerError, match="insert-only"), transaction(again, write=True) as connection:
        connection.execute(text("DELETE FROM decision"))
    fill(again, 4)  # and it is a ledger to go on with
    assert sorted(path.name for path in tmp_path.iterdir() if "partial" in path.name) == []


def test_a_backup_is_one_moment_of_a_ledger_that_is_being_written(
    ledger_url: str, new_place: NewPlace, tmp_path: Path
) -> None:
    ledger = connect(ledger_url, create=False)
    stop, numbers = threading.Event(), iter(range(1, 10_000))

    def write() -> None:
        while not stop.is_set():
            fill(ledger, next(numbers))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        copies = [backup(ledger_url, tmp_path / f"copy{i}") for i in range(3)]
    finally:
        stop.set()
        writer.join()
    assert all(len(set(copy.values())) == 1 for copy in copies)  # a writer fills every table, or none
    assert copies[0]["decision"] < copies[-1]["decision"] <= next(numbers)
    assert restore(tmp_path / "copy1", new_place()) == copies[1]


def test_a_backup_overwrites_nothing(ledger: Engine, ledger_url: str, tmp_path: Path) -> None:
    (tmp_path / "copy").write_text("mine")
    with pytest.raises(LedgerError, match=r"there is a file .* already"):
        backup(ledger_url, tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "mine"


def test_a_backup_into_a_folder_that_is_not_there_is_refused(ledger: Engine, ledger_url: str, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="No such file or directory: check the folder"):
        backup(ledger_url, tmp_path / "none" / "copy")


def test_a_ledger_without_its_triggers_is_not_backed_up_as_if_all_were_well(
    ledger: Engine, ledger_url: str, tmp_path: Path
) -> None:
    on = "" if ledger.dialect.name == "sqlite" else " ON decision"
    with transaction(ledger, write=True) as connection:
        connection.execute(text(f"DROP TRIGGER decision_refuse_update{on}"))
    with pytest.raises(LedgerError, match="trigger decision_refuse_update that is missing"):
        backup(ledger_url, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_nothing_is_restored_over_a_ledger(ledger: Engine, ledger_url: str, tmp_path: Path) -> None:
    backup(ledger_url, tmp_path / "copy")
    before = content(ledger)
    with pytest.raises(LedgerError, match="already"):
        restore(tmp_path / "copy", ledger_url)
    assert content(ledger) == before


@pytest.mark.parametrize("kept", [10, 3_000, -2_000])
def test_a_backup_that_was_cut_short_or_is_none_is_refused_and_nothing_is_made(
    ledger: Engine, ledger_url: str, new_place: NewPlace, tmp_path: Path, kept: int
) -> None:
    backup(ledger_url, tmp_path / "copy")
    (tmp_path / "short").write_bytes((tmp_path / "copy").read_bytes()[:kept])
    url = new_place()
    with pytest.raises(LedgerError) as caught:
        restore(tmp_path / "short", url)
    assert "\n" not in str(caught.value)
    with pytest.raises(LedgerError, match=r"not a ledger|no ledger"):
        connect(url, create=False)


def test_a_file_that_is_not_there_is_not_restored(ledger_url: str, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="there is no file"):
        restore(tmp_path / "none", ledger_url)


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_backup_of_a_file_is_one_file_that_only_its_owner_reads(
    ledger: Engine, ledger_url: str, tmp_path: Path
) -> None:
    backup(ledger_url, tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(tmp_path / "copy")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("copy")] == ["copy"]


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_the_backup_of_one_kind_of_database_is_not_restored_into_the_other(
    ledger: Engine, ledger_url: str, postgres: PostgresServer, tmp_path: Path
) -> None:
    backup(ledger_url, tmp_path / "of sqlite")
    backup(postgres.new_url(), tmp_path / "of postgres")
    with pytest.raises(LedgerError, match="pg_restore failed"):
        restore(tmp_path / "of sqlite", postgres.new_url(empty=True))
    with pytest.raises(LedgerError, match="not a database"):
        restore(tmp_path / "of postgres", f"sqlite:///{tmp_path}/again.db")
    assert not (tmp_path / "again.db").exists()


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_the_backup_of_a_newer_program_is_refused(ledger: Engine, ledger_url: str, tmp_path: Path) -> None:
    backup(ledger_url, tmp_path / "copy")
    with closing(sqlite3.connect(tmp_path / "copy")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0999'")
        connection.commit()
    with pytest.raises(SchemaError, match="upgrade the program"):
        restore(tmp_path / "copy", f"sqlite:///{tmp_path}/again.db")


def test_only_the_schema_of_the_ledger_is_in_its_backup(postgres: PostgresServer, tmp_path: Path) -> None:
    url = postgres.new_url()  # with another ledger in public
    database = str(make_url(url).database)
    postgres.execute('CREATE SCHEMA "My facts"', database)
    mine = f'{url}&options=-csearch_path="My\\ facts"'
    fill(connect(mine, create=True))
    rows = backup(mine, tmp_path / "copy")
    place = postgres.new_url(empty=True)
    with pytest.raises(LedgerError, match="not the backup of a schema public: restore into a schema of the same name"):
        restore(tmp_path / "copy", place)
    postgres.execute('CREATE SCHEMA "My facts"', str(make_url(place).database))
    assert restore(tmp_path / "copy", f'{place}&options=-csearch_path="My\\ facts"') == rows
    with pytest.raises(LedgerError, match="not a ledger"):
        connect(place, create=False)


def test_the_password_is_not_among_the_arguments_of_the_programs(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = tmp_path / "bin" / "pg_dump"
    spy.parent.mkdir()
    spy.write_text(f'#!/bin/sh\necho "$@" "$PGPASSWORD" > {tmp_path}/said\nexit 3\n')
    spy.chmod(0o755)
    monkeypatch.setenv("PATH", f"{spy.parent}:/usr/bin:/bin")
    url = postgres.new_url()
    with pytest.raises(LedgerError, match="pg_dump failed: exit status 3"):
        backup(f"{url.replace('postgres@', 'postgres:s3cret@')}&password=s3cret", tmp_path / "copy")
    said = (tmp_path / "said").read_text()
    assert said.count("s3cret") == 1
    assert said.strip().endswith(" s3cret")


def test_without_the_programs_a_person_is_told_what_to_install(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LedgerError, match="there is no program pg_dump: install PostgreSQL's client programs"):
        backup(postgres.new_url(), tmp_path / "copy")


def test_the_commands_back_up_and_restore_the_ledger_of_a_workspace(
    ledger: Engine,
    ledger_url: str,
    new_place: NewPlace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import typer
    from typer.testing import CliRunner

    from flows.commands import backup as commands
    from flows.workspace import Workspace

    monkeypatch.setattr("flows.workspace.open_workspace", lambda folder: Workspace(tmp_path, None))  # type: ignore[arg-type]
    app = typer.Typer()
    app.command()(commands.backup)
    app.command()(commands.restore)
    monkeypatch.setenv("NSE_LEDGER_URL", ledger_url)
    done = CliRunner().invoke(app, ["backup", str(tmp_path / "copy"), "--json"])
    with transaction(ledger, write=False) as connection:
        assert json.loads(done.stdout) == {"file": str(tmp_path / "copy"), "events": 3, "rows": counts(connection)}
    url = new_place()
    monkeypatch.setenv("NSE_LEDGER_URL", url)
    done = CliRunner().invoke(app, ["restore", str(tmp_path / "copy")])
    assert done.exit_code == 0
    assert content(connect(url, create=False)) == content(ledger)
