"""Whether what is in the ledger obeyed the rules: chains of heads, one base, decisions by people who may, signed.

The rules of decisions are those of `decisions`, `adoption` and `persons`; here they are asked of all that was recorded.
Rows that cannot be read are left out: `integrity` says which they are.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from ledger import repository, tables
from ledger.adoption import Policies, adoption_objections
from ledger.decisions import objections_to_applied, objections_to_decision
from ledger.errors import LedgerError
from ledger.findings import RESTORE, Finding, Progress, plain
from ledger.forms import Unreadable, leaf_form
from ledger.persons import Registry
from ledger.placed import Placed
from ledger.policy import concerned
from ledger.records import ERASED, Decision, Gate, HeadMove, KeyEvent, PolicyAdopted
from ledger.unit_of_work import UnitOfWork

T = TypeVar("T")
_AGAINST = "it is in force against the rules: revert it"
_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class _Planned:
    """A changeset as the rules look at it, without its parts."""

    id: str
    place: int
    number: int
    model: str
    kind: str
    parent: str | None
    parent_version: str
    candidate_version: str
    base_digest: str
    planned_by: str
    reverted: tuple[str, ...]

    @property
    def name(self) -> str:
        """What findings call it."""
        return f"changeset #{self.number} {self.id}"


@dataclass(frozen=True, slots=True)
class _Judged:
    """What a policy looks at in a changeset."""

    kind: str
    planned_by: str
    gates: tuple[Gate, ...]
    reverted: tuple[str, ...]
    correction_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What decisions about a changeset depend on."""

    judged: _Judged
    submitters: tuple[str, ...]
    relations: tuple[str | None, ...]


def broken_rules(work: UnitOfWork, progress: Progress) -> list[Finding]:
    """Return what was recorded against the rules."""
    try:
        return list(_broken(work, progress))
    except DBAPIError as error:
        return [Finding("rules", f"the database cannot read what they are about: {error.orig}", RESTORE)]


def _broken(work: UnitOfWork, progress: Progress) -> Iterator[Finding]:
    changesets = {planned.id: planned for planned in _planned(work)}
    moves = _records(work, HeadMove)
    yield from _chains(moves, changesets)
    yield from _plans(moves, changesets)
    registry = Registry(_records(work, KeyEvent))
    yield from (Finding(f"key_event {plain(i)}", problem, RESTORE) for i, problem in registry.problems)
    policies: dict[str, list[Placed[PolicyAdopted]]] = defaultdict(list)
    for adopted in _records(work, PolicyAdopted):
        policies[adopted.record.model].append(adopted)
        for problem in adoption_objections(adopted, registry):
            yield Finding(f"policy {adopted.record.id}", problem, "adopt a policy that is signed")
    decisions: dict[str, list[Placed[Decision]]] = defaultdict(list)
    for decision in _records(work, Decision):
        decisions[decision.record.changeset_id].append(decision)
    applied = {move.record.changeset_id: move for move in moves}
    judged = [planned for planned in changesets.values() if planned.id in applied or planned.id in decisions]
    for done in range(0, len(judged), _AT_ONCE):
        some = judged[done : done + _AT_ONCE]
        evidence = _evidence(work, some)
        for planned in some:
            about, move, rules = decisions[planned.id], applied.get(planned.id), policies[planned.model]
            yield from _judgement(planned, evidence[planned.id], about, move=move, registry=registry, policies=rules)
        progress("decisions", min(done + _AT_ONCE, len(judged)), len(judged))


def _judgement(
    planned: _Planned,
    evidence: _Evidence,
    decisions: Sequence[Placed[Decision]],
    *,
    move: Placed[HeadMove] | None,
    registry: Registry,
    policies: Policies,
) -> Iterator[Finding]:
    about = (evidence.submitters, evidence.relations)
    if move is not None:
        for problem in objections_to_applied(
            evidence.judged, move, decisions, *about, registry=registry, policies=policies
        ):
            yield Finding(planned.name, problem, _AGAINST)
        return
    for decision in decisions:
        for problem in objections_to_decision(evidence.judged, decision, *about, registry=registry, policies=policies):
            yield Finding(f"decision {decision.record.id}", problem, "it does not count: decide again")


