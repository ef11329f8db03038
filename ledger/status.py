"""What is in force, and the status of every correction and changeset: derived from the records, never stored.

`read_state` reads what the ledger says about a model, or about some subjects of it, which is enough for all that
concerns them, and takes milliseconds however long the ledger is.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from sqlalchemy import Column, Connection, Table, func, select

from ledger import repository, tables
from ledger.active import folded
from ledger.policy import Policy, Standing, concerned, read_policy, standing
from ledger.records import (
    ActiveDelta,
    CaseResult,
    Changeset,
    Correction,
    Decision,
    DeltaChange,
    Gate,
    HeadMove,
    Part,
    subject_key,
)
from ledger.unit_of_work import UnitOfWork

P = TypeVar("P", bound=Part)
CorrectionStatus = Literal[
    "pending", "conflict", "duplicate", "superseded", "proposed", "active", "reverted", "rejected", "skipped", "erased"
]
ChangesetStatus = Literal["proposed", "gate-failed", "approved", "rejected", "applied", "stale"]
REVERTED_ASIDE, ASIDE_AGAIN = "reverted while set aside", "set aside again"
"""Names in the provenance of a revert: ids, with spaces between, of superseded corrections that have no columns to drop.

A consolidation set them aside: it wrote only what was in force. One that is reverted does not come back when its successor goes.
"""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A changeset without the evidence that only people read: all that statuses and policies depend on.

    In a state of some subjects, `changes` and `results` are those that concern them. `aside` are the corrections that a revert
    names as `REVERTED_ASIDE` or `ASIDE_AGAIN`.
    """

    id: str
    number: int
    kind: str
    method: str
    parent: str | None
    parent_version: str
    candidate_version: str
    reason: str
    planned_by: str
    planned_at: str
    changes: tuple[DeltaChange, ...]
    results: tuple[CaseResult, ...]
    reverted: tuple[str, ...]
    gates: tuple[Gate, ...]
    aside: frozenset[str] = frozenset()

    @property
    def gate_passed(self) -> bool:
        """Whether every gate passed."""
        return all(gate.passed for gate in self.gates)

    @property
    def correction_ids(self) -> tuple[str, ...]:
        """Every correction it touches: those edited or skipped, then those reverted."""
        return tuple(dict.fromkeys((*(result.correction_id for result in self.results), *self.reverted)))


@dataclass(frozen=True, slots=True)
class Stretch:
    """A correction was in force from the head `start` up to, not including, the head `end` (None: still is)."""

    start: int
    end: int | None


