"""A second process that reads the very state of a ledger that the first one reads, so that two cores can check it.

On PostgreSQL the first exports its snapshot and the second imports it. On SQLite (WAL) both begin to read, and a third
connection tells whether anything was committed meanwhile; then they begin again. What is checked this module does not know.
"""

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from ledger.database import engine_of, transaction
from ledger.database_errors import refusal
from ledger.errors import LedgerError
from ledger.unit_of_work import Ledger, UnitOfWork

Tell = Callable[..., None]
"""Called by the second process as `tell(name, *arguments)`: calls `listeners[name](*arguments)` in the first."""
Check = Callable[[Connection, Tell], Any]
"""What the second process does with its connection; a function of a module, so that it can be named there."""
_ATTEMPTS = 5
_ADVICE = "try again; if it ends again, there may be too little memory for it: see the lines before this one"
_SECONDS_TO_END = 10


class Second:
    """The second process; a context manager that ends it."""

    def __init__(self, url: URL, check: Check) -> None:
        """Start it and wait until it has imported what it needs.

        Raises:
            LedgerError: It ended, as it does where a script starts processes as it is imported.
        """
        context = get_context("spawn")  # a fork would share connections and locks
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(_absolute(url), check, theirs), daemon=True)
        self._process.start()
        theirs.close()  # else the end of the process would not be the end of the pipe
        self._listeners: Mapping[str, Callable[..., None]] = {}
        self._results: list[Any] = []
        self._expect("ready")

    def __enter__(self) -> "Second":
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.terminate()
        self._process.join(_SECONDS_TO_END)
        self._process.close()

    def joins(self, work: UnitOfWork) -> bool:
        """Let it begin to read; tells whether it reads the state that `work` does, in which nothing has been read yet.

        Raises:
            LedgerError: The database refuses it.
        """
        if work.connection.dialect.name != "sqlite":
            snapshot = work.connection.scalar(text("SELECT pg_export_snapshot()"))
            self._pipe.send((snapshot, work.connection.scalar(text("SHOW search_path"))))
            self._expect("reading")
            return True
        watcher = work.connection.engine.raw_connection()
        try:
            before = _version(watcher)
            _touch(work.connection)
            self._pipe.send((None, None))
            self._expect("reading")
            return bool(_version(watcher) == before)
        finally:
            watcher.close()

    def begin(self, listeners: Mapping[str, Callable[..., None]]) -> None:
        """Let it check; `listeners` are called with what it tells, whenever `listen` is called here."""
        self._listeners = listeners
        self._pipe.send("check")

    def listen(self) -> None:
        """Call the listeners with what it has told by now.

        Raises:
            LedgerError: It ended without a result, or the database refused.
        """
        while not self._results and self._pipe.poll():
            self._take()

    def result(self) -> Any:
        """Wait for what its check returns, calling the listeners meanwhile; raises as `listen` does."""
        while not self._results:
            self._take()
        return self._results[0]

    def _take(self) -> None:
        kind, *rest = self._receive()
        if kind == "tell":
            name, arguments = rest
            self._listeners[name](*arguments)
        else:
            self._results += rest

    def _expect(self, kind: str) -> None:
        received, *_ = self._receive()
        assert received == kind, received

    def _receive(self) -> tuple[Any, ...]:
        try:
            message: tuple[Any, ...] = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join(_SECONDS_TO_END)
            code = self._process.exitcode
            raise LedgerError(f"the second process of the audit ended too early (exit code {code})", _ADVICE) from error
        if message[0] == "refused":
            raise LedgerError(*message[1:])
        return message


@contextmanager
def in_two_processes(ledger: Ledger, url: URL, check: Check) -> Iterator[tuple[UnitOfWork, Second | None]]:
    """Read a ledger here and in a second process, both the same state; in this one alone if others write all the time.

    Raises:
        LedgerError: The database refuses, or the second process ends.
    """
    with Second(url, check) as second:
        for _ in range(_ATTEMPTS):
            with ledger.read() as work:
                if second.joins(work):
                    yield work, second
                    return
    with ledger.read() as work:
        yield work, None


# --- in the second process


def _run(url: URL, check: Check, pipe: Pipe) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends this one
    try:
        pipe.send(("ready",))
        order: Any = pipe.recv()
        while order != "check":
            order = _read(url, check, pipe, order)
    except LedgerError as error:
        pipe.send(("refused", error.problem, error.advice))
    except (EOFError, ConnectionError):
        return  # the first process is gone


def _read(url: URL, check: Check, pipe: Pipe, order: tuple[str | None, str | None]) -> Any:
    """Read the state that the first process names; returns its next order if it does not want this one checked."""
    with _state(url, *order) as connection:
        _touch(connection)
        pipe.send(("reading",))
        next_order = pipe.recv()
        if next_order == "check":
            pipe.send(("result", check(connection, lambda name, *arguments: pipe.send(("tell", name, arguments)))))
        return next_order


@contextmanager
def _state(url: URL, snapshot: str | None, search_path: str | None) -> Iterator[Connection]:
    if snapshot is None:
        with transaction(engine_of(url.render_as_string(hide_password=False)), write=False) as connection:
            yield connection
        return
    engine = create_engine(url, poolclass=NullPool)
    try:
        with engine.connect() as connection:
            # a snapshot is taken before anything else is asked, so not by `transaction`
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            connection.exec_driver_sql(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
            connection.execute(text("SELECT set_config('search_path', :path, true)"), {"path": search_path})
            yield connection
    except DBAPIError as error:
        raise refusal(engine.url, error, write=False) from error


# --- in both


def _touch(connection: Connection) -> None:
    """Read something: only then SQLite settles which state a transaction reads."""
    connection.exec_driver_sql(
        "SELECT count(*) FROM sqlite_master" if connection.dialect.name == "sqlite" else "SELECT 1"
    )


def _version(watcher: Any) -> int:
    """Return a number that changes with every commit of another connection."""
    return int(watcher.cursor().execute("PRAGMA data_version").fetchone()[0])


def _absolute(url: URL) -> URL:
    return url.set(database=str(Path(str(url.database)).absolute())) if url.get_backend_name() == "sqlite" else url
