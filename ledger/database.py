"""The database under the ledger: connections, transactions, the version of its schema.

Writers wait for one another, so what one reads stays true until it commits: on SQLite (WAL mode) by BEGIN IMMEDIATE, on
PostgreSQL by an advisory lock, one for each schema. Readers see one state from beginning to end. What went wrong is said
by `database_errors`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import NullPool

from ledger.database_errors import ledger_name, refusal
from ledger.errors import LedgerError, SchemaError

if TYPE_CHECKING:
    from alembic.config import Config

SCHEMA = "0001"
"""The revision of the schema that this program knows: the last of `migrations`."""
TIMEOUT_MS = 30_000
"""How long a writer waits for the one before it."""

# Only the schema that new tables would go to is looked at: another program's `alembic_version` may be in a later one.
_ONE_SCHEMA = "SELECT set_config('search_path', quote_ident(current_schema()), true)"
# Every query here is small or streamed: compiling has nothing to save, and when it begins depends on estimates (docs/log.md).
_NO_JIT = "SET LOCAL jit = off"
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('nse ledger ' || current_schema(), 0))"
_BEGIN = {
    ("sqlite", True): "BEGIN IMMEDIATE",
    ("sqlite", False): "BEGIN",
    ("postgresql", True): f"SET LOCAL lock_timeout = {{timeout}}; {_NO_JIT}; {_ONE_SCHEMA}; {_LOCK}",
    ("postgresql", False): f"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; {_NO_JIT}; {_ONE_SCHEMA}",
}


def connect(url: str, *, create: bool) -> Engine:
    """Return an engine on the ledger at `url`, with the schema this program knows.

    Args:
        url: `sqlite:///path`, or `postgresql://user@host/database` whose `?options=-csearch_path=NAME` may name a schema.
        create: Make the ledger (of SQLite the file, of PostgreSQL what belongs in the schema), or bring an older one up to
            date.

    Raises:
        LedgerError: There is no ledger at `url`, or it cannot be opened.
        SchemaError: Its schema is newer than this program, or older and `create` is false.
    """
    engine = engine_of(url)
    if not create and engine.dialect.name == "sqlite" and not Path(str(engine.url.database)).exists():
        raise LedgerError(f"there is no ledger at {engine.url.database}", 'run "nse init"')
    with transaction(engine, write=False) as connection:
        revision = _revision(connection)
    if create and revision != SCHEMA:
        revision = _migrate(engine)
    _check(revision, ledger_name(engine.url))
    return engine


def engine_of(url: str) -> Engine:
    """Return an engine on whatever is at `url`, or will be: nothing is opened yet.

    Raises:
        LedgerError: `url` is none that a ledger can be at, or the driver of PostgreSQL is not installed.
    """
    try:
        engine = create_engine(_parsed(url), poolclass=NullPool)
    except ModuleNotFoundError as error:
        raise LedgerError(
            "a ledger in PostgreSQL needs psycopg", 'run: pip install "nse-pipeline[postgresql]"'
        ) from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin)
    return engine


@contextmanager
def transaction(engine: Engine, *, write: bool) -> Iterator[Connection]:
    """Run the block in one transaction: committed if the block ends normally, else rolled back.

    Raises:
        LedgerError: The database refuses (locked for 30 s, not a database, disk full, server gone, a trigger).
    """
    try:
        with engine.execution_options(ledger_write=write).begin() as connection:
            yield connection
    except DBAPIError as error:
        raise refusal(engine.url, error, write=write) from error


def _parsed(url: str) -> URL:
    advice = "write sqlite:///path/to/ledger.db or postgresql://user@host/database"
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:  # ValueError: a port that is no number
        raise LedgerError("the ledger's URL is not the URL of a database", advice) from error  # it may hold a password
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "postgresql+psycopg"):
        raise LedgerError(f"a ledger cannot be at a URL of {parsed.drivername}", advice)
    if parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise LedgerError("a ledger needs a file, not the memory of one process", advice)
    return parsed


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin transactions of its own
    connection.execute(f"PRAGMA busy_timeout={TIMEOUT_MS}")
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA synchronous=FULL")  # what is committed survives the loss of power


def _begin(connection: Connection) -> None:
    write = connection.get_execution_options().get("ledger_write", False)
    dialect = connection.dialect.name
    if dialect == "sqlite" and not write:
        connection.exec_driver_sql("PRAGMA query_only=ON")
    connection.exec_driver_sql(_BEGIN[dialect, write].format(timeout=TIMEOUT_MS))


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return str(connection.scalar(text("SELECT version_num FROM alembic_version")))


def _migrate(engine: Engine) -> str | None:
    """Make the schema, or upgrade one that is known; returns the revision that is there afterwards."""
    from alembic import command

    if engine.dialect.name == "sqlite":
        use_wal(engine)
    with transaction(engine, write=True) as connection:
        revision = _revision(connection)  # again, now that no one else can be making it
        if revision is None or revision in _revisions():
            command.upgrade(_config(connection), "head")
        return _revision(connection)


def use_wal(engine: Engine) -> None:
    """Put a SQLite file in WAL mode, for good: readers and a writer do not wait for each other.

    Raises:
        LedgerError: The file cannot be written.
    """
    try:
        raw = engine.raw_connection()
        try:
            raw.cursor().execute("PRAGMA journal_mode=WAL")  # stays with the file; cannot change inside a transaction
        finally:
            raw.close()
    except engine.dialect.loaded_dbapi.Error as error:
        raise refusal(engine.url, error, write=True) from error


def _config(connection: Connection | None = None) -> "Config":
    from alembic.config import Config

    config = Config()
    folder = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", folder.replace("%", "%%"))  # "%" interpolates in alembic's options
    config.attributes["connection"] = connection
    return config


def _revisions() -> set[str]:
    from alembic.script import ScriptDirectory

    return {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


def _check(revision: str | None, name: str) -> None:
    if revision is None:
        raise SchemaError(f"{name} is not a ledger", 'run "nse init"')
    if revision == SCHEMA:
        return
    if revision not in _revisions():
        raise SchemaError(f"ledger {name} has schema {revision}, this program knows {SCHEMA}", "upgrade the program")
    raise SchemaError(f"ledger {name} has the older schema {revision}, not {SCHEMA}", 'run "nse init" to upgrade it')
