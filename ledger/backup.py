"""A backup of a ledger in use, as one file, and the ledger back from it; both are checked before they count as made.

Of SQLite the file is a database of its own, of PostgreSQL what `pg_dump --format=custom` writes (one schema, no roles:
`ledger.roles` grants anew). A backup holds text that is erased from the ledger later: see to old ones.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, func, inspect, select, text

from ledger.database import connect, engine_of, transaction, use_wal
from ledger.errors import LedgerError
from ledger.tables import metadata
from ledger.triggers import trigger_problems

Rows = dict[str, int]
"""Number of rows by table."""
_COPY = re.compile(rb'COPY (?:"(?:[^"]|"")*"|\w+)\."?(\w+)"? \(')


def backup(url: str, file: Path) -> Rows:
    """Write the ledger at `url`, as it is at one moment, to a new file; writers go on meanwhile. Returns its rows.

    Raises:
        LedgerError: The file is there already or cannot be written, or the ledger lacks triggers.
    """
    engine = connect(url, create=False)
    with _new(file) as partial, transaction(engine, write=False) as connection:
        _check_triggers(connection, "the ledger")
        rows = _rows(connection)
        if engine.dialect.name == "sqlite":
            _copy(connection, partial)
            found = _check_copy(partial)
        else:
            _dump(engine, connection, partial)
            found = _rows_of_dump(partial)
        _check_rows(expected=rows, found=found)
    return rows


def restore(file: Path, url: str) -> Rows:
    """Make the ledger of a backup at `url`, where there must be none. Returns its rows.

    Raises:
        LedgerError: There is something at `url`, the file is no backup of this kind of database, or not a whole one.
    """
    if not file.is_file():
        raise LedgerError(f"there is no file {file}", "give the path of a backup")
    engine = engine_of(url)
    if engine.dialect.name == "sqlite":
        return _restore_sqlite(file, engine)
    rows = _rows_of_dump(file)
    with transaction(engine, write=False) as connection:
        there = sorted({*metadata.tables, "alembic_version"} & set(inspect(connection).get_table_names()))
        schema = connection.scalar(text("SELECT current_schema()"))
    if there:
        raise LedgerError(f"there is a table {there[0]} at that place already", "restore into an empty schema")
    if schema is None or f" TABLE {schema} log_event " not in _run("pg_restore", "--list", str(file)):
        raise LedgerError(f"{file} is not the backup of a schema {schema}", "restore into a schema of the same name")
    options = ("--exit-on-error", "--single-transaction", "--no-owner", "--no-privileges")
    _run("pg_restore", *options, f"--schema={schema}", f"--dbname={_conninfo(engine)}", str(file), engine=engine)
    with transaction(connect(url, create=False), write=False) as connection:
        _check_triggers(connection, "what was restored")
        _check_rows(expected=rows, found=_rows(connection))
    return rows


# --- SQLite


def _copy(connection: Connection, file: Path) -> None:
    """Copy what the transaction of `connection` sees to a database of its own, complete without a WAL beside it."""
    source: Any = connection.connection.driver_connection
    target: Any = engine_of(f"sqlite:///{file}").raw_connection()
    try:
        source.backup(target.driver_connection)
        target.driver_connection.execute("PRAGMA journal_mode=DELETE")
    finally:
        target.close()


def _check_copy(file: Path) -> Rows:
    with transaction(connect(f"sqlite:///{file}", create=False), write=False) as connection:
        said = str(connection.exec_driver_sql("PRAGMA integrity_check").scalar())
        if said != "ok":
            raise LedgerError(f"{file} is damaged: {said}", "take another backup")
        _check_triggers(connection, str(file))
        return _rows(connection)


def _restore_sqlite(file: Path, engine: Engine) -> Rows:
    rows = _check_copy(file)
    with _new(Path(str(engine.url.database))) as partial:
        with transaction(engine_of(f"sqlite:///{file}"), write=False) as connection:
            _copy(connection, partial)
        use_wal(engine_of(f"sqlite:///{partial}"))
        _check_rows(expected=rows, found=_check_copy(partial))
    return rows


# --- PostgreSQL


def _dump(engine: Engine, connection: Connection, file: Path) -> None:
    """Dump what the transaction of `connection` sees."""
    snapshot = connection.scalar(text("SELECT pg_export_snapshot()"))
    schema = str(connection.scalar(text("SELECT quote_ident(current_schema())")))
    options = ("--format=custom", "--no-owner", "--no-privileges", f"--schema={_pattern(schema)}")
    place = (f"--snapshot={snapshot}", f"--file={file}", f"--dbname={_conninfo(engine)}")
    _run("pg_dump", *options, *place, engine=engine)


def _pattern(identifier: str) -> str:
    # In a pattern of pg_dump only what stands in double quotes is itself; quote_ident leaves plain names bare.
    return identifier if identifier.startswith('"') else f'"{identifier}"'


def _rows_of_dump(file: Path) -> Rows:
    """Count the rows in a dump: one line each between `COPY` and a line `\\.`."""
    rows: Rows = {}
    table = ""
    with _started("pg_restore", "--data-only", "--file=-", str(file)) as process:
        assert process.stdout is not None
        for line in process.stdout:
            start = None if table else _COPY.match(line)
            if start:
                table = start[1].decode()
                rows[table] = 0
            elif line == b"\\.\n":
                table = ""
            elif table:
                rows[table] += 1
    return {name: rows[name] for name in metadata.tables if name in rows}


def _conninfo(engine: Engine) -> str:
    from psycopg.conninfo import make_conninfo

    return make_conninfo(
        **{name: value for name, value in _parameters(engine).items() if name not in ("password", "sslpassword")}
    )


def _parameters(engine: Engine) -> dict[str, Any]:
    query = {name: value if isinstance(value, str) else ",".join(value) for name, value in engine.url.query.items()}
    return {**engine.url.translate_connect_args(username="user", database="dbname"), **query}


def _run(program: str, *arguments: str, engine: Engine | None = None) -> str:
    with _started(program, *arguments, engine=engine) as process:
        assert process.stdout is not None
        return process.stdout.read().decode(errors="replace")


@contextmanager
def _started(program: str, *arguments: str, engine: Engine | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program of PostgreSQL's while the block reads what it says; the password goes by its environment."""
    path = shutil.which(program)
    if path is None:
        raise LedgerError(f"there is no program {program}", "install PostgreSQL's client programs")
    password = _parameters(engine).get("password") if engine else None
    environment = {**os.environ, **({"PGPASSWORD": password} if password else {})}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [path, *arguments], stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=environment
    ) as process:
        yield process
        assert process.stderr is not None
        said = process.stderr.read().decode(errors="replace").strip()
    if process.returncode != 0:
        line = said.splitlines()[0] if said else f"exit status {process.returncode}"
        raise LedgerError(f"{program} failed: {line}", "see to the cause and try again; nothing was made")


