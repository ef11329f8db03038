"""The database under the ledger: connections, transactions, the version of its schema.

SQLite in WAL mode; a writer takes its lock at once (BEGIN IMMEDIATE): what it reads stays true until it commits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import NullPool

from ledger.errors import LedgerError, SchemaError

BUSY_TIMEOUT_MS = 30_000


def connect(url: str, *, create: bool) -> Engine:
    """Return an engine on the ledger at `url`, with the schema this program knows.

    Args:
        url: `sqlite:///path`.
        create: Make the file, or bring an older schema up to date.

    Raises:
        LedgerError: There is no ledger at `url`, or it cannot be opened.
        SchemaError: Its schema is newer than this program, or older and `create` is false.
    """
    parsed = _sqlite_url(url)
    if not create and not Path(str(parsed.database)).exists():
        raise LedgerError(f"there is no ledger at {parsed.database}", 'run "nse init"')
    engine = create_engine(parsed, poolclass=NullPool)
    event.listen(engine, "connect", _set_up)
    event.listen(engine, "begin", _begin)
    if create:
        _migrate(engine)
    with transaction(engine, write=False) as connection:
        _check_schema(connection, str(parsed.database))
    return engine


@contextmanager
def transaction(engine: Engine, *, write: bool) -> Iterator[Connection]:
    """Run the block in one transaction: committed if the block ends normally, else rolled back.

    Raises:
        LedgerError: The database refuses (locked for 30 s, not a database, disk full, a trigger).
    """
    try:
        with engine.execution_options(ledger_write=write).begin() as connection:
            yield connection
    except DBAPIError as error:
        problem = f"the ledger at {engine.url.database} refused: {error.orig}"
        raise LedgerError(problem, "nothing was written; see to the cause and try again") from error


def _sqlite_url(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise LedgerError(f"{url!r} is not a database URL", "write sqlite:///path/to/ledger.db") from error
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        shown = parsed.render_as_string(hide_password=True)
        raise LedgerError(f"{shown} is not a SQLite file", "write sqlite:///path/to/ledger.db")
    return parsed


def _set_up(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin transactions of its own
    connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin(connection: Connection) -> None:
    write = connection.get_execution_options().get("ledger_write", False)
    if not write:
        connection.exec_driver_sql("PRAGMA query_only=ON")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    folder = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", folder.replace("%", "%%"))  # "%" interpolates in alembic's options
    config.attributes["connection"] = connection
    return config


def _migrate(engine: Engine) -> None:
    with transaction(engine, write=False) as connection:
        if MigrationContext.configure(connection).get_current_revision() == _known():
            return
    try:
        raw = engine.raw_connection()
        try:
            raw.cursor().execute("PRAGMA journal_mode=WAL")  # stays with the file; cannot change inside a transaction
        finally:
            raw.close()
    except engine.dialect.loaded_dbapi.Error as error:
        raise LedgerError(f"cannot make a ledger at {engine.url.database}: {error}", "check the folder") from error
    with transaction(engine, write=True) as connection:
        current = MigrationContext.configure(connection).get_current_revision()
        if current is None or current in _revisions():
            command.upgrade(_config(connection), "head")


def _known() -> str:
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None  # the package ships at least one migration
    return head


def _revisions() -> set[str]:
    return {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


def _check_schema(connection: Connection, path: str) -> None:
    current = MigrationContext.configure(connection).get_current_revision()
    known = _known()
    if current is None:
        raise SchemaError(f"{path} is not a ledger", 'run "nse init"')
    if current not in _revisions():
        raise SchemaError(f"ledger {path} has schema {current}, this program knows {known}", "upgrade the program")
    if current != known:
        raise SchemaError(f"ledger {path} has the older schema {current}, not {known}", 'run "nse init" to upgrade it')
