"""Whether what is in the ledger obeyed the rules: chains of heads, one base, decisions by people who may, signed.

The rules of decisions are those of `decisions`, `adoption` and `persons`; here they are asked of all that was recorded.
Rows that cannot be read are left out: `integrity` says which they are.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

from sqlalchemy import Connection, select

from ledger import repository, tables
from ledger.adoption import Policies, adoption_objections, rules_of
from ledger.decisions import objections_to_applied, objections_to_decision
from ledger.errors import LedgerError
from ledger.findings import RESTORE, Finding, Progress, plain
from ledger.forms import Unreadable, leaf_form
from ledger.persons import Registry
from ledger.placed import Placed
from ledger.policy import concerned, same_person
from ledger.reading import Reading
from ledger.records import ERASED, Decision, Gate, HeadMove, KeyEvent, PolicyAdopted

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


def check_rules(reading: Reading, progress: Progress) -> None:
    """Note what was recorded against the rules."""
    reading.guard("rules", lambda: reading.findings.extend(_broken(reading.connection, progress)))


def _broken(connection: Connection, progress: Progress) -> Iterator[Finding]:
    changesets = {planned.id: planned for planned in _planned(connection)}
    moves = _records(connection, HeadMove)
    yield from _chains(moves, changesets)
    yield from _plans(moves, changesets)
    registry = Registry(_records(connection, KeyEvent))
    yield from (Finding(f"key_event {plain(i)}", problem, RESTORE) for i, problem in registry.problems)
    policies: dict[str, list[Placed[PolicyAdopted]]] = defaultdict(list)
    for adopted in _records(connection, PolicyAdopted):
        policies[adopted.record.model].append(adopted)
        for problem in adoption_objections(adopted, registry):
            yield Finding(f"policy {adopted.record.id}", problem, "adopt a policy that is signed")
    decisions: dict[str, list[Placed[Decision]]] = defaultdict(list)
    for decision in _records(connection, Decision):
        decisions[decision.record.changeset_id].append(decision)
    applied = {move.record.changeset_id: move for move in moves}
    asked = _asked(connection, chain.from_iterable(decisions.values()), chain.from_iterable(policies.values()))
    judged = [planned for planned in changesets.values() if planned.id in applied or planned.id in decisions]
    for done in range(0, len(judged), _AT_ONCE):
        some = judged[done : done + _AT_ONCE]
        evidence = _evidence(connection, some, asked)
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


@dataclass(frozen=True, slots=True)
class _Asked:
    """What decisions and policies ask about corrections: to read all of every correction would take most of the time.

    Attributes:
        all: Whether a policy asks for relations, or counts corrections.
        filed: Else, of each changeset, those who filed corrections that it writes and decided or adopted something.
    """

    all: bool
    filed: Mapping[str, Collection[str]]


def _asked(
    connection: Connection, decisions: Iterable[Placed[Decision]], policies: Iterable[Placed[PolicyAdopted]]
) -> _Asked:
    adopted = [placed.record for placed in policies]
    if any(_looks_at_corrections(record) for record in adopted):
        return _Asked(True, {})
    deciding = {same_person(placed.record.reviewer) for placed in decisions}
    deciding |= {same_person(record.adopted_by) for record in adopted}
    result, correction = tables.changeset_result, tables.correction
    submitters = connection.scalars(select(correction.c.submitter).distinct())
    names = [name for name in submitters if isinstance(name, str) and same_person(name) in deciding]
    written = select(result.c.changeset_id, correction.c.submitter).distinct()
    written = written.join_from(correction, result, result.c.correction_id == correction.c.id)
    filed = defaultdict[str, set[str]](set)
    for row in repository.in_chunks(connection, written, correction.c.submitter, names):
        filed[row["changeset_id"]].add(row["submitter"])
    return _Asked(False, filed)


def _looks_at_corrections(adopted: PolicyAdopted) -> bool:
    try:
        policy = rules_of(adopted)
    except LedgerError:
        return True
    asks = (rule.when.relations or rule.when.min_corrections is not None for rule in policy.rules)
    return policy.auto is not None or any(asks)


def _evidence(connection: Connection, changesets: Sequence[_Planned], asked: _Asked) -> dict[str, _Evidence]:
    """Read what the decisions about some changesets depend on."""
    owners = [planned.id for planned in changesets]
    gate, gates = tables.changeset_gate, defaultdict[str, list[Gate]](list)
    for row in repository.in_chunks(connection, select(gate), gate.c.changeset_id, owners):
        try:
            gates[row["changeset_id"]].append(repository.record_of(Gate, gate, row))
        except LedgerError:
            continue
    results = _written(connection, owners) if asked.all else {}
    reverted = _reverted(connection, {identity for planned in changesets for identity in planned.reverted})
    found = {}
    for planned in changesets:
        known = results.get(planned.id, {})
        touched = tuple(dict.fromkeys((*known, *planned.reverted)))
        judged = _Judged(planned.kind, planned.planned_by, tuple(gates[planned.id]), planned.reverted, touched)
        about = [entry for i in concerned(judged) if (entry := known.get(i) or reverted.get(i))]
        people = {submitter: None for submitter, _ in about}
        if planned.kind == "edit":
            people |= dict.fromkeys(asked.filed.get(planned.id, ()))
        found[planned.id] = _Evidence(judged, tuple(people), tuple({relation: None for _, relation in about}))
    return found


_CORRECTION = tables.correction.outerjoin(
    tables.correction_text, tables.correction_text.c.correction_id == tables.correction.c.id
)
_ABOUT = (tables.correction.c.submitter, tables.correction_text.c.relation, tables.correction_text.c.correction_id)


def _written(connection: Connection, owners: Sequence[str]) -> Mapping[str, dict[str, tuple[str, str | None]]]:
    """Of each changeset, submitter and relation of the corrections that it writes, by their ids."""
    result, correction = tables.changeset_result, tables.correction
    joined = result.join(_CORRECTION, correction.c.id == result.c.correction_id)
    statement = select(result.c.changeset_id, correction.c.id, *_ABOUT).select_from(joined)
    found = defaultdict[str, dict[str, tuple[str, str | None]]](dict)
    for owner, identity, *about in connection.execute(statement.where(result.c.changeset_id.in_(owners))):
        found[owner][identity] = _about(*about)
    return found


def _reverted(connection: Connection, ids: Collection[str]) -> dict[str, tuple[str, str | None]]:
    statement = select(tables.correction.c.id, *_ABOUT).select_from(_CORRECTION)
    rows = repository.in_chunks(connection, statement, tables.correction.c.id, ids)
    return {row["id"]: _about(row["submitter"], row["relation"], row["correction_id"]) for row in rows}


def _about(submitter: Any, relation: str | None, text_of: str | None) -> tuple[str, str | None]:
    return str(submitter), ERASED if text_of is None else relation


def _chains(moves: Iterable[Placed[HeadMove]], changesets: Mapping[str, _Planned]) -> Iterator[Finding]:
    chains: dict[str, list[Placed[HeadMove]]] = defaultdict(list)
    for move in moves:
        chains[move.record.model].append(move)
    for moves_of_model in chains.values():
        before: HeadMove | None = None
        for place, placed in enumerate(moves_of_model):
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


def _planned(connection: Connection) -> Iterator[_Planned]:
    table = tables.changeset
    for row in _readable(connection, table):
        try:
            reverted = repository.json_value(table, row, "reverted")
        except LedgerError:
            continue
        names = ("model", "kind", "parent", "parent_version", "candidate_version", "base_digest", "planned_by")
        values = {name: row[name] for name in names}
        yield _Planned(row["id"], row["sequence"], row["number"], reverted=tuple(map(str, reverted)), **values)


def _records(connection: Connection, kind: type[T]) -> list[Placed[T]]:
    table = repository.TABLE_OF[kind]
    return [Placed(row["sequence"], repository.record_of(kind, table, row)) for row in _readable(connection, table)]


def _readable(connection: Connection, table: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a table of records that hold what their columns can, in the order of the log."""
    form = leaf_form(table)
    for row in connection.execute(select(table).order_by(table.c.sequence)):
        try:
            form(row).encode()
        except (Unreadable, UnicodeEncodeError):
            continue
        yield dict(row._mapping)
