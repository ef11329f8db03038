"""The triggers that keep the ledger insert-only: what makes them, and whether a database still has them as they were made.

`statements` is called by the migrations with the tables they made; `expected_triggers` and `present_triggers` are for
`verify`. Which rows may ever go is said in `tables`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, PrimaryKeyConstraint, Table, UniqueConstraint, text

from ledger import tables

DISABLED = "disabled"
"""Stands for the definition of a trigger that does not fire."""
_VERBS = {"UPDATE": "updated", "DELETE": "deleted", "INSERT": "replaced", "TRUNCATE": "truncated"}
_REFUSE = """
BEGIN
    RAISE EXCEPTION 'the ledger is insert-only: a row of % cannot be %', TG_TABLE_NAME, TG_ARGV[0]
        USING ERRCODE = 'integrity_constraint_violation';
END
"""
# The tables are named with the trigger's own schema: a temporary table of the same name must not stand in for them.
_REFUSE_UNLESS_ERASED = """
DECLARE
    erased boolean;
BEGIN
    EXECUTE format('SELECT {condition}', TG_TABLE_SCHEMA) INTO erased USING OLD;
    IF erased THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'the ledger is insert-only: a row of % cannot be deleted before its erasure is recorded', TG_TABLE_NAME
        USING ERRCODE = 'integrity_constraint_violation';
END
"""
_SETTING = "search_path=pg_catalog, pg_temp"  # operators must be those of the system


@dataclass(frozen=True, slots=True)
class _Trigger:
    name: str
    makes: tuple[str, ...]
    definition: str  # as `present_triggers` reads it back


def statements(
    dialect: str, *, insert_only: Iterable[Table], texts: Mapping[Table, str | None], indexes: Iterable[Table]
) -> list[str]:
    """Return the SQL that makes the triggers.

    Args:
        dialect: "sqlite" or "postgresql".
        insert_only: Tables whose rows stay as they are for good.
        texts: Tables whose rows may go once an erasure names what is in this column (None: the case of the row).
        indexes: Tables whose rows come and go, but do not change.
    """
    functions = [_function("ledger_refuse", _REFUSE)] if dialect == "postgresql" else []
    return functions + [made for trigger in _triggers(dialect, insert_only, texts, indexes) for made in trigger.makes]


def expected_triggers(dialect: str) -> dict[str, str]:
    """Return the definition of every trigger that a ledger must have, by name."""
    made = _triggers(dialect, tables.INSERT_ONLY, tables.TEXT_TABLES, [tables.waiting])
    return {trigger.name: trigger.definition for trigger in made}


def present_triggers(connection: Connection) -> dict[str, str]:
    """Return the definition of every trigger that a database has on its tables, by name; `DISABLED` if it does not fire."""
    if connection.dialect.name == "sqlite":
        rows = connection.execute(text("SELECT name, tbl_name, sql FROM sqlite_master WHERE type = 'trigger'"))
        return {_name(row.name, row.tbl_name): row.sql for row in rows}
    found = connection.execute(
        text(
            "SELECT t.tgname AS name, c.relname AS on_table, t.tgenabled = 'A' AS fires, pg_get_triggerdef(t.oid, true) AS made,"
            " l.lanname AS language, p.prosrc AS body, coalesce(array_to_string(p.proconfig, ';'), '') AS setting"
            " FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
            " JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_language l ON l.oid = p.prolang"
            " WHERE n.nspname = current_schema() AND NOT t.tgisinternal"
        )
    )
    return {
        _name(row.name, row.on_table): f"{row.made}\n{row.language} {row.setting}{row.body}" if row.fires else DISABLED
        for row in found
    }


def trigger_problems(connection: Connection) -> dict[str, str]:
    """Return, by name, which triggers are missing, disabled, altered, or not the ledger's own."""
    expected, present = expected_triggers(connection.dialect.name), present_triggers(connection)
    problems = {}
    for name in sorted(expected.keys() | present.keys()):
        if name not in present:
            problems[name] = "missing"
        elif name not in expected:
            problems[name] = "not one of the ledger's"
        elif present[name] == DISABLED:
            problems[name] = "disabled"
        elif present[name] != expected[name]:
            problems[name] = "altered"
    return problems


