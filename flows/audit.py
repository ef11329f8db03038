"""Audit: all that the ledger can prove of itself, and that the weights of every version are what it says they are."""

from flows.progress import Progress, silent
from flows.session import Session
from ledger.audit import Finding, verify
from ledger.errors import LedgerError
from ledger.status import read_state
from nse.errors import NseError


def audit(session: Session, *, weights: bool = True, progress: Progress = silent) -> list[Finding]:
    """Checks everything and returns all that is wrong.

    Args:
        session: The workspace's model.
        weights: Whether to compose the weights of every version again and compare their digests.
        progress: Told how far it is.
    """
    workspace = session.workspace
    ledger = workspace.ledger()
    progress("ledger and artifacts", 0, 1)
    findings = list(verify(ledger, session.store))
    progress("ledger and artifacts", 1, 1)
    if not weights:
        return findings
    with ledger.read() as work:
        state = read_state(work, workspace.model)
    for done, move in enumerate(state.heads, 1):
        where = f"v{move.position} of {workspace.model}"
        try:
            version = session.version(session.deltas(state.active(move)))
        except (NseError, LedgerError) as error:
            findings.append(
                Finding(where, f"its weights cannot be composed: {error}", "see the finding about its artifacts")
            )
            continue
        if version != move.version:
            problem = f"base and active deltas give {version[:12]}, the ledger says {move.version[:12]}"
            findings.append(Finding(where, problem, "restore the base model and the artifacts"))
        progress("weights of versions", done, len(state.heads))
    return findings
