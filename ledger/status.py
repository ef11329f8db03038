"""What is in force, and the status of every correction and changeset: derived from the records, never stored."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ledger.errors import LedgerError
from ledger.records import ActiveDelta, CaseResult, Changeset, Correction, Decision, HeadMove
from ledger.unit_of_work import UnitOfWork

CorrectionStatus = Literal[
    "pending", "conflict", "duplicate", "superseded", "proposed", "active", "reverted", "rejected", "skipped"
]
ChangesetStatus = Literal["proposed", "gate-failed", "approved", "rejected", "applied", "stale"]


@dataclass(frozen=True, slots=True)
class ModelState:
    """Everything the ledger says about one model, read once, and what follows from it."""

    corrections: dict[str, Correction]  # in the order of filing
    changesets: dict[str, Changeset]  # by number
    heads: list[HeadMove]  # by position
    decisions: dict[str, list[Decision]]  # of each changeset
    contents: dict[str, frozenset[str]]  # the corrections each delta holds
    replacers: dict[str, frozenset[str]]  # the corrections that supersede each, directly or through others

    def active(self, move: HeadMove) -> tuple[ActiveDelta, ...]:
        """Return the deltas that a move of the head put in force."""
        if move.changeset_id is None:
            return ()
        if move.changeset_id not in self.changesets:
            raise LedgerError(f"v{move.position} names no changeset of {move.model}", 'run "nse verify"')
        return self.changesets[move.changeset_id].active

    def held(self, active: Iterable[ActiveDelta]) -> frozenset[str]:
        """Return the corrections whose columns are in the weights: those the deltas hold, less the dropped."""
        return frozenset[str]().union(*(self.contents[delta.sha256] - set(delta.dropped) for delta in active))

    def in_force(self, active: Iterable[ActiveDelta]) -> frozenset[str]:
        """Return the corrections that the model shall answer: those held, less those that another one held supersedes."""
        held = self.held(active)
        return frozenset(i for i in held if not self.replacers.get(i, frozenset()) & held)

    def status(self, changeset: Changeset) -> ChangesetStatus:
        """Return the status of a changeset."""
        return _changeset_status(changeset, self.heads, self.decisions[changeset.id])


def read_state(work: UnitOfWork, model: str) -> ModelState:
    """Read what the ledger says about a model."""
    corrections = {correction.id: correction for correction in work.corrections(model)}
    changesets = {changeset.id: changeset for changeset in work.changesets(model)}
    return ModelState(
        corrections=corrections,
        changesets=changesets,
        heads=work.heads(model),
        decisions={identity: work.decisions(identity) for identity in changesets},
        contents=_contents(changesets.values()),
        replacers=_replacers(corrections.values()),
    )


def changeset_status(work: UnitOfWork, changeset: Changeset) -> ChangesetStatus:
    """Return the status of a changeset.

    applied; else rejected; else gate-failed (it can never be approved); else stale (the head is no longer its parent:
    it has to be planned again); else approved or proposed.
    """
    return _changeset_status(changeset, work.heads(changeset.model), work.decisions(changeset.id))


def _changeset_status(changeset: Changeset, heads: list[HeadMove], decisions: list[Decision]) -> ChangesetStatus:
    verdicts = {decision.verdict for decision in decisions}
    if any(move.changeset_id == changeset.id for move in heads):
        return "applied"
    if "reject" in verdicts:
        return "rejected"
    if not changeset.gate_passed:
        return "gate-failed"
    if heads and heads[-1].version != changeset.parent_version:
        return "stale"
    return "approved" if "approve" in verdicts else "proposed"


def correction_status(work: UnitOfWork, model: str) -> dict[str, CorrectionStatus]:
    """Return the status of every correction of a model, in the order of filing.

    A changeset that is stale or failed its gates leaves no mark: its corrections wait as before. A rejection does.
    """
    return correction_statuses(read_state(work, model))


def correction_statuses(state: ModelState) -> dict[str, CorrectionStatus]:
    """Return the status of every correction of a model whose state is read already."""
    now = state.in_force(state.active(state.heads[-1])) if state.heads else frozenset()
    ever = frozenset[str]().union(*(state.in_force(state.active(move)) for move in state.heads))
    latest = _latest_results(state)
    first = {identity: _fate(identity, now, ever, latest.get(identity)) for identity in state.corrections}
    status = dict(first)
    for identity, fate in first.items():
        replacers = state.replacers.get(identity, frozenset())
        # One in force is superseded when its successor is; one that waits need not be written any more, unless a
        # person turned the successor down.
        waits = fate == "pending" and any(first[replacer] != "rejected" for replacer in replacers)
        if waits or (fate == "reverted" and replacers & now):
            status[identity] = "superseded"
    _hold_back_rivals(state, status)
    return status


def _fate(
    identity: str, now: frozenset[str], ever: frozenset[str], latest: tuple[ChangesetStatus, CaseResult] | None
) -> CorrectionStatus:
    if identity in now:
        return "active"
    if latest is not None and latest[0] == "applied" and latest[1].status == "skipped":
        return "skipped"
    if identity in ever:
        return "reverted"
    if latest is None or latest[0] == "applied":
        return "pending"
    return "rejected" if latest[0] == "rejected" else "proposed"


def _latest_results(state: ModelState) -> dict[str, tuple[ChangesetStatus, CaseResult]]:
    latest: dict[str, tuple[ChangesetStatus, CaseResult]] = {}
    for changeset in state.changesets.values():
        status = state.status(changeset)
        if status not in ("stale", "gate-failed"):
            latest.update({result.correction_id: (status, result) for result in changeset.results})
    return latest


def _hold_back_rivals(state: ModelState, status: dict[str, CorrectionStatus]) -> None:
    """Turn pending corrections into conflicts or duplicates where others of the same fact are alive."""
    order = {identity: place for place, identity in enumerate(state.corrections)}
    alive: dict[tuple[str, str], list[Correction]] = {}
    for correction in state.corrections.values():
        if status[correction.id] in ("pending", "proposed", "active"):
            alive.setdefault(correction.fact, []).append(correction)
    found: dict[str, CorrectionStatus] = {}
    for group in alive.values():
        for correction in (correction for correction in group if status[correction.id] == "pending"):
            rivals = [other for other in group if not _related(state, correction.id, other.id)]
            same = [other for other in rivals if other.target_new.strip() == correction.target_new.strip()]
            if any(status[other.id] != "pending" or order[other.id] < order[correction.id] for other in same):
                found[correction.id] = "duplicate"
            elif len(same) < len(rivals):
                found[correction.id] = "conflict"
    status.update(found)


def _related(state: ModelState, one: str, other: str) -> bool:
    nobody = frozenset[str]()
    return one == other or one in state.replacers.get(other, nobody) or other in state.replacers.get(one, nobody)


def _contents(changesets: Iterable[Changeset]) -> dict[str, frozenset[str]]:
    contents: dict[str, frozenset[str]] = {}
    for changeset in changesets:
        new = [delta.sha256 for delta in changeset.active if delta.sha256 not in contents]
        written = [result for result in changeset.results if result.status != "skipped"]
        for delta in new:
            contents[delta] = frozenset(r.correction_id for r in written if (r.delta or new[0]) == delta)
    return contents


def _replacers(corrections: Iterable[Correction]) -> dict[str, frozenset[str]]:
    replacers: dict[str, frozenset[str]] = {}
    supersedes: dict[str, str] = {}
    for correction in corrections:
        earlier = correction.supersedes
        if earlier is not None:
            supersedes[correction.id] = earlier
        while earlier is not None:  # ends: a correction can only supersede one that was filed before it
            replacers[earlier] = replacers.get(earlier, frozenset()) | {correction.id}
            earlier = supersedes.get(earlier)
    return replacers
