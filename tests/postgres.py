"""A PostgreSQL server for the tests: in a temporary folder, on a Unix socket of its own, gone at the end.

`postgres` gives ledgers on it; `ledger_url` runs a test twice, on SQLite and on PostgreSQL.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psycopg
import pytest

from ledger.database import connect

TEMPLATE = "template_ledger"


@dataclass
class PostgresServer:
    """A server that listens on a socket in `folder` and trusts everybody who can reach it; `postgres` is the superuser."""

    folder: Path
    programs: Path
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def start(self) -> None:
        data, options = str(self.folder / "data"), f"-c listen_addresses= -c fsync=off -k {self.folder}"
        initdb = ("--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync")
        self._run("initdb", "--pgdata", data, *initdb)
        self._run(
            "pg_ctl", "start", "--wait", "--pgdata", data, "--log", str(self.folder / "log"), "--options", options
        )

    def prepare(self) -> None:
        """Make the ledger with nothing in it that the others are copies of."""
        self.execute(f"CREATE DATABASE {TEMPLATE}")
        connect(self.url(TEMPLATE), create=True)

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "--wait", "--pgdata", str(self.folder / "data"), "--mode", "fast")

    def url(self, database: str, *, user: str = "postgres") -> str:
        """Return the URL of a database for one of the server's roles."""
        return f"postgresql://{user}@/{database}?host={self.folder}"

    def new_url(self, *, empty: bool = False) -> str:
        """Make a database with an empty ledger in it, or with nothing (`empty`); returns its URL."""
        name = f"ledger_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {'template1' if empty else TEMPLATE}")
        return self.url(name)

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Run a statement as the superuser, outside a transaction."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            connection.execute(statement.encode())

    def _run(self, program: str, *arguments: str) -> None:
        # PostgreSQL refuses to run as root. Its output goes to a file: a server would keep a pipe open.
        user = (
            {"user": self.folder.owner(), "group": self.folder.group(), "extra_groups": []} if not os.getuid() else {}
        )
        with (self.folder / f"{program}.out").open("w+") as out:
            command = [str(self.programs / program), *arguments]
            done = subprocess.run(command, cwd=self.folder, stdout=out, stderr=out, check=False, **user)  # type: ignore[call-overload]
            out.seek(0)
            assert done.returncode == 0, out.read()


def find_programs() -> Path | None:
    """Return the folder of PostgreSQL's programs: that of `initdb` on the path, else Debian's."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders else None


def find_room() -> str | None:
    """Return a folder in memory with room for some hundred databases of 300 files each; None: where temporary files go."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > 4 * 2**30 else None


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server; without PostgreSQL's programs the test is skipped, on CI it fails."""
    programs = find_programs()
    if programs is None:
        reason = "PostgreSQL is not installed: no initdb on the path (Debian: apt-get install postgresql)"
        if "CI" in os.environ:
            pytest.fail(reason)
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="nse-postgres-", dir=find_room(), ignore_cleanup_errors=True) as name:
        if not os.getuid():
            user = pwd.getpwnam("postgres")
            os.chown(name, user.pw_uid, user.pw_gid)
        server = PostgresServer(Path(name), programs)
        server.start()
        try:
            server.prepare()
            yield server
        finally:
            server.stop()


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new ledger with nothing in it: a file, then a database of the PostgreSQL server."""
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres").new_url())
    url = f"sqlite:///{tmp_path}/ledger.db"
    connect(url, create=True)
    return url
