"""What somebody does who can do anything to the database of a ledger."""

from typing import Any

from sqlalchemy import Connection, Table, select, text


def strip(connection: Connection, table: Table) -> None:
    """Take every trigger and constraint off a table."""
    if connection.dialect.name == "sqlite":
        connection.execute(text(f"CREATE TABLE spoilt AS SELECT * FROM {table.name}"))
        connection.execute(text(f"DROP TABLE {table.name}"))
        connection.execute(text(f"ALTER TABLE spoilt RENAME TO {table.name}"))
        return
    connection.execute(text(f"ALTER TABLE {table.name} DISABLE TRIGGER ALL"))
    for column in table.columns:
        if not column.nullable and not column.primary_key:
            connection.execute(text(f'ALTER TABLE {table.name} ALTER COLUMN "{column.name}" DROP NOT NULL'))


def last(connection: Connection, table: Table) -> dict[str, Any]:
    """Return the row with the greatest key."""
    order = [column.desc() for column in table.primary_key.columns]
    return dict(connection.execute(select(table).order_by(*order).limit(1)).mappings().one())


def where_is(table: Table, row: dict[str, Any]) -> Any:
    return [column == row[column.name] for column in table.primary_key.columns]
