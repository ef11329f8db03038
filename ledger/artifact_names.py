"""Which artifacts the ledger names: every delta that a changeset ever changed. Their bytes are `artifacts`' concern."""

from sqlalchemy import select

from ledger import tables
from ledger.unit_of_work import UnitOfWork


def artifacts_of(work: UnitOfWork, model: str) -> dict[str, str]:
    """Return the path of every artifact of a model, and the SHA-256 of its bytes, sorted by path."""
    change, changeset = tables.changeset_change, tables.changeset
    joined = select(change.c.path, change.c.sha256).join(changeset, changeset.c.id == change.c.changeset_id)
    rows = work.connection.execute(joined.where(changeset.c.model == model).distinct().order_by(change.c.path))
    return {row.path: row.sha256 for row in rows}