@dataclass(frozen=True, slots=True)
class ModelState:
    """What the ledger says about one model, or about some subjects of it, read once, and what follows from it."""

    corrections: dict[str, Correction]  # in the order of filing
    changesets: dict[str, Proposal]  # by number
    heads: dict[int, HeadMove]  # by position: every move by a changeset that is here, and the first and the last
    decisions: dict[str, list[Decision]]  # of each changeset
    contents: dict[str, frozenset[str]]  # the corrections each delta holds
    replacers: dict[str, frozenset[str]]  # the corrections that supersede each, directly or through others
    policy: Policy
    _places: dict[str, int] = field(default_factory=dict)  # of each applied changeset: its position

    @property
    def head(self) -> HeadMove:
        """The weights in force."""
        return self.heads[max(self.heads)]

    def place(self, changeset_id: str) -> int | None:
        """Return the position of the head that a changeset led to."""
        return self._places.get(changeset_id)

    def applied(self) -> Iterator[tuple[HeadMove, Proposal]]:
        """Yield the moves of the head with their changesets, in order."""
        order = sorted(self._places.items(), key=lambda item: item[1])
        for identity, position in order:
            yield self.heads[position], self.changesets[identity]

    def active(self, move: HeadMove) -> tuple[ActiveDelta, ...]:
        """Return the deltas that a head has in force, in the order in which they first came in force."""
        applied = (made for at, made in self.applied() if at.position <= move.position)
        return folded(change for made in applied for change in made.changes)

    def held(self, active: Iterable[ActiveDelta]) -> frozenset[str]:
        """Return the corrections whose columns are in the weights: those the deltas hold, less the dropped."""
        return frozenset[str]().union(
            *(self.contents.get(delta.sha256, frozenset()) - set(delta.dropped) for delta in active)
        )

    def in_force(self, active: Iterable[ActiveDelta]) -> frozenset[str]:
        """Return the corrections that the model shall answer: those held, less those that another one held supersedes."""
        return self.not_superseded(self.held(active))

    def not_superseded(self, held: Collection[str]) -> frozenset[str]:
        """Return those of `held` that no other of them supersedes."""
        among = frozenset(held)
        return frozenset(i for i in among if not self.replacers.get(i, frozenset()) & among)

    def status(self, changeset: Proposal, *, at: str | None = None) -> ChangesetStatus:
        """Return the status of a changeset, at a time if approvals expire.

        applied; else rejected; else gate-failed (it can never be approved); else stale (the head is no longer its
        parent: it has to be planned again); else approved or proposed.
        """
        if changeset.id in self._places:
            return "applied"
        stands = self.standing(changeset, at=at)
        if stands.rejected:
            return "rejected"
        if not changeset.gate_passed:
            return "gate-failed"
        if self.head.changeset_id != changeset.parent:
            return "stale"
        return "approved" if stands.approved else "proposed"

    def standing(self, changeset: Proposal, *, at: str | None = None) -> Standing:
        """Return what the decisions about a changeset come to."""
        relations = [self.corrections[i].relation for i in concerned(changeset) if i in self.corrections]
        return standing(changeset, relations, self.decisions.get(changeset.id, []), self.policy, at=at)

    def stretches(self) -> dict[str, tuple[Stretch, ...]]:
        """Return when each correction was in force; those that never were are left out."""
        timelines = self._timelines()
        holders: dict[str, list[str]] = {}
        for delta, held in self.contents.items():
            for identity in held & self.corrections.keys():
                holders.setdefault(identity, []).append(delta)
        found: dict[str, tuple[Stretch, ...]] = {}
        for cluster in self._clusters():
            deltas = {delta for identity in cluster for delta in holders.get(identity, ())}
            if deltas:
                found |= self._stretches_of(cluster, {d: timelines.get(d, []) for d in deltas})
        return found

    def _stretches_of(
        self, cluster: Collection[str], timelines: Mapping[str, list[tuple[int, DeltaChange]]]
    ) -> dict[str, tuple[Stretch, ...]]:
        began: dict[str, int] = {}
        found: dict[str, list[Stretch]] = {}
        now: dict[str, DeltaChange] = {}
        changes = sorted((at, delta) for delta, line in timelines.items() for at, _ in line)
        lines = {delta: dict(line) for delta, line in timelines.items()}
        for place, (at, delta) in enumerate(changes):
            now[delta] = lines[delta][at]
            if place + 1 < len(changes) and changes[place + 1][0] == at:
                continue
            held = {
                i
                for i in cluster
                for change in now.values()
                if not change.removed and i in self.contents[change.sha256] and i not in change.dropped
            }
            force = self.not_superseded(held)
            for identity in [i for i in began if i not in force]:
                found.setdefault(identity, []).append(Stretch(began.pop(identity), at))
            for identity in force - began.keys():
                began[identity] = at
        for identity, start in began.items():
            found.setdefault(identity, []).append(Stretch(start, None))
        return {identity: tuple(all_of) for identity, all_of in found.items()}

    def _timelines(self) -> dict[str, list[tuple[int, DeltaChange]]]:
        found: dict[str, list[tuple[int, DeltaChange]]] = {}
        for move, changeset in self.applied():
            for change in changeset.changes:
                found.setdefault(change.sha256, []).append((move.position, change))
        return found

    def _clusters(self) -> Iterator[Collection[str]]:
        """Corrections that supersede one another, together; each other one alone."""
        root: dict[str, str] = {}
        for identity, correction in self.corrections.items():
            root[identity] = root.get(correction.supersedes or "", identity)
        clusters: dict[str, list[str]] = {}
        for identity, first in root.items():
            clusters.setdefault(first, []).append(identity)
        yield from clusters.values()


def read_state(
    work: UnitOfWork, model: str, *, subjects: Collection[str] | None = None, corrected_again: bool = False
) -> ModelState:
    """Read what the ledger says about a model, or about these subjects of it (in any spelling).

    With `corrected_again` also about every fact of which a correction supersedes another.
    """
    connection = work.connection
    corrections = work.corrections(model) if subjects is None else _about(connection, model, subjects, corrected_again)
    ids = None if subjects is None else [c.id for c in corrections]
    results = _parts(connection, CaseResult, model, tables.changeset_result.c.correction_id, ids)
    deltas = None if ids is None else {result.delta for _, result in results if result.delta}
    changes = _parts(connection, DeltaChange, model, tables.changeset_change.c.sha256, deltas)
    named = None if ids is None else {owner for owner, _ in (*results, *changes)}
    return _state(work, model, named, corrections=corrections, results=results, changes=changes)


