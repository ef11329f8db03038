"""The tables of the ledger, one per kind of record, and what protects their rows.

Every table is insert-only (triggers, made by the migrations) and every row carries the digest of its other columns.
Column names are the field names of `records`. This module holds no queries (`repository`).
"""

import math
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Column, Float, ForeignKey, Integer, MetaData, Table, Text
from sqlalchemy.sql.type_api import TypeEngine

from ledger.records import digest_of

metadata = MetaData()


def _text(name: str, *, null: bool = False) -> Column[Any]:
    return Column(name, Text, nullable=null)


def _integer(name: str) -> Column[Any]:
    return Column(name, Integer, nullable=False)


def _real(name: str) -> Column[Any]:
    return Column(name, Float, nullable=True)  # NULL is NaN: SQLite has no other way to hold it


def _record_table(name: str, *columns: Column[Any], keyed: bool = False) -> Table:
    # `sequence` numbers the rows of all five record tables together, in the order of filing: a gap is a deleted row.
    identity = [] if keyed else [Column("id", Text, primary_key=True)]
    sequence = Column("sequence", Integer, nullable=False, unique=True)
    # Without a hidden rowid: REPLACE could name an old row by it, past the trigger that guards the keys.
    return Table(name, metadata, *identity, sequence, *columns, _text("row_digest"), sqlite_with_rowid=False)


def _part_table(name: str, *columns: Column[Any]) -> Table:
    changeset_id = Column("changeset_id", Text, ForeignKey("changeset.id"), primary_key=True)
    position = Column("position", Integer, primary_key=True)
    return Table(name, metadata, changeset_id, position, *columns, _text("row_digest"), sqlite_with_rowid=False)


correction = _record_table(
    "correction",
    _text("model"),
    _text("subject"),
    _text("relation", null=True),
    _text("prompt_template"),
    _text("target_new"),
    _text("target_true", null=True),
    _text("source"),
    _text("submitter"),
    _text("reason"),
    _text("effective_date", null=True),
    Column("supersedes", Text, ForeignKey("correction.id"), nullable=True),
    _text("filed_at"),
    _text("file_name"),
    _integer("line"),
)
quarantined = _record_table(
    "quarantined",
    _text("file_name"),
    _text("file_digest"),
    _integer("line"),
    _text("field"),
    _text("reason"),
    _text("row_text"),
    _text("quarantined_at"),
)
changeset = _record_table(
    "changeset",
    Column("number", Integer, nullable=False, unique=True),
    _text("model"),
    _text("kind"),
    _text("parent_version"),
    _text("candidate_version"),
    _text("base_digest"),
    _text("reverted"),
    _text("provenance"),
    _text("reason"),
    _text("planned_by"),
    _text("planned_at"),
)
changeset_delta = _part_table("changeset_delta", _text("sha256"), _text("path"), _text("dropped"))
changeset_result = _part_table(
    "changeset_result",
    Column("correction_id", Text, ForeignKey("correction.id"), nullable=False),
    _text("status"),
    _real("residual_before"),
    _real("residual_after"),
    _text("delta", null=True),
)
changeset_metric = _part_table("changeset_metric", _text("name"), _text("phase"), _real("value"))
changeset_gate = _part_table(
    "changeset_gate", _text("name"), _text("op"), _real("bound"), _real("value"), _integer("passed")
)
changeset_case = _part_table(
    "changeset_case",
    _text("kind"),
    _text("phase"),
    _text("case_id"),
    _text("prompt"),
    _text("expected"),
    _real("probability"),
    _text("generated"),
    _integer("passed"),
)
decision = _record_table(
    "decision",
    Column("changeset_id", Text, ForeignKey("changeset.id"), nullable=False),
    _text("verdict"),
    _text("reviewer"),
    _text("reason"),
    _text("decided_at"),
)
head_move = _record_table(
    "head_move",
    Column("model", Text, primary_key=True),
    Column("position", Integer, primary_key=True),
    _text("version"),
    Column("changeset_id", Text, ForeignKey("changeset.id"), nullable=True, unique=True),
    _text("moved_at"),
    _text("moved_by"),
    keyed=True,
)

RECORD_TABLES = (correction, quarantined, changeset, decision, head_move)
JSON_COLUMNS = frozenset({"reverted", "provenance", "dropped"})


def stored(value: Any, kind: TypeEngine[Any]) -> Any:
    """Return `value` as a column of type `kind` holds it: NaN is NULL, true is 1, an integer in REAL a float."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(kind, Float) and isinstance(value, int):
        return float(value)
    if isinstance(value, bytes):
        return repr(value)  # only in a row that somebody spoilt: the digest must not fit, nor fail
    return int(value) if isinstance(kind, Integer) and isinstance(value, bool) else value


def row_digest(table: Table, row: Mapping[str, Any]) -> str:
    """Return the digest of a row: of every column but `row_digest`, by name, under the table's name."""
    columns = [column for column in table.columns if column.name != "row_digest"]
    return digest_of({table.name: {column.name: stored(row[column.name], column.type) for column in columns}})


def row_name(table: Table, row: Mapping[str, Any]) -> str:
    """Name a row for people: the table and its primary key."""
    return " ".join([table.name, *(str(row[column.name]) for column in table.primary_key.columns)])
