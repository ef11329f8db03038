"""The log of a real ledger is the RFC 6962 tree over its records' leaves, at every size and over its stored subtrees."""

from pathlib import Path

import pytest
from sqlalchemy import select

from ledger import merkle, repository, tables
from ledger.database import connect, transaction
from ledger.errors import LedgerError
from ledger.log import Log, LogEvent
from tests.ledger.history import full_history, open_history


def leaves_of(count: int) -> list[bytes]:
    return [merkle.leaf_hash(str(number).encode()) for number in range(count)]


def events_of(leaves: list[bytes], start: int = 0) -> list[LogEvent]:
    return [LogEvent(start + i + 1, "correction", f"c{start + i}", leaf.hex()) for i, leaf in enumerate(leaves)]


def test_every_leaf_is_the_hash_of_the_canonical_json_of_its_record(ledger_url: str) -> None:
    history = full_history(ledger_url)
    with history.ledger.read() as work:
        leaves = {}
        for table in tables.RECORD_TABLES:
            for row in repository.select_rows(work.connection, table):
                leaves[row["sequence"]] = merkle.leaf_hash(repository.leaf(table, row))
        assert sorted(leaves) == list(range(1, work.log.size() + 1))
        subtree = merkle.subtrees_of([leaves[sequence] for sequence in sorted(leaves)])
        for size in (0, 1, 2, 7, 64, 255, 256, 257, work.log.size()):
            assert work.log.root(size) == merkle.root(size, subtree)


def test_all_inclusion_and_consistency_proofs_up_to_64_events_of_a_real_ledger_verify(tmp_path: Path) -> None:
    history = open_history(f"sqlite:///{tmp_path / 'ledger.db'}")
    history.start()
    with history.ledger.begin() as work:
        work.file([history.correction(f"Country {n}", "euro") for n in range(64 - work.log.size())])
    with history.ledger.read() as work:
        assert work.log.size() == 64
        roots = [work.log.root(size) for size in range(65)]
        leaves = [bytes.fromhex(text) for text in work.connection.scalars(select(tables.log_event.c.leaf_hash))]
        for new in range(65):
            for index in range(new):
                proof = merkle.inclusion_proof(index, new, work.log.subtree)
                merkle.verify_inclusion(leaves[index], index, new, proof, roots[new])
            for old in range(new + 1):
                proof = merkle.consistency_proof(old, new, work.log.subtree)
                merkle.verify_consistency(old, roots[old], new, roots[new], proof)


@pytest.mark.parametrize("steps", [[600], [255, 1, 1, 255, 1], [256, 256], [1] * 20 + [500]])
def test_however_events_are_appended_the_root_and_the_stored_subtrees_are_the_same(
    ledger_url: str, steps: list[int]
) -> None:
    engine, leaves = connect(ledger_url, create=True), leaves_of(sum(steps))
    done = 0
    for step in steps:
        with transaction(engine, write=True) as connection:
            Log(connection).append(events_of(leaves[done : done + step], done))
        done += step
    subtree = merkle.subtrees_of(leaves)
    with transaction(engine, write=False) as connection:
        nodes = connection.execute(select(tables.log_node)).all()
        assert {(level, place): bytes.fromhex(text) for level, place, text in nodes} == {
            (8, place): subtree(8, place) for place in range(len(leaves) // 256)
        }
        log = Log(connection)
        for size in (0, 1, 255, 256, 257, 511, 512, len(leaves)):
            if size <= len(leaves):
                assert log.root(size) == merkle.root(size, subtree)


def test_subtrees_of_the_second_level_are_stored_when_65536_events_are_there(tmp_path: Path) -> None:
    engine, leaves = connect(f"sqlite:///{tmp_path / 'ledger.db'}", create=True), leaves_of(65536 + 3)
    with transaction(engine, write=True) as connection:
        Log(connection).append(events_of(leaves[:65000]))
    with transaction(engine, write=True) as connection:
        Log(connection).append(events_of(leaves[65000:], 65000))
    frontier = merkle.Frontier()
    for leaf in leaves:
        frontier.append(leaf)
    with transaction(engine, write=False) as connection:
        node = tables.log_node
        assert connection.execute(select(node).where(node.c.level == 16)).all() == [
            (16, 0, merkle.subtrees_of(leaves)(16, 0).hex())
        ]
        assert Log(connection).root() == frontier.root()


def test_a_root_over_events_that_are_not_there_is_refused(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'ledger.db'}", create=True)
    with transaction(engine, write=True) as connection:
        log = Log(connection)
        log.append(events_of(leaves_of(5)))
        with pytest.raises(LedgerError, match="the log lacks hash 5 of level 0"):
            log.root(6)
        log.append([])
        assert log.size() == 5
