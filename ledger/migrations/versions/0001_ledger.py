"""The first schema: records, the parts of a changeset, and the triggers that keep every table insert-only.

Frozen: a later schema is a later migration. `tests/ledger` holds it against `ledger.tables`.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables and their triggers."""
    _record("correction", _id(), *_texts("model subject relation? prompt_template target_new target_true? source"),
            *_texts("submitter reason effective_date?"), _reference("supersedes", "correction", null=True),
            *_texts("filed_at file_name"), _integer("line"))  # fmt: skip
    _record("quarantined", _id(), *_texts("file_name file_digest"), _integer("line"),
            *_texts("field reason row_text quarantined_at"))  # fmt: skip
    _record("changeset", _id(), _integer("number"), *_texts("model kind parent_version candidate_version base_digest"),
            *_texts("reverted provenance reason planned_by planned_at"), unique=("number",))  # fmt: skip
    _record("decision", _id(), _reference("changeset_id", "changeset"), *_texts("verdict reviewer reason decided_at"))
    _record("head_move", sa.Column("model", sa.Text, primary_key=True), _integer("position", primary_key=True),
            *_texts("version"), _reference("changeset_id", "changeset", null=True), *_texts("moved_at moved_by"),
            unique=("changeset_id",), key=("model", "position"))  # fmt: skip
    _part("delta", *_texts("sha256 path dropped"))
    _part("result", _reference("correction_id", "correction"), *_texts("status"),
          *_reals("residual_before residual_after"), *_texts("delta?"))  # fmt: skip
    _part("metric", *_texts("name phase"), *_reals("value"))
    _part("gate", *_texts("name op"), *_reals("bound value"), _integer("passed"))
    _part("case", *_texts("kind phase case_id prompt expected"), *_reals("probability"), *_texts("generated"),
          _integer("passed"))  # fmt: skip


def _id() -> sa.Column[Any]:
    return sa.Column("id", sa.Text, primary_key=True)


def _texts(names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name.rstrip("?"), sa.Text, nullable=name.endswith("?")) for name in names.split()]


def _reals(names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, sa.Float, nullable=True) for name in names.split()]


def _integer(name: str, *, primary_key: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.Integer, nullable=False, primary_key=primary_key)


def _reference(name: str, table: str, *, null: bool = False, primary_key: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.Text, sa.ForeignKey(f"{table}.id"), nullable=null, primary_key=primary_key)


def _record(name: str, *columns: sa.Column[Any], unique: tuple[str, ...] = (), key: tuple[str, ...] = ("id",)) -> None:
    alone = (*unique, "sequence")
    constraints = [sa.UniqueConstraint(column) for column in alone]
    op.create_table(name, *columns, _integer("sequence"), *_texts("row_digest"), *constraints, sqlite_with_rowid=False)
    _make_insert_only(name, key, *((column,) for column in alone))


def _part(name: str, *columns: sa.Column[Any]) -> None:
    name = f"changeset_{name}"
    key = [_reference("changeset_id", "changeset", primary_key=True), _integer("position", primary_key=True)]
    op.create_table(name, *key, *columns, *_texts("row_digest"), sqlite_with_rowid=False)
    _make_insert_only(name, ("changeset_id", "position"))


def _make_insert_only(table: str, *keys: tuple[str, ...]) -> None:
    # REPLACE deletes the old row without firing DELETE triggers, so an insert over an existing key is refused first.
    same = [" AND ".join(f"{column} = NEW.{column}" for column in key) for key in keys]
    exists = " OR ".join(f"EXISTS (SELECT 1 FROM {table} WHERE {condition})" for condition in same)
    for what, when in (("UPDATE", ""), ("DELETE", ""), ("INSERT", f"WHEN {exists}")):
        verb = {"UPDATE": "updated", "DELETE": "deleted", "INSERT": "replaced"}[what]
        op.execute(
            f"CREATE TRIGGER {table}_refuse_{what.lower()} BEFORE {what} ON {table} {when} "
            f"BEGIN SELECT RAISE(ABORT, 'the ledger is insert-only: a row of {table} cannot be {verb}'); END"
        )
