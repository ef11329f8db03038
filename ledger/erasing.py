"""Erasing text that a person has the right to have erased, and what still reveals it: the deltas that hold the fact.

The log and every proof stay as they were: they hold salted hashes of texts. Erasing a text is refused while the correction is
in force or can come in force. An artifact that reveals an erased fact can be purged once no weights in force need it; that is
recorded as an erasure that names the artifact's SHA-256. Its bytes are the business of `purging`.
"""

from dataclasses import dataclass

from sqlalchemy import select

from ledger import repository, tables
from ledger.errors import ErasureRefused, LedgerError
from ledger.records import Changeset, Correction, DeltaChange, Erasure, Quarantined, Shown
from ledger.status import Proposal, Stretch, open_proposals, read_state
from ledger.unit_of_work import UnitOfWork


@dataclass(frozen=True, slots=True)
class Revealing(Shown):
    """An artifact from which the fact of a correction can be read, by who knows how to.

    Attributes:
        sha256: Its digest.
        path: Where it is, relative to the workspace.
        versions: From which position of the head to which its columns were a part of the weights.
        in_use: Whether the head's are among them, or a proposal that can still be applied needs it.
        purged: Whether it was purged.
    """

    sha256: str
    path: str
    versions: tuple[Stretch, ...]
    in_use: bool
    purged: bool


def find(work: UnitOfWork, ref: str) -> Correction | Quarantined:
    """Return the correction or the quarantined row with this id or id prefix (at least 6 digits).

    Raises:
        LedgerError: There is none, or several.
    """
    try:
        return work.correction(ref)
    except LedgerError:
        column, prefix = tables.quarantined.c.id, ref.lower()
        within = (column >= prefix, column < f"{prefix}g")
        found = repository.select_records(work.connection, Quarantined, *within) if len(prefix) >= 6 else []
        if len(found) != 1:
            raise
        return found[0]


def erase(work: UnitOfWork, record: Correction | Quarantined, *, reason: str, by: str, at: str) -> int:
    """Erase the text of a correction, with what evaluations said about it, or of a quarantined row; returns the rows deleted.

    A correction that another one in force supersedes can be erased, though its columns are still a part of the weights.

    Raises:
        ErasureRefused: It is erased already, in force, or in a proposal that can still be applied, or no reason or nobody is
            named.
    """
    _check_said(reason, by)
    if isinstance(record, Correction):
        _check_unused(work, record)
    return work.erase(Erasure(ref=record.id, reason=reason, erased_by=by, erased_at=at))


def revealing(work: UnitOfWork, correction: Correction) -> list[Revealing]:
    """Return the artifacts that reveal the fact of a correction, erased or not, in the order of their making."""
    gone, wanted = purged(work), _proposed(work, correction.model)
    found = []
    for sha256, path in _holding(work, correction.id):
        history = _history(work, correction.model, sha256)
        found.append(
            Revealing(
                sha256=sha256,
                path=path,
                versions=_stretches(history),
                in_use=sha256 in wanted or (bool(history) and not history[-1][1].removed),
                purged=sha256 in gone,
            )
        )
    return found


def purge(work: UnitOfWork, artifact: Revealing, *, reason: str, by: str, at: str) -> bool:
    """Record that an artifact is purged, if it was not; its bytes are deleted after that. Returns whether that is new.

    Raises:
        ErasureRefused: Weights in force or an open proposal need it, or no reason or nobody is named.
    """
    _check_said(reason, by)
    if artifact.in_use:
        advice = "revert with --mode replay, which writes the rest of it again, then purge"
        raise ErasureRefused(f"{artifact.path} is needed by the weights in force or by a proposal", advice)
    if artifact.purged:
        return False
    work.add_erasure(Erasure(ref=artifact.sha256, reason=reason, erased_by=by, erased_at=at))
    return True


def purged(work: UnitOfWork) -> frozenset[str]:
    """Return the SHA-256 of every artifact that was purged."""
    erasure, change = tables.erasure, tables.changeset_change
    statement = select(erasure.c.ref).where(select(1).where(change.c.sha256 == erasure.c.ref).exists())
    return frozenset(work.connection.scalars(statement))