def read_proposals(work: UnitOfWork, model: str, changesets: Collection[str]) -> ModelState:
    """Read what the ledger says about these changesets: enough for their statuses, not for those of corrections."""
    connection = work.connection
    results = _parts(connection, CaseResult, model, tables.changeset_result.c.changeset_id, changesets)
    changes = _parts(connection, DeltaChange, model, tables.changeset_change.c.changeset_id, changesets)
    state = _state(work, model, changesets, corrections=(), results=results, changes=changes)
    named = {identity for changeset in state.changesets.values() for identity in changeset.correction_ids}
    statement = repository.with_text(Correction)
    rows = list(repository.in_chunks(connection, statement, tables.correction.c.id, named))
    corrections = repository.read_records(connection, Correction, sorted(rows, key=lambda row: row["sequence"]))
    return replace(state, corrections={correction.id: correction for correction in corrections})


def open_proposals(work: UnitOfWork, model: str) -> ModelState:
    """Read the changesets that were planned on the head: all that can still be decided or applied."""
    table, head = tables.changeset, work.head(model)
    on_head = table.c.parent.is_(None) if head.changeset_id is None else table.c.parent == head.changeset_id
    return read_proposals(
        work, model, list(work.connection.scalars(select(table.c.id).where(table.c.model == model, on_head)))
    )


def changeset_status(work: UnitOfWork, changeset: Changeset, *, at: str | None = None) -> ChangesetStatus:
    """Return the status of one changeset; see `ModelState.status`."""
    state = read_proposals(work, changeset.model, [changeset.id])
    return state.status(state.changesets[changeset.id], at=at)


def _state(
    work: UnitOfWork,
    model: str,
    named: Collection[str] | None,
    *,
    corrections: Sequence[Correction],
    results: Sequence[tuple[str, CaseResult]],
    changes: Sequence[tuple[str, DeltaChange]],
) -> ModelState:
    changesets = _changesets(work.connection, model, named, results=results, changes=changes)
    heads = _heads(work, model, None if named is None else changesets.keys())
    policies = work.policies(model)
    return ModelState(
        corrections={correction.id: correction for correction in corrections},
        changesets=changesets,
        heads={move.position: move for move in heads},
        decisions=_decisions(work.connection, model, named),
        contents=_contents(result for _, result in results),
        replacers=_replacers(corrections),
        policy=read_policy(policies[-1].text) if policies else Policy(),
        _places={move.changeset_id: move.position for move in heads if move.changeset_id in changesets},
    )


def _about(connection: Connection, model: str, subjects: Collection[str], corrected_again: bool) -> list[Correction]:
    """The corrections of some subjects, and all that they supersede or are superseded by."""
    table, statement = tables.correction, repository.with_text(Correction)
    ids = repository.owners(connection, Correction, "subject_key", {subject_key(subject) for subject in subjects})
    if corrected_again:
        superseding = select(table.c.id).where(table.c.model == model, table.c.supersedes.is_not(None))
        ids += connection.scalars(superseding)
    named = repository.in_chunks(connection, statement, table.c.id, ids)
    rows = {row["id"]: row for row in named if row["model"] == model}
    last = dict(rows)
    while last:
        earlier = [row["supersedes"] for row in last.values() if row["supersedes"] is not None]
        found = [*repository.in_chunks(connection, statement, table.c.id, earlier)]
        found += repository.in_chunks(connection, statement, table.c.supersedes, last.keys())
        last = {row["id"]: row for row in found if row["id"] not in rows}
        rows |= last
    order = sorted(rows.values(), key=lambda row: row["sequence"])
    return repository.read_records(connection, Correction, order)


def _rows(
    connection: Connection, table: Table, model: str, column: Column[Any], wanted: Collection[str] | None
) -> list[repository.Row]:
    """The rows of a table whose rows belong to changesets: of the whole model, or those whose `column` is in `wanted`."""
    changeset = tables.changeset
    if wanted is None:
        joined = select(table).join(changeset, changeset.c.id == table.c.changeset_id)
        return list(connection.execute(joined.where(changeset.c.model == model)).mappings())
    # No join here: SQLite would walk through all changesets of the model rather than look a few rows up.
    return list(repository.in_chunks(connection, select(table), column, wanted))


def _parts(
    connection: Connection, kind: type[P], model: str, column: Column[Any], wanted: Collection[str] | None
) -> list[tuple[str, P]]:
    table = repository.PART_TABLE[kind]
    rows = sorted(_rows(connection, table, model, column, wanted), key=lambda row: int(row["position"]))
    return [(row["changeset_id"], repository.record_of(kind, table, row)) for row in rows]


