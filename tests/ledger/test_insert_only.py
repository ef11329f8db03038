"""No row of the ledger can be changed, whatever SQL is used."""

import sqlite3
from contextlib import closing

import pytest

from ledger.tables import metadata

TABLES = sorted(metadata.tables)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
    ("statement", "verb"),
    [
        ("UPDATE {table} SET row_digest = 'x'", "updated"),
        ("UPDATE OR REPLACE {table} SET row_digest = 'x'", "updated"),
        ("DELETE FROM {table}", "deleted"),
        ("REPLACE INTO {table} SELECT * FROM {table}", "replaced"),
        ("INSERT OR REPLACE INTO {table} SELECT * FROM {table}", "replaced"),
        ("INSERT OR IGNORE INTO {table} SELECT * FROM {table}", "replaced"),
    ],
)
def test_every_table_refuses(full, table: str, statement: str, verb: str) -> None:
    with closing(sqlite3.connect(full.path)) as database:
        before = database.execute(f"SELECT * FROM {table}").fetchall()
        assert before, "the scenario must fill every table"
        with pytest.raises(sqlite3.IntegrityError, match=f"insert-only: a row of {table} cannot be {verb}"):
            database.execute(statement.format(table=table))
        assert database.execute(f"SELECT * FROM {table}").fetchall() == before


@pytest.mark.parametrize(
    ("table", "key"),
    [(table.name, column.name) for table in metadata.sorted_tables for column in table.columns if column.unique],
)
def test_a_replace_over_any_other_unique_column_is_refused(full, table: str, key: str) -> None:
    columns = [column.name for column in metadata.tables[table].columns]
    primary = {column.name for column in metadata.tables[table].primary_key.columns}
    values = ", ".join("77" if name == "position" else "'new'" if name in primary else name for name in columns)
    with closing(sqlite3.connect(full.path)) as database:
        select = f"SELECT {values} FROM {table} WHERE {key} IS NOT NULL LIMIT 1"
        with pytest.raises(sqlite3.IntegrityError, match="cannot be replaced"):
            database.execute(f"REPLACE INTO {table} ({', '.join(columns)}) {select}")


@pytest.mark.parametrize("table", TABLES)
def test_there_is_no_hidden_rowid_to_replace_a_row_by(full, table: str) -> None:
    with closing(sqlite3.connect(full.path)) as database, pytest.raises(sqlite3.OperationalError, match="rowid"):
        database.execute(f"SELECT rowid FROM {table}")