def _name(name: str, table: str) -> str:
    # PostgreSQL has one name for triggers of several tables: only that of its own table is the plain one.
    return name if name.startswith(f"{table}_refuse_") else f"{name} on {table}"


def _triggers(
    dialect: str, insert_only: Iterable[Table], texts: Mapping[Table, str | None], indexes: Iterable[Table]
) -> list[_Trigger]:
    refuse = _on_sqlite if dialect == "sqlite" else _on_postgresql
    found = [refuse(table, event) for table in insert_only for event in _VERBS]
    for table, owner in texts.items():
        found += [refuse(table, event, _erased(owner) if event == "DELETE" else "") for event in _VERBS]
    found += [refuse(table, "UPDATE") for table in indexes]
    return [trigger for trigger in found if trigger is not None]


def _erased(owner: str | None) -> str:
    """The condition under which a row ({old}) of a text table was erased; tables are in the schema {schema}."""
    if owner is not None:
        return f"EXISTS (SELECT 1 FROM {{schema}}erasure WHERE ref = {{old}}.{owner})"
    return (
        "EXISTS (SELECT 1 FROM {schema}changeset_case c JOIN {schema}erasure e ON e.ref = c.case_id"
        " WHERE c.changeset_id = {old}.changeset_id AND c.position = {old}.position)"
    )


def _on_sqlite(table: Table, event: str, erased: str = "") -> _Trigger | None:
    name, verb, when = f"{table.name}_refuse_{event.lower()}", _VERBS[event], ""
    if event == "TRUNCATE":
        return None  # SQLite has none
    if event == "INSERT":
        # REPLACE deletes the old row without firing DELETE triggers, so an insert over an existing key is refused first.
        when = f"WHEN {_exists(table)} "
    if erased:
        when = f"WHEN NOT {erased.format(schema='', old='OLD')} "
        verb += " before its erasure is recorded"
    made = (
        f"CREATE TRIGGER {name} BEFORE {event} ON {table.name} {when}"
        f"BEGIN SELECT RAISE(ABORT, 'the ledger is insert-only: a row of {table.name} cannot be {verb}'); END"
    )
    return _Trigger(name, (made,), made)


def _exists(table: Table) -> str:
    unique = [c for c in table.constraints if isinstance(c, PrimaryKeyConstraint | UniqueConstraint)]
    keys = sorted([column.name for column in constraint.columns] for constraint in unique)
    same = [" AND ".join(f"{column} = NEW.{column}" for column in key) for key in keys]
    return "(" + " OR ".join(f"EXISTS (SELECT 1 FROM {table.name} WHERE {condition})" for condition in same) + ")"


def _on_postgresql(table: Table, event: str, erased: str = "") -> _Trigger | None:
    if event == "INSERT":
        return None  # PostgreSQL's INSERT replaces nothing; ON CONFLICT DO UPDATE is an UPDATE
    name, body = f"{table.name}_refuse_{event.lower()}", _REFUSE
    functions, call = [], f"ledger_refuse('{_VERBS[event]}')"
    if erased:
        body = _REFUSE_UNLESS_ERASED.format(condition=erased.format(schema="%1$I.", old="($1)"))
        functions, call = [_function(name, body)], f"{name}()"
    each = "STATEMENT" if event == "TRUNCATE" else "ROW"
    made = f"CREATE TRIGGER {name} BEFORE {event} ON {table.name} FOR EACH {each} EXECUTE FUNCTION {call}"
    always = f"ALTER TABLE {table.name} ENABLE ALWAYS TRIGGER {name}"  # in replication roles too
    return _Trigger(name, (*functions, made, always), f"{made}\nplpgsql {_SETTING}{body}")


def _function(name: str, body: str) -> str:
    return f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql SET {_SETTING} AS $body${body}$body$"
