"""What the people and programs at a PostgreSQL ledger may do: the application writes, the auditor reads, neither owns.

Who owns a table can drop its triggers, so the owner is a third role that makes the schema (`nse init`) and then rests.
"""

from ledger import tables
from ledger.errors import LedgerError


def grant_statements(schema: str, app: str, auditor: str) -> list[str]:
    """Return the statements that the schema's owner runs, after every upgrade of it again; they take away all else.

    The application may read all, insert into every table of the ledger, and delete erasable text (the triggers ask for an
    erasure first) and what no longer waits. The auditor may read all.

    Args:
        schema: Holds the ledger and nothing else.
        app: The role that `nse` runs as.
        auditor: The role of people who look.

    Raises:
        LedgerError: A name is empty, or application and auditor are one role.
    """
    if app == auditor:
        raise LedgerError(f"{app!r} cannot be both application and auditor", "name two roles")
    place, writer, reader = _quoted(schema), _quoted(app), _quoted(auditor)
    erasable = ", ".join(f"{place}.{table.name}" for table in (*tables.TEXT_TABLES, tables.waiting))
    every = ", ".join(f"{place}.{table.name}" for table in tables.metadata.sorted_tables)
    return [
        f"REVOKE ALL ON ALL TABLES IN SCHEMA {place} FROM PUBLIC, {writer}, {reader}",
        f"REVOKE ALL ON SCHEMA {place} FROM PUBLIC, {writer}, {reader}",
        f"GRANT USAGE ON SCHEMA {place} TO {writer}, {reader}",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA {place} TO {writer}, {reader}",
        f"GRANT INSERT ON {every} TO {writer}",
        f"GRANT DELETE ON {erasable} TO {writer}",
    ]


def _quoted(name: str) -> str:
    if not name or "\0" in name:
        raise LedgerError(f"{name!r} names no role or schema", "give the name as PostgreSQL has it")
    return '"' + name.replace('"', '""') + '"'
