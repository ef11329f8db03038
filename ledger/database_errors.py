"""What a database's refusal means for a person: one line, with advice that fits, and no password in it."""

from typing import Any

from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError

from ledger.errors import LedgerError

_RETRY = "nothing was written; see to the cause and try again"
_BUSY = "another program has been writing to it for 30 s; try again when that is done"
_DAMAGED = "it is no ledger, or it is damaged: restore a backup"
_UNREACHABLE = "check that the server runs and that the URL is right; then see whether the last step was done"
_DENIED = "check the user and the password in the URL"
_SQLITE = {  # by primary result code
    5: _BUSY,
    6: _BUSY,
    8: "check who may write the file and its folder",
    10: "check the disk",
    11: _DAMAGED,
    13: "nothing was written; make room on the disk and try again",
    14: "check that its folder exists and who may read and write there",
    26: _DAMAGED,
}
_POSTGRESQL = {  # by SQLSTATE, or by its class
    "08": _UNREACHABLE,
    "28": _DENIED,
    "3D": "make the database first, or check its name in the URL",
    "3F": "make the schema first, or check its name in the URL",
    "25006": "the server takes no writes now: write to the primary",
    "42501": 'ask the owner of the ledger for the grants of docs/operations.md, "PostgreSQL"',
    "53100": "nothing was written; make room on the server's disk and try again",
    "53300": "the server has no connection left: try again later, or raise max_connections",
    "55P03": _BUSY,
    "57P": _UNREACHABLE,
}


def ledger_name(url: URL) -> str:
    """Return what to call the ledger at `url`: the file, or the database and its server."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    host = url.host or url.query.get("host", "")
    return f"{url.database or url.username or 'database'} on {host or 'localhost'}"


def refusal(url: URL, error: Exception, *, write: bool) -> LedgerError:
    """Return the error that says what the database at `url` refused, in a transaction for writing or not."""
    cause: Any = error.orig if isinstance(error, DBAPIError) else error
    said = getattr(getattr(cause, "diag", None), "message_primary", None) or str(cause)  # its details quote whole rows
    problem = f"the ledger at {ledger_name(url)} refused: {_without_secrets(url, said)}"
    return LedgerError(problem, _advice(cause, write=write))


def _advice(cause: Any, *, write: bool) -> str:
    code = getattr(cause, "sqlite_errorcode", None)
    if code is not None:
        reader_writes = code == 8 and not write  # a file that may not be written has an extended code, or a writer
        return _RETRY if reader_writes else _SQLITE.get(code & 0xFF, _RETRY)
    state = getattr(cause, "sqlstate", None)
    if state is None and type(cause).__name__ == "OperationalError":  # libpq's own: no server answered, or it said no
        said = str(cause)
        return _DENIED if "authentication failed" in said or "no password supplied" in said else _UNREACHABLE
    for part in (state, str(state)[:3], str(state)[:2]):
        if part in _POSTGRESQL:
            return _POSTGRESQL[part]
    return _RETRY


def _without_secrets(url: URL, said: str) -> str:
    for secret in (url.password, url.query.get("password"), url.query.get("sslpassword")):
        if isinstance(secret, str) and secret:
            said = said.replace(secret, "***")
    return said
