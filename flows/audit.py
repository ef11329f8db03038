"""Audit: all that the ledger can prove of itself, and that the weights of every version are what it says they are."""

from collections.abc import Iterator
from pathlib import Path

from flows.checkpoints import kept, keys_of
from flows.progress import Progress, silent
from flows.session import Session
from ledger.audit import Finding, verify
from ledger.erasing import purged
from ledger.errors import LedgerError
from ledger.records import ActiveDelta, HeadMove
from ledger.status import read_state
from nse.errors import NseError


def audit(
    session: Session, *, weights: bool = True, key: Path | None = None, progress: Progress = silent
) -> list[Finding]:
    """Checks everything and returns all that is wrong.

    Args:
        session: The workspace's model.
        weights: Whether to compose the weights of every version again and compare their digests.
        key: A file with the keys that checkpoints count with; those in `checkpoints/log.pub` if None.
        progress: Told how far it is.

    Raises:
        LedgerError: If a line of the file with the keys holds none.
        FlowError: If that file cannot be read.
    """
    workspace = session.workspace
    ledger = workspace.ledger()
    keys, checkpoints = keys_of(workspace, key), kept(workspace).notes()
    findings = verify(ledger, session.store, keys=keys, checkpoints=checkpoints, progress=progress)
    if checkpoints and not keys:
        findings.append(
            Finding("checkpoints/log.pub", "it is gone: signatures were not checked", "restore it from Git")
        )
    if weights:
        findings += _weights(session, progress)
    return findings


def remarks(session: Session) -> list[str]:
    """What is not as it was, and rightly so: artifacts that were purged after an erasure."""
    with session.workspace.ledger().read() as work:
        return [f"artifact {sha256[:12]} was purged" for sha256 in sorted(purged(work))]


def _weights(session: Session, progress: Progress) -> Iterator[Finding]:
    model = session.workspace.model
    try:
        with session.workspace.ledger().read() as work:
            state, gone = read_state(work, model), purged(work)
    except LedgerError as error:
        yield Finding(f"versions of {model}", f"they cannot be read: {error.problem}", "see the findings before")
        return
    for done, move in enumerate(state.heads.values(), 1):
        active = state.active(move)
        if not gone & {delta.sha256 for delta in active}:
            yield from _version(session, move, active)
        progress("weights of versions", done, len(state.heads))


def _version(session: Session, move: HeadMove, active: tuple[ActiveDelta, ...]) -> Iterator[Finding]:
    where = f"v{move.position} of {move.model}"
    try:
        version = session.version(session.deltas(active))
    except (NseError, LedgerError) as error:
        yield Finding(where, f"its weights cannot be composed: {error}", "see the finding about its artifacts")
        return
    if version != move.version:
        problem = f"base and active deltas give {version[:12]}, the ledger says {move.version[:12]}"
        yield Finding(where, problem, "restore the base model and the artifacts")
