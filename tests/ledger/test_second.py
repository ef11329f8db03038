"""Two processes find what one finds, in one state of the ledger, and one that dies is no clean verdict."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, update

from ledger import audit, second, tables
from ledger.database import connect, engine_of
from ledger.errors import LedgerError
from ledger.repository import last_sequence
from ledger.second import Second, Tell, in_two_processes
from ledger.unit_of_work import Ledger, UnitOfWork, open_ledger
from tests.ledger.attack import last, strip, where_is
from tests.ledger.conftest import FakeStore
from tests.ledger.history import LOG, History, full_history, open_history


def count_events(connection: Connection, tell: Tell) -> int:
    """What the second process does here."""
    found = last_sequence(connection)
    tell("counted", found)
    return found


def die(connection: Connection, tell: Tell) -> None:
    os._exit(3)


def refuse(connection: Connection, tell: Tell) -> None:
    raise LedgerError("the ledger is closed", "come back tomorrow")


@pytest.fixture
def history(ledger_url: str) -> History:
    """A ledger at its base, on each database."""
    made = open_history(ledger_url)
    made.start()
    return made


def url_of(ledger: Ledger) -> Any:
    with ledger.read() as work:
        return work.connection.engine.url


def test_two_processes_find_all_that_one_finds_in_a_ledger_spoilt_in_every_table(ledger_url: str) -> None:
    full_history(ledger_url)
    engine = engine_of(ledger_url)
    if engine.dialect.name == "sqlite":
        for pragma in ("foreign_keys=OFF", "legacy_alter_table=ON"):  # the second leaves views alone
            event.listen(engine, "connect", lambda connection, _, p=pragma: connection.execute(f"PRAGMA {p}"))
    with engine.execution_options(ledger_write=True).begin() as connection:
        for table in tables.metadata.sorted_tables:
            strip(connection, table)
            row = last(connection, table)
            column = next(c for c in reversed(list(table.columns)) if not c.primary_key and not c.foreign_keys)
            new = row[column.name] + 1000 if isinstance(row[column.name], int) else "spoilt"
            connection.execute(update(table).where(*where_is(table, row)).values({column.name: new}))
    ledger = open_ledger(ledger_url)
    steps: list[tuple[str, int, int]] = []
    one = audit.verify(ledger, FakeStore(), keys=[LOG.key])
    two = audit.verify(
        ledger, FakeStore(), keys=[LOG.key], progress=lambda *step: steps.append(step), second_process_from=0
    )
    assert one == two
    assert {finding.where.split()[0] for finding in one} >= {table.name for table in tables.PART_TABLES}
    assert {stage for stage, _, _ in steps} == {"rows of the ledger", "decisions", "artifacts"}
    rows = [(done, total) for stage, done, total in steps if stage == "rows of the ledger"]
    assert rows == sorted(rows)
    assert rows[-1][0] == rows[-1][1]


def test_the_second_process_does_not_see_what_was_committed_after_both_began_to_read(history: History) -> None:
    told: list[int] = []
    with in_two_processes(history.ledger, url_of(history.ledger), count_events) as (work, other):
        assert other is not None
        before = work.log.size()
        history.file("Bulgaria")
        other.begin({"counted": told.append})
        assert other.result() == work.log.size() == before
        assert told == [before]
    with history.ledger.read() as work:
        assert work.log.size() == before + 1


def commits_between(history: History, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Have something committed so many times after the first process began to read, and before the second one does."""
    touch: Callable[[Connection], None] = second._touch
    subjects = iter(["Bulgaria", "Latvia", "Malta", "Cyprus", "Estonia"][:times])

    def touch_and_write(connection: Connection) -> None:
        touch(connection)
        if (subject := next(subjects, None)) is not None:
            history.file(subject)

    monkeypatch.setattr(second, "_touch", touch_and_write)


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_on_sqlite_both_begin_again_when_something_was_committed_between(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits_between(history, monkeypatch, times=1)
    with in_two_processes(history.ledger, url_of(history.ledger), count_events) as (work, other):
        assert other is not None
        other.begin({"counted": lambda _: None})
        assert other.result() == work.log.size()


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_on_sqlite_one_process_checks_alone_while_others_never_stop_writing(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits_between(history, monkeypatch, times=5)
    with in_two_processes(history.ledger, url_of(history.ledger), count_events) as (work, other):
        assert other is None
        assert isinstance(work, UnitOfWork)


@pytest.mark.parametrize(
    ("check", "problem"),
    [
        (die, "the second process of the audit ended too early .exit code 3."),
        (refuse, "the ledger is closed: come back"),
    ],
)
@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_second_process_that_dies_or_is_refused_is_an_error_of_one_line(
    history: History, check: second.Check, problem: str
) -> None:
    with in_two_processes(history.ledger, url_of(history.ledger), check) as (_, other):
        assert other is not None
        other.begin({})
        with pytest.raises(LedgerError, match=problem) as caught:
            other.result()
    assert "\n" not in str(caught.value)


def test_the_second_process_takes_a_relative_path_as_the_first_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = open_history("sqlite:///ledger.db")
    made.start()
    assert audit.verify(made.ledger, FakeStore(), keys=[LOG.key], second_process_from=0) == []


def test_nothing_is_left_of_the_second_process(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'ledger.db'}", create=True)
    with Second(engine.url, count_events) as other:
        process = other._process
        pid = process.pid
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