# --- both


@contextmanager
def _new(file: Path) -> Iterator[Path]:
    """Yield the path to make a new file at: it gets its name when it is whole and on the disk, and only then."""
    if file.exists():
        raise LedgerError(f"there is a file {file} already", "name another place")
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.unlink(missing_ok=True)  # of a run that died
        partial.touch(mode=0o600)
        yield partial
        _sync(partial)
        partial.rename(file)
        _sync(file.parent)  # the new name
    except OSError as error:
        raise LedgerError(f"cannot write {file}: {error.strerror}", "check the folder and the disk") from error
    finally:
        partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rows(connection: Connection) -> Rows:
    return {
        table.name: connection.scalar(select(func.count()).select_from(table)) or 0 for table in metadata.sorted_tables
    }


def _check_triggers(connection: Connection, where: str) -> None:
    for name, problem in trigger_problems(connection).items():
        raise LedgerError(f"{where} has a trigger {name} that is {problem}", 'see "nse verify"')


def _check_rows(*, expected: Mapping[str, int], found: Mapping[str, int]) -> None:
    for name in metadata.tables:
        if expected.get(name) != found.get(name):
            problem = f"{name} has {found.get(name)} rows in the copy, not {expected.get(name)}"
            raise LedgerError(problem, "the copy is not whole: make it again")
