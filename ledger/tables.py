"""The tables of the ledger, one per kind of event, of part and of erasable text, and which of their rows may ever go.

Record tables and part tables are insert-only (triggers, made by the migrations). Text tables hold what can be erased:
a row can be deleted once an `erasure` names its owner, and at no other time. `waiting` is an index, not a record.
Column names are the field names of `records`. This module holds no queries (`repository`).
"""

import math
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Column, Double, ForeignKey, Index, Integer, MetaData, Table, Text
from sqlalchemy.sql.type_api import TypeEngine

metadata = MetaData()


def _text(name: str, *, null: bool = False) -> Column[Any]:
    return Column(name, Text, nullable=null)


def _integer(name: str) -> Column[Any]:
    return Column(name, Integer, nullable=False)


def _real(name: str) -> Column[Any]:
    return Column(name, Double, nullable=True)  # NULL is NaN: SQLite has no other way to hold it


def _reference(name: str, column: str, *, null: bool = False, primary_key: bool = False) -> Column[Any]:
    return Column(name, Text, ForeignKey(column), nullable=null, primary_key=primary_key)


def _table(name: str, *columns: Column[Any] | Index) -> Table:
    # Without a hidden rowid: REPLACE could name an old row by it, past the trigger that guards the keys.
    return Table(name, metadata, *columns, sqlite_with_rowid=False)


def _record_table(name: str, *columns: Column[Any] | Index, keyed: bool = False) -> Table:
    # `sequence` is the place in the log: it numbers the rows of all record tables together, from 1.
    identity = [] if keyed else [Column("id", Text, primary_key=True)]
    return _table(name, *identity, Column("sequence", Integer, nullable=False, unique=True), *columns)


def _part_table(name: str, *columns: Column[Any] | Index) -> Table:
    key = (
        _reference("changeset_id", "changeset.id", primary_key=True),
        Column("position", Integer, primary_key=True),
    )
    return _table(name, *key, *columns, _text("row_digest"))


correction = _record_table(
    "correction",
    _text("model"),
    _text("text_hash"),
    _text("submitter"),
    _text("effective_date", null=True),
    _reference("supersedes", "correction.id", null=True),
    _text("filed_at"),
    _text("file_name"),
    _integer("line"),
    Index("correction_superseded", "supersedes"),
    Index("correction_submitter", "submitter"),
)
correction_text = _table(
    "correction_text",
    _reference("correction_id", "correction.id", primary_key=True),
    _text("salt"),
    _text("subject"),
    _text("relation", null=True),
    _text("prompt_template"),
    _text("target_new"),
    _text("target_true", null=True),
    _text("source"),
    _text("reason"),
    _text("subject_key"),
    Column("text_digest", Text, nullable=False, unique=True),
    Index("correction_about", "subject_key", "relation"),
    Index("correction_source", "source"),
)
quarantined = _record_table(
    "quarantined",
    _text("file_name"),
    _text("file_digest"),
    _integer("line"),
    _text("field"),
    _text("text_hash"),
    _text("quarantined_at"),
)
quarantined_text = _table(
    "quarantined_text",
    _reference("quarantined_id", "quarantined.id", primary_key=True),
    _text("salt"),
    _text("reason"),
    _text("row_text"),
    Column("text_digest", Text, nullable=False, unique=True),
)
changeset = _record_table(
    "changeset",
    Column("number", Integer, nullable=False, unique=True),
    _text("model"),
    _text("kind"),
    _text("mode", null=True),
    _text("method"),
    _reference("parent", "changeset.id", null=True),
    _text("parent_version"),
    _text("candidate_version"),
    _text("base_digest"),
    _text("plan_digest"),
    _text("reverted"),
    _text("provenance"),
    _text("reason"),
    _text("planned_by"),
    _text("planned_at"),
    Index("changeset_of_parent", "parent"),  # none on "model": SQLite would walk a whole model by it
    Index("changeset_of_plan", "plan_digest"),
)
changeset_change = _part_table(
    "changeset_change",
    _text("sha256"),
    _text("path"),
    _text("dropped"),
    _integer("removed"),
    Index("changeset_change_of_delta", "sha256"),
)
changeset_result = _part_table(
    "changeset_result",
    _reference("correction_id", "correction.id"),
    _text("status"),
    _real("residual_before"),
    _real("residual_after"),
    _text("delta", null=True),
    Index("changeset_result_of_correction", "correction_id"),
    Index("changeset_result_in_delta", "delta"),
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
    _real("probability"),
    _integer("passed"),
    _text("text_hash"),
    Index("changeset_case_of", "case_id"),
)
case_text = _table(
    "case_text",
    _reference("changeset_id", "changeset.id", primary_key=True),
    Column("position", Integer, primary_key=True),
    _text("salt"),
    _text("prompt"),
    _text("expected"),
    _text("generated"),
)
decision = _record_table(
    "decision",
    _reference("changeset_id", "changeset.id"),
    _text("verdict"),
    _text("reviewer"),
    _text("reason"),
    _text("decided_at"),
    _reference("policy_id", "policy.id", null=True),
    _text("key_id", null=True),
    _text("signature", null=True),
    Index("decision_about", "changeset_id"),
    Index("decision_by", "reviewer"),
)
head_move = _record_table(
    "head_move",
    Column("model", Text, primary_key=True),
    Column("position", Integer, primary_key=True),
    _text("version"),
    Column("changeset_id", Text, ForeignKey("changeset.id"), nullable=True, unique=True),
    _text("moved_at"),
    _text("moved_by"),
    Index("head_move_when", "model", "moved_at"),
    keyed=True,
)
key_event = _record_table(
    "key_event",
    _text("action"),
    _text("key_id"),
    _text("person"),
    _text("public_key"),
    _text("reason"),
    _text("at"),
    _text("by"),
    Index("key_event_of_key", "key_id"),
)
policy = _record_table(
    "policy",
    _text("model"),
    _text("text"),
    _text("adopted_by"),
    _text("adopted_at"),
    _text("key_id", null=True),
    _text("signature", null=True),
)
erasure = _record_table(
    "erasure", _text("ref"), _text("reason"), _text("erased_by"), _text("erased_at"), Index("erasure_of", "ref")
)

