"""The first schema: records, the parts of a changeset, erasable text, the log, the triggers that guard them, views.

Frozen: a later schema is a later migration. `tests/ledger` holds it against `ledger.tables`.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from ledger import sql_views, triggers

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables, their indexes, their triggers and the views."""
    records = [
        _record("correction", *_texts("model text_hash submitter effective_date?"),
                _reference("supersedes", "correction", null=True), *_texts("filed_at file_name"), *_integers("line")),
        _record("quarantined", *_texts("file_name file_digest"), *_integers("line"),
                *_texts("field text_hash quarantined_at")),
        _record("changeset", sa.Column("number", sa.Integer, nullable=False, unique=True),
                *_texts("model kind mode? method"), _reference("parent", "changeset", null=True),
                *_texts("parent_version candidate_version base_digest plan_digest reverted provenance reason"),
                *_texts("planned_by planned_at")),
        _record("policy", *_texts("model text adopted_by adopted_at key_id? signature?")),
        _record("decision", _reference("changeset_id", "changeset"), *_texts("verdict reviewer reason decided_at"),
                _reference("policy_id", "policy", null=True), *_texts("key_id? signature?")),
        _record("head_move", *_keys("model:text position"), *_texts("version"),
                sa.Column("changeset_id", sa.Text, sa.ForeignKey("changeset.id"), unique=True),
                *_texts("moved_at moved_by"), keyed=True),
        _record("key_event", *_texts("action key_id person public_key reason at by")),
        _record("erasure", *_texts("ref reason erased_by erased_at")),
    ]  # fmt: skip
    parts = [
        _part("change", *_texts("sha256 path dropped"), *_integers("removed")),
        _part("result", _reference("correction_id", "correction"), *_texts("status"),
              *_reals("residual_before residual_after"), *_texts("delta?")),
        _part("metric", *_texts("name phase"), *_reals("value")),
        _part("gate", *_texts("name op"), *_reals("bound value"), *_integers("passed")),
        _part("case", *_texts("kind phase case_id"), *_reals("probability"), *_integers("passed"), *_texts("text_hash")),
    ]  # fmt: skip
    log = [
        _table("log_event", *_keys("sequence"), *_texts("kind ref leaf_hash")),
        _table("log_node", *_keys("level place"), *_texts("hash")),
        _table("checkpoint", *_keys("size"), *_texts("note")),
    ]
    texts: dict[sa.Table, str | None] = {
        _table("correction_text", _reference("correction_id", "correction", primary_key=True),
               *_texts("salt subject relation? prompt_template target_new target_true? source reason subject_key"),
               sa.Column("text_digest", sa.Text, nullable=False, unique=True)): "correction_id",
        _table("quarantined_text", _reference("quarantined_id", "quarantined", primary_key=True),
               *_texts("salt reason row_text"),
               sa.Column("text_digest", sa.Text, nullable=False, unique=True)): "quarantined_id",
        _table("case_text", _reference("changeset_id", "changeset", primary_key=True), *_keys("position"),
               *_texts("salt prompt expected generated")): None,
    }  # fmt: skip
    waiting = _table("waiting", *_texts("model"), *_keys("sequence"), _reference("correction_id", "correction"))
    _make_indexes()
    dialect = op.get_context().dialect.name
    guards = triggers.statements(dialect, insert_only=[*records, *parts, *log], texts=texts, indexes=[waiting])
    for statement in (*guards, *sql_views.views(dialect).values()):
        op.execute(sa.text(statement.replace(":", "\\:")))  # no colon in it is a parameter


def _make_indexes() -> None:
    for name, table, columns in (
        ("correction_superseded", "correction", "supersedes"),
        ("correction_submitter", "correction", "submitter"),
        ("correction_about", "correction_text", "subject_key relation"),
        ("correction_source", "correction_text", "source"),
        ("changeset_of_parent", "changeset", "parent"),
        ("changeset_of_plan", "changeset", "plan_digest"),
        ("changeset_change_of_delta", "changeset_change", "sha256"),
        ("changeset_result_of_correction", "changeset_result", "correction_id"),
        ("changeset_result_in_delta", "changeset_result", "delta"),
        ("changeset_case_of", "changeset_case", "case_id"),
        ("decision_about", "decision", "changeset_id"),
        ("decision_by", "decision", "reviewer"),
        ("head_move_when", "head_move", "model moved_at"),
        ("key_event_of_key", "key_event", "key_id"),
        ("erasure_of", "erasure", "ref"),
        ("log_event_of", "log_event", "ref"),
        ("waiting_of_model", "waiting", "model sequence"),
    ):
        op.create_index(name, table, columns.split())


def _texts(names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name.rstrip("?"), sa.Text, nullable=name.endswith("?")) for name in names.split()]


def _reals(names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, sa.Double, nullable=True) for name in names.split()]


def _integers(names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, sa.Integer, nullable=False) for name in names.split()]


def _keys(names: str) -> list[sa.Column[Any]]:
    kinds = [(name.partition(":")[0], sa.Text if name.endswith(":text") else sa.Integer) for name in names.split()]
    return [sa.Column(name, kind, primary_key=True, autoincrement=False) for name, kind in kinds]


def _reference(name: str, table: str, *, null: bool = False, primary_key: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.Text, sa.ForeignKey(f"{table}.id"), nullable=null, primary_key=primary_key)


def _table(name: str, *columns: sa.Column[Any]) -> sa.Table:
    return op.create_table(name, *columns, sqlite_with_rowid=False)


def _record(name: str, *columns: sa.Column[Any], keyed: bool = False) -> sa.Table:
    identity = [] if keyed else [sa.Column("id", sa.Text, primary_key=True)]
    return _table(name, *identity, sa.Column("sequence", sa.Integer, nullable=False, unique=True), *columns)


def _part(name: str, *columns: sa.Column[Any]) -> sa.Table:
    key = [_reference("changeset_id", "changeset", primary_key=True), *_keys("position")]
    return _table(f"changeset_{name}", *key, *columns, *_texts("row_digest"))
