"""Verification finds whatever was changed past the triggers, and reports all of it."""

import hashlib
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from ledger import audit
from ledger.artifacts import DvcStore
from ledger.records import ActiveDelta, CaseResult, Decision, Gate
from ledger.tables import metadata, row_digest

COLUMNS = [(table.name, column.name) for table in metadata.sorted_tables for column in table.columns]


@contextmanager
def tampering(path: Path, table: str) -> Iterator[sqlite3.Connection]:
    """Change a table as somebody with the file can: without its triggers, which are put back afterwards."""
    with closing(sqlite3.connect(path)) as database:
        database.row_factory = sqlite3.Row
        triggers = database.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ?", (table,)
        ).fetchall()
        for trigger in triggers:
            database.execute(f"DROP TRIGGER {trigger['name']}")
        yield database
        for trigger in triggers:
            database.execute(trigger["sql"])
        database.commit()


def flip(database: sqlite3.Connection, table: str, column: str, spoil: str) -> None:
    """Change one column of the table's last row."""
    keys = [key.name for key in metadata.tables[table].primary_key.columns]
    row = database.execute(f"SELECT * FROM {table} ORDER BY {', '.join(keys)} DESC LIMIT 1").fetchone()
    where = " AND ".join(f"{key} = ?" for key in keys)
    database.execute(f"UPDATE {table} SET {column} = {spoil} WHERE {where}", [row[key] for key in keys])


def wheres(scenario, store) -> list[str]:
    return [finding.where for finding in audit.verify(scenario.ledger, store)]


def test_a_ledger_nobody_touched_has_no_findings(full, fake_store) -> None:
    assert audit.verify(full.ledger, fake_store) == []
    assert len(fake_store.checked) == 2


@pytest.mark.parametrize(("table", "column"), COLUMNS)
def test_one_changed_value_in_any_column_of_any_table_is_found_and_its_row_named(
    full, fake_store, table: str, column: str
) -> None:
    with tampering(full.path, table) as database:
        kind = database.execute(f"SELECT typeof({column}) FROM {table} WHERE {column} IS NOT NULL LIMIT 1").fetchone()
        number = kind[0] in ("integer", "real")
        flip(database, table, column, f"coalesce({column}, 0) + 1000" if number else f"coalesce({column}, '') || 'x'")
        keys = [key.name for key in metadata.tables[table].primary_key.columns]
        rows = [tuple(row) for row in database.execute(f"SELECT {', '.join(keys)} FROM {table}")]
    names = {" ".join([table, *map(str, key)]) for key in rows}
    found = [finding for finding in audit.verify(full.ledger, fake_store) if "was changed" in finding.problem]
    assert {finding.where for finding in found} & names


@pytest.mark.parametrize(("table", "column"), COLUMNS)
@pytest.mark.parametrize("spoil", ["x'ff00'", "CAST(x'41ff42' AS TEXT)", "'[{\"'", "-1e300"])
def test_whatever_a_value_is_spoilt_to_verification_goes_on_to_its_end(
    full, fake_store, table: str, column: str, spoil: str
) -> None:
    fake_store.problems = {"artifacts/deltas/one.safetensors": ["is gone"]}
    with tampering(full.path, table) as database:
        flip(database, table, column, spoil)
    found = wheres(full, fake_store)
    assert any(where.startswith(table) for where in found)
    assert (table, column) == ("changeset_delta", "path") or "artifact artifacts/deltas/one.safetensors" in found


def test_all_problems_are_reported_and_not_only_the_first(full, fake_store) -> None:
    for table in metadata.tables:
        with tampering(full.path, table) as database:
            flip(database, table, "row_digest", "'spoilt'")
    found = wheres(full, fake_store)
    assert {where.split()[0] for where in found} >= set(metadata.tables)


@pytest.mark.parametrize("table", ["correction", "quarantined", "changeset", "decision", "changeset_case"])
def test_a_deleted_row_is_missed(full, fake_store, table: str) -> None:
    keys = ", ".join(key.name for key in metadata.tables[table].primary_key.columns)
    with tampering(full.path, table) as database:
        database.execute(f"DELETE FROM {table} WHERE ({keys}) IN (SELECT {keys} FROM {table} LIMIT 1)")
    assert wheres(full, fake_store)