# The log: one leaf per record, in order; the roots of complete subtrees of every eighth level; signed checkpoints.
log_event = _table(
    "log_event",
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    _text("kind"),
    _text("ref"),
    _text("leaf_hash"),
    Index("log_event_of", "ref"),
)
log_node = _table(
    "log_node",
    Column("level", Integer, primary_key=True, autoincrement=False),
    Column("place", Integer, primary_key=True, autoincrement=False),
    _text("hash"),
)
checkpoint = _table("checkpoint", Column("size", Integer, primary_key=True, autoincrement=False), _text("note"))

# The corrections that no applied or rejected changeset has settled. Derived: `verify` compares, `rebuild` makes it anew.
waiting = _table(
    "waiting",
    _text("model"),
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    _reference("correction_id", "correction.id"),
    Index("waiting_of_model", "model", "sequence"),
)

RECORD_TABLES = (correction, quarantined, changeset, decision, head_move, key_event, policy, erasure)
TIME_OF = {
    column.table.name: column
    for column in (
        *(correction.c.filed_at, quarantined.c.quarantined_at, changeset.c.planned_at, decision.c.decided_at),
        *(head_move.c.moved_at, key_event.c.at, policy.c.adopted_at, erasure.c.erased_at),
    )
}
"""The column of each record table, by its name, that says when a row was recorded."""
PART_TABLES = (changeset_change, changeset_result, changeset_metric, changeset_gate, changeset_case)
INSERT_ONLY = (*RECORD_TABLES, *PART_TABLES, log_event, log_node, checkpoint)
TEXT_TABLES = {correction_text: "correction_id", quarantined_text: "quarantined_id", case_text: None}
"""Each with the column that an erasure names; a case's text goes with the erasure of the correction its case names."""
JSON_COLUMNS = frozenset({"reverted", "provenance", "dropped"})


def stored(value: Any, kind: TypeEngine[Any]) -> Any:
    """Return `value` as a column of type `kind` holds it: NaN is NULL, true is 1, an integer in a float column a float."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(kind, Double) and isinstance(value, int):
        return float(value)
    return int(value) if isinstance(kind, Integer) and isinstance(value, bool) else value


def row_name(table: Table, row: Mapping[Any, Any]) -> str:
    """Name a row for people: the table and its primary key."""
    return " ".join([table.name, *(str(row[column.name]) for column in table.primary_key.columns)])
