"""Opening a ledger: its file, its schema, its transactions."""

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from ledger.errors import LedgerError, SchemaError
from ledger.tables import metadata
from ledger.unit_of_work import open_ledger


def set_schema(path: Path, revision: str) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        database.commit()


def test_the_migrations_make_the_tables_that_the_code_knows(scenario) -> None:
    with scenario.ledger.read() as work:
        assert compare_metadata(MigrationContext.configure(work.connection), metadata) == []


def test_a_ledger_in_a_folder_with_a_percent_sign_and_spaces_can_be_made(tmp_path: Path) -> None:
    folder = tmp_path / "100% ledger"
    folder.mkdir()
    open_ledger(f"sqlite:///{folder}/ledger.db", create=True)
    open_ledger(f"sqlite:///{folder}/ledger.db")
    assert (folder / "ledger.db").is_file()


def test_a_ledger_that_is_not_there_is_not_made_by_opening_it(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r'there is no ledger at .*: run "nse init"'):
        open_ledger(f"sqlite:///{tmp_path}/none.db")
    assert list(tmp_path.iterdir()) == []


def test_creating_a_ledger_that_is_there_changes_nothing(scenario) -> None:
    correction = scenario.file()
    again = open_ledger(f"sqlite:///{scenario.path}", create=True)
    with again.read() as work:
        assert work.corrections("demo") == [correction]


def test_many_can_create_the_same_ledger_at_once(tmp_path: Path) -> None:
    failed: list[LedgerError] = []

    def create() -> None:
        try:
            open_ledger(f"sqlite:///{tmp_path}/ledger.db", create=True)
        except LedgerError as error:
            failed.append(error)

    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


@pytest.mark.parametrize("create", [False, True])
def test_a_newer_schema_is_refused_with_one_clear_line(scenario, create: bool) -> None:
    set_schema(scenario.path, "0999")
    with pytest.raises(SchemaError) as caught:
        open_ledger(f"sqlite:///{scenario.path}", create=create)
    message = f"ledger {scenario.path} has schema 0999, this program knows 0001: upgrade the program"
    assert str(caught.value) == message


@pytest.mark.parametrize("content", [b"", b"this is a text file, long enough to be taken for a header of a database"])
def test_a_file_that_is_no_ledger_is_refused_with_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ledger.db").write_bytes(content)
    with pytest.raises(LedgerError) as caught:
        open_ledger(f"sqlite:///{tmp_path}/ledger.db")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["postgresql://me:secret@host/ledger", "sqlite://", "sqlite:///:memory:", "ledger.db"])
def test_a_url_that_is_no_sqlite_file_is_refused_without_showing_its_password(url: str) -> None:
    with pytest.raises(LedgerError, match="sqlite:///path") as caught:
        open_ledger(url, create=True)
    assert "secret" not in str(caught.value)


def test_a_folder_that_is_not_there_is_refused_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="unable to open database file"):
        open_ledger(f"sqlite:///{tmp_path}/none/ledger.db", create=True)


def test_readers_see_one_state_while_a_writer_writes(scenario) -> None:
    first = scenario.file()
    with scenario.ledger.read() as reader:
        assert reader.corrections("demo") == [first]
        scenario.file(target="kuna")
        assert reader.corrections("demo") == [first]


def test_the_ledger_is_in_wal_mode_and_checks_foreign_keys(scenario) -> None:
    with scenario.ledger.begin() as work:
        pragmas = [
            work.connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "foreign_keys", "busy_timeout")
        ]
    assert pragmas == ["wal", 1, 30_000]


def test_an_older_schema_is_refused_with_advice(scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ledger.database._known", lambda: "0002")
    with pytest.raises(SchemaError, match=r"has the older schema 0001, not 0002: .* upgrade"):
        open_ledger(f"sqlite:///{scenario.path}")
