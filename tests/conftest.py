"""What the tests of every package share: a PostgreSQL server, started once, when the first test asks for it."""

from tests.postgres import ledger_url, postgres

__all__ = ["ledger_url", "postgres"]