def _changesets(
    connection: Connection,
    model: str,
    named: Collection[str] | None,
    *,
    results: Iterable[tuple[str, CaseResult]],
    changes: Iterable[tuple[str, DeltaChange]],
) -> dict[str, Proposal]:
    table = tables.changeset
    of_model = select(table).where(table.c.model == model)
    if named is None:
        rows = list(connection.execute(of_model).mappings())
    else:
        rows = list(repository.in_chunks(connection, of_model, table.c.id, named))
    gates = _by_owner(_parts(connection, Gate, model, tables.changeset_gate.c.changeset_id, named))
    changes_of, results_of = _by_owner(changes), _by_owner(results)
    return {
        row["id"]: Proposal(
            **{name: row[name] for name in _PLAIN},
            changes=tuple(changes_of.get(row["id"], ())),
            results=tuple(results_of.get(row["id"], ())),
            reverted=repository.json_value(table, row, "reverted"),
            gates=tuple(gates.get(row["id"], ())),
            aside=_aside(repository.json_value(table, row, "provenance")) if row["kind"] == "revert" else frozenset(),
        )
        for row in sorted(rows, key=lambda row: int(row["number"]))
    }


def _aside(provenance: Mapping[str, str]) -> frozenset[str]:
    return frozenset(i for name in (REVERTED_ASIDE, ASIDE_AGAIN) for i in provenance.get(name, "").split())


_PLAIN = (
    *("id", "number", "kind", "method", "parent", "parent_version", "candidate_version"),
    *("reason", "planned_by", "planned_at"),
)


def _by_owner(pairs: Iterable[tuple[str, Any]]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for owner, part in pairs:
        found.setdefault(owner, []).append(part)
    return found


def _heads(work: UnitOfWork, model: str, changesets: Collection[str] | None) -> list[HeadMove]:
    if changesets is None:
        return work.heads(model)
    table = tables.head_move
    last = select(func.max(table.c.position)).where(table.c.model == model).scalar_subquery()
    ends = work.heads(model, (table.c.position == 0) | (table.c.position == last))
    rows = repository.in_chunks(work.connection, select(table), table.c.changeset_id, changesets)
    moves = {*ends, *(repository.record_of(HeadMove, table, row) for row in rows)}
    return sorted(moves, key=lambda move: move.position)


def _decisions(connection: Connection, model: str, changesets: Collection[str] | None) -> dict[str, list[Decision]]:
    table = tables.decision
    rows = _rows(connection, table, model, table.c.changeset_id, changesets)
    found: dict[str, list[Decision]] = {}
    for row in sorted(rows, key=lambda row: row["sequence"]):
        found.setdefault(row["changeset_id"], []).append(repository.record_of(Decision, table, row))
    return found


def correction_status(work: UnitOfWork, model: str) -> dict[str, CorrectionStatus]:
    """Return the status of every correction of a model, in the order of filing.

    A changeset that is stale or failed its gates leaves no mark: its corrections wait as before. A rejection does.
    """
    return correction_statuses(read_state(work, model))


def correction_statuses(state: ModelState) -> dict[str, CorrectionStatus]:
    """Return the status of every correction of a state that is read already."""
    stretches = state.stretches()
    now = frozenset(identity for identity, of_it in stretches.items() if of_it[-1].end is None)
    latest = _latest_results(state)
    first = {
        identity: _fate(correction, identity in now, identity in stretches, latest.get(identity))
        for identity, correction in state.corrections.items()
    }
    status = dict(first)
    for identity, fate in first.items():
        replacers = state.replacers.get(identity, frozenset())
        # One in force is superseded when its successor is; one that waits need not be written any more, unless a
        # person turned the successor down.
        waits = fate == "pending" and any(first[replacer] not in ("rejected", "erased") for replacer in replacers)
        if waits or (fate == "reverted" and replacers & now):
            status[identity] = "superseded"
    _hold_back_rivals(state, status)
    return status


def _fate(
    correction: Correction, now: bool, ever: bool, latest: tuple[ChangesetStatus, CaseResult] | None
) -> CorrectionStatus:
    if now:
        return "active"
    if latest is not None and latest[0] == "applied" and latest[1].status == "skipped":
        return "skipped"
    if ever:
        return "reverted"
    if correction.erased:
        return "erased"
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
        if status[correction.id] in ("pending", "proposed", "active") and not correction.erased:
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


def _contents(results: Iterable[CaseResult]) -> dict[str, frozenset[str]]:
    contents: dict[str, set[str]] = {}
    for result in results:
        if result.delta is not None and result.status != "skipped":
            contents.setdefault(result.delta, set()).add(result.correction_id)
    return {delta: frozenset(held) for delta, held in contents.items()}


def _replacers(corrections: Sequence[Correction]) -> dict[str, frozenset[str]]:
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