def brought_back(work: UnitOfWork, changeset: Changeset) -> list[str]:
    """Return the erased corrections whose columns a changeset that was not applied would put into the weights again."""
    result, text = tables.changeset_result, tables.correction_text
    changes = {change.sha256: change for change in changeset.changes if not change.removed}
    erased = (
        select(result.c.delta, result.c.correction_id)
        .outerjoin(text, text.c.correction_id == result.c.correction_id)
        .where(result.c.status != "skipped", text.c.correction_id.is_(None))
    )
    rows = repository.in_chunks(work.connection, erased, result.c.delta, changes)
    found = {
        str(row["correction_id"])
        for row in rows
        if _puts_in(work, changeset.model, changes[row["delta"]], row["correction_id"])
    }
    return sorted(found)


def _check_unused(work: UnitOfWork, correction: Correction) -> None:
    name = f"correction {correction.id[:12]}"
    if correction.erased:
        raise ErasureRefused(f"the text of {name} was erased already", "nothing is left to do")
    state = read_state(work, correction.model, subjects=[correction.subject])
    if correction.id in state.in_force(state.active(state.head)):
        problem = f"{name} ({correction.subject}, {correction.target_new}) is in force"
        raise ErasureRefused(problem, f"revert it first: nse revert {correction.id[:12]} --reason TEXT")
    holding = {sha256 for sha256, _ in _holding(work, correction.id)}
    for changeset in _open(work, correction.model):
        puts_in = (_puts_in(work, correction.model, c, correction.id) for c in changeset.changes if c.sha256 in holding)
        if correction.id in changeset.correction_ids or any(puts_in):
            problem = f"{name} is in changeset #{changeset.number}, which can still be applied"
            raise ErasureRefused(problem, f"reject it first: nse reject {changeset.number} --reason TEXT")


def _open(work: UnitOfWork, model: str) -> list[Proposal]:
    """The changesets that can still be applied."""
    state = open_proposals(work, model)
    return [found for found in state.changesets.values() if state.status(found) in ("proposed", "approved")]


def _proposed(work: UnitOfWork, model: str) -> frozenset[str]:
    """The deltas that changesets which can still be applied put in force."""
    return frozenset(c.sha256 for found in _open(work, model) for c in found.changes if not c.removed)


def _holding(work: UnitOfWork, correction_id: str) -> list[tuple[str, str]]:
    """SHA-256 and path of each delta with columns of a correction, in the order of their making."""
    result, change, changeset = tables.changeset_result, tables.changeset_change, tables.changeset
    statement = (
        select(change.c.sha256, change.c.path)
        .join(result, (result.c.delta == change.c.sha256) & (result.c.changeset_id == change.c.changeset_id))
        .join(changeset, changeset.c.id == change.c.changeset_id)
        .where(result.c.correction_id == correction_id, result.c.status != "skipped")
        .order_by(changeset.c.number, change.c.position)
    )
    return list(dict.fromkeys((row.sha256, row.path) for row in work.connection.execute(statement)))


def _history(work: UnitOfWork, model: str, sha256: str) -> list[tuple[int, DeltaChange]]:
    """What became of a delta: the positions of the head at which it changed, and how."""
    change, move = tables.changeset_change, tables.head_move
    statement = (
        select(change, move.c.position.label("at"))
        .join(move, move.c.changeset_id == change.c.changeset_id)
        .where(change.c.sha256 == sha256, move.c.model == model)
        .order_by(move.c.position)
    )
    rows = [dict(row) for row in work.connection.execute(statement).mappings()]
    return [(row["at"], repository.record_of(DeltaChange, change, row)) for row in rows]


def _puts_in(work: UnitOfWork, model: str, change: DeltaChange, correction_id: str) -> bool:
    """Whether a change puts columns of a correction into the weights that are not there at the head."""
    if change.removed or correction_id in change.dropped:
        return False
    history = _history(work, model, change.sha256)
    return not history or history[-1][1].removed or correction_id in history[-1][1].dropped


def _stretches(history: list[tuple[int, DeltaChange]]) -> tuple[Stretch, ...]:
    found: list[Stretch] = []
    start: int | None = None
    for position, change in history:
        if start is not None and change.removed:
            found.append(Stretch(start, position))
            start = None
        elif start is None and not change.removed:
            start = position
    return (*found, Stretch(start, None)) if start is not None else tuple(found)


def _check_said(reason: str, by: str) -> None:
    for name, text in (("the reason is", reason), ("the name of who erases is", by)):
        if not text.strip():
            raise ErasureRefused(f"{name} empty", "say who erases, and why")