def _evidence(work: UnitOfWork, changesets: Sequence[_Planned]) -> dict[str, _Evidence]:
    """Read what the decisions about some changesets depend on."""
    owners = [planned.id for planned in changesets]
    connection, gate = work.connection, tables.changeset_gate
    gates: dict[str, list[Gate]] = defaultdict(list)
    rows = repository.in_chunks(connection, select(gate), gate.c.changeset_id, owners)
    for row in rows:
        try:
            gates[row["changeset_id"]].append(repository.record_of(Gate, gate, row))
        except LedgerError:
            continue
    result, correction, text = tables.changeset_result, tables.correction, tables.correction_text
    with_text = text.c.correction_id == correction.c.id
    who = (correction.c.id, correction.c.submitter, text.c.relation, text.c.correction_id)
    joined = result.join(correction, correction.c.id == result.c.correction_id).outerjoin(text, with_text)
    written = select(result.c.changeset_id, *who).select_from(joined).where(result.c.changeset_id.in_(owners))
    results: dict[str, dict[str, tuple[Any, ...]]] = defaultdict(dict)
    for owner, identity, *about in connection.execute(written):
        results[owner][identity] = tuple(about)
    reverted = {identity for planned in changesets for identity in planned.reverted}
    other = select(*who).select_from(correction.outerjoin(text, with_text))
    others = {
        row["id"]: (row["submitter"], row["relation"], row["correction_id"])
        for row in repository.in_chunks(connection, other, correction.c.id, reverted)
    }
    found = {}
    for planned in changesets:
        known = results[planned.id]
        touched = tuple(dict.fromkeys((*known, *planned.reverted)))
        judged = _Judged(planned.kind, planned.planned_by, tuple(gates[planned.id]), planned.reverted, touched)
        about_it = [known.get(i) or others.get(i) for i in concerned(judged)]
        people = {str(entry[0]): None for entry in about_it if entry}
        relations = {ERASED if entry[2] is None else entry[1]: None for entry in about_it if entry}
        found[planned.id] = _Evidence(judged, tuple(people), tuple(relations))
    return found


def _chains(moves: Iterable[Placed[HeadMove]], changesets: Mapping[str, _Planned]) -> Iterator[Finding]:
    chains: dict[str, list[Placed[HeadMove]]] = defaultdict(list)
    for move in moves:
        chains[move.record.model].append(move)
    for chain in chains.values():
        before: HeadMove | None = None
        for place, placed in enumerate(chain):
            for problem in _link(place, placed, before, changesets.get(placed.record.changeset_id or "")):
                yield Finding(f"head_move {placed.record.model} {placed.record.position}", problem, RESTORE)
            before = placed.record


def _link(place: int, placed: Placed[HeadMove], before: HeadMove | None, planned: _Planned | None) -> Iterator[str]:
    """What is wrong with a move of the head at a place of its chain, after `before`, by a changeset."""
    move = placed.record
    if move.position != place:
        yield f"it stands where position {place} belongs"
    if (move.changeset_id is None) != (place == 0):
        yield "every head but the first must come from a changeset"
    if before and move.moved_at < before.moved_at:
        yield f"it is of {move.moved_at}, before the head that it follows"
    if planned is None:
        return
    if planned.place > placed.place:
        yield f"changeset #{planned.number} came after it"
    if (planned.model, planned.candidate_version) != (move.model, move.version):
        yield f"changeset #{planned.number} leads to another version"
    if before and (planned.parent, planned.parent_version) != (before.changeset_id, before.version):
        yield f"changeset #{planned.number} was not planned on the head before"


def _plans(moves: Iterable[Placed[HeadMove]], changesets: Mapping[str, _Planned]) -> Iterator[Finding]:
    """Whether every changeset was planned on a head, and all those of a model on one base."""
    heads = {(m.record.model, m.record.changeset_id): m for m in reversed(list(moves))}
    first: dict[str, _Planned] = {}
    for planned in changesets.values():
        start = first.setdefault(planned.model, planned)
        if planned.base_digest != start.base_digest:
            problem = f"its base is {planned.base_digest[:12]}, that of #{start.number} is {start.base_digest[:12]}"
            yield Finding(planned.name, problem, "plan it again on the right base")
        head = heads.get((planned.model, planned.parent))
        if head is None or head.place > planned.place or head.record.version != planned.parent_version:
            yield Finding(planned.name, "no head of the model was what it says it was planned on", RESTORE)


def _planned(work: UnitOfWork) -> Iterator[_Planned]:
    table = tables.changeset
    for row in _readable(work, table):
        try:
            reverted = repository.json_value(table, row, "reverted")
        except LedgerError:
            continue
        names = ("model", "kind", "parent", "parent_version", "candidate_version", "base_digest", "planned_by")
        values = {name: row[name] for name in names}
        yield _Planned(row["id"], row["sequence"], row["number"], reverted=tuple(map(str, reverted)), **values)


def _records(work: UnitOfWork, kind: type[T]) -> list[Placed[T]]:
    table = repository.TABLE_OF[kind]
    return [Placed(row["sequence"], repository.record_of(kind, table, row)) for row in _readable(work, table)]


def _readable(work: UnitOfWork, table: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a table of records that hold what their columns can, in the order of the log."""
    form = leaf_form(table)
    for row in work.connection.execute(select(table).order_by(table.c.sequence)):
        try:
            form(row).encode()
        except (Unreadable, UnicodeEncodeError):
            continue
        yield dict(row._mapping)
