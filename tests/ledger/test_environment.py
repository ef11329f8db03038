"""The machine misbehaves: no room, no right to write, no power, a clock set back, a program that is too old.

What was committed is there and verifies, what was not is not, and the same write goes through when all is well again.
"""

import ctypes
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from ledger import audit
from ledger.errors import LedgerError, SchemaError
from ledger.unit_of_work import open_ledger
from tests.ledger.cast import Cast, cast, new_cast
from tests.ledger.conftest import FakeStore

__all__ = ["cast"]
pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)  # of fork, Python 3.12


@pytest.fixture
def on_disk(tmp_path: Path) -> Cast:
    """A ledger in a file."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    open_ledger(url, create=True)
    return new_cast(url, tmp_path / "ledger.db")


def in_a_child(do: Callable[[], str]) -> str:
    """Runs something in a process of its own, which may spoil its limits and rights; returns what it said."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(write, do().encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as said:
        answer = said.read()
    os.waitpid(pid, 0)
    return answer


def file_one(cast: Cast, number: int) -> None:
    cast.file(f"Country {number}", reason="law " * 200)


def corrections(cast: Cast) -> list[str]:
    with cast.ledger.read() as work:
        return [correction.subject for correction in work.corrections("demo")]


def test_when_the_disk_is_full_what_was_committed_is_there_and_the_next_write_says_so(on_disk: Cast) -> None:
    def fill() -> str:
        size = on_disk.path.stat().st_size + 40_000
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        done = 0
        try:
            while done < 1000:
                file_one(on_disk, done)
                done += 1
        except LedgerError as error:
            return f"{done} {error}"
        return "there was room"

    done, _, said = in_a_child(fill).partition(" ")
    assert 0 < int(done) < 1000
    assert "refused" in said
    assert "\n" not in said
    assert corrections(on_disk) == [f"Country {number}" for number in range(int(done))]
    assert audit.verify(on_disk.ledger, FakeStore()) == []
    file_one(on_disk, int(done))
    assert len(corrections(on_disk)) == int(done) + 1


def test_a_file_that_may_only_be_read_can_be_read_and_a_write_says_so(on_disk: Cast) -> None:
    file_one(on_disk, 1)
    on_disk.path.chmod(0o444)

    def write() -> str:
        if not os.getuid():  # root gives up its capabilities, by which it could write all the same
            header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
            assert ctypes.CDLL(None).capset(header, none) == 0
        try:
            file_one(on_disk, 2)
        except LedgerError as error:
            return f"{corrections(on_disk)} {error}"
        return "it was written"

    said = in_a_child(write)
    assert said.startswith("['Country 1'] the ledger at ")
    assert "readonly database" in said
    on_disk.path.chmod(0o644)
    file_one(on_disk, 2)
    assert corrections(on_disk) == ["Country 1", "Country 2"]
    assert audit.verify(on_disk.ledger, FakeStore()) == []


def test_when_the_power_fails_the_ledger_is_one_that_was_committed(on_disk: Cast, tmp_path: Path) -> None:
    roots = {}
    with on_disk.ledger.read() as held:  # a reader keeps what follows in the write-ahead log
        held.log.size()
        for number in range(4):
            file_one(on_disk, number)
            with on_disk.ledger.read() as work:
                roots[work.log.size()] = work.log.root()
        wal = on_disk.path.with_name("ledger.db-wal").read_bytes()
        whole = on_disk.path.read_bytes()
    found = set()
    for cut in range(0, len(wal) + 1, max(1, len(wal) // 23)):
        path = tmp_path / "after" / "ledger.db"
        path.parent.mkdir()
        path.write_bytes(whole)
        path.with_name("ledger.db-wal").write_bytes(wal[:cut])
        ledger = open_ledger(f"sqlite:///{path}")
        with ledger.read() as work:
            size = work.log.size()
            found.add(size)
            assert size < min(roots) or work.log.root() == roots[size]
        assert audit.verify(ledger, FakeStore()) == []
        shutil.rmtree(path.parent)
    assert len(found) > 2


def test_an_event_well_before_the_last_one_is_refused_and_a_small_step_back_is_not(cast: Cast) -> None:
    times = iter(("2026-11-21T12:00:00Z", "2026-11-21T11:00:00Z", "2026-11-21T11:49:59Z", "2026-11-21T11:50:01Z"))
    cast.file("Chad", filed_at=next(times))
    for _ in range(2):
        with pytest.raises(
            LedgerError, match=r"the clock says .*, but the last event was recorded at 2026-11-21T12:00:00Z"
        ):
            cast.file("Cuba", filed_at=next(times))
    cast.file("Croatia", filed_at=next(times))
    assert corrections(cast) == ["Chad", "Croatia"]
    assert audit.verify(cast.ledger, FakeStore()) == []


def test_the_head_never_moves_back_in_time(cast: Cast) -> None:
    cast.seconds = 3600
    first = cast.write(cast.file("Chad"))
    second = cast.propose(cast.file("Cuba"))
    cast.approve(second)
    with cast.ledger.read() as work:
        before = work.head("demo")
    assert before.changeset_id == first.id
    after = cast.apply(second, at="2026-11-21T00:55:00Z")
    assert after.moved_at == before.moved_at


def test_an_older_program_leaves_a_newer_ledger_alone(cast: Cast, ledger_url: str) -> None:
    cast.file("Chad")
    engine = create_engine(ledger_url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    for create in (False, True):
        with pytest.raises(SchemaError, match="upgrade the program"):
            open_ledger(ledger_url, create=create)
    assert corrections(cast) == ["Chad"]