def test_a_changed_row_with_its_digest_made_to_fit_is_found_by_the_identity_of_the_record(full, fake_store) -> None:
    with tampering(full.path, "changeset_metric") as database:
        flip(database, "changeset_metric", "value", "0.125")
        table = metadata.tables["changeset_metric"]
        for row in database.execute("SELECT * FROM changeset_metric WHERE value = 0.125").fetchall():
            database.execute(
                "UPDATE changeset_metric SET row_digest = ? WHERE changeset_id = ? AND position = ?",
                (row_digest(table, dict(row)), row["changeset_id"], row["position"]),
            )
    [finding] = audit.verify(full.ledger, fake_store)
    assert finding.where.startswith("changeset ")
    assert "not the digest of the content" in finding.problem


def test_a_missing_trigger_is_found(full, fake_store) -> None:
    with closing(sqlite3.connect(full.path)) as database:
        database.execute("DROP TRIGGER decision_refuse_delete")
    [finding] = audit.verify(full.ledger, fake_store)
    assert (finding.where, finding.problem) == ("table decision", "the trigger that refuses delete is gone")


def insert_head(scenario, changeset) -> None:
    """Move the head past the rules, as a defective program might."""
    from ledger import repository
    from ledger.records import HeadMove

    with scenario.ledger.begin() as work:
        head = work.head("demo")
        move = HeadMove("demo", head.position + 1, changeset.candidate_version, changeset.id, scenario.now(), "x")
        repository.insert_record(work.connection, move, repository.last_sequence(work.connection) + 1)


def test_a_changeset_applied_without_approval_is_found(scenario, fake_store) -> None:
    insert_head(scenario, scenario.propose(scenario.file()))
    [finding] = audit.verify(scenario.ledger, fake_store)
    assert (finding.where[:12], finding.problem) == ("changeset #1", "it was applied without an approval that stands")


def test_a_changeset_applied_with_a_failed_gate_or_by_its_submitters_approval_is_found(scenario, fake_store) -> None:
    changeset = scenario.propose(scenario.file(), gates=(Gate("specificity", ">=", 0.9, 0.5, False),))
    with scenario.ledger.begin() as work:
        work.add_decision(
            Decision(
                changeset_id=changeset.id,
                verdict="approve",
                reviewer="ANA",
                reason="mine",
                decided_at=scenario.now(),
            )
        )
    insert_head(scenario, changeset)
    problems = [finding.problem for finding in audit.verify(scenario.ledger, fake_store)]
    assert problems[0] == "it was applied although a gate failed"
    assert problems[1].endswith("ANA filed one of its corrections")
    assert len(problems) == 2


def test_a_head_whose_changeset_was_planned_on_another_head_is_found(scenario, fake_store) -> None:
    stale = scenario.propose(scenario.file())
    scenario.approve(stale)
    scenario.write(scenario.file("Bulgaria"))
    insert_head(scenario, stale)
    [finding] = audit.verify(scenario.ledger, fake_store)
    assert (finding.where, finding.problem) == ("head_move demo 2", "changeset #1 was not planned on the head before")


def test_changesets_on_different_bases_are_found(scenario, fake_store) -> None:
    scenario.propose(scenario.file())
    scenario.propose(scenario.file("Bulgaria"), base_digest="0" * 64)
    [finding] = audit.verify(scenario.ledger, fake_store)
    assert finding.problem == f"its base is {'0' * 12}, that of #1 is {'ba5e' * 3}"


def test_a_delta_with_one_byte_changed_is_found_and_a_missing_one_is_pulled(
    scenario, workspace: Path, tmp_path: Path
) -> None:
    store = DvcStore(workspace)
    active = []
    for number in range(2):
        (tmp_path / "delta").write_bytes(b"factors %d" % number)
        stored = store.put(tmp_path / "delta", "artifacts/deltas")
        active.append(ActiveDelta(stored.sha256, stored.path))
    one, two = scenario.file(), scenario.file("Bulgaria")
    results = tuple(CaseResult(c.id, "edited", 9, 1, d.sha256) for c, d in zip((one, two), active, strict=True))
    scenario.write(active=tuple(active), results=results)
    (workspace / active[1].path).unlink()
    shutil.rmtree(workspace / ".dvc" / "cache")
    assert audit.verify(scenario.ledger, store) == []
    assert (workspace / active[1].path).exists()

    spoilt = workspace / active[0].path
    content = bytearray(spoilt.read_bytes())
    content[3] ^= 1
    spoilt.chmod(0o644)
    spoilt.write_bytes(content)
    [finding] = audit.verify(scenario.ledger, store)
    assert finding.where == f"artifact {active[0].path}"
    assert hashlib.sha256(content).hexdigest()[:12] in finding.problem
