"""Lists that people ask of the ledger: the log, what waits, who decided what, what a method wrote. Read-only.

Each reads as much of the ledger as it shows, by an index, so that a million corrections make it no slower. What is said of
one thing is in `views`.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import Column, Connection, Select, func, or_, select

from ledger import repository, tables
from ledger.errors import LedgerError
from ledger.policy import same_person
from ledger.records import Correction, Decision, Quarantined, Shown, subject_key
from ledger.status import CorrectionStatus, correction_statuses, read_state
from ledger.unit_of_work import UnitOfWork
from ledger.views import corrections_of

T = TypeVar("T")
KINDS = ("filed", "quarantined", "planned", "decided", "started", "applied", "key", "policy", "erased")
"""The kinds of lines of the log."""
AT_ONCE = 1_000
"""Events of one kind that are read together."""


@dataclass(frozen=True, slots=True)
class Page(Shown, Generic[T]):
    """The first entries of a list, and how many it has in all."""

    total: int
    entries: tuple[T, ...]


@dataclass(frozen=True, slots=True)
class Event(Shown):
    """One line of the log. `sequence` is its place in the Merkle log, `kind` one of `KINDS`."""

    sequence: int
    at: str
    kind: str
    by: str
    ref: str  # '#3' of a changeset, 'v2' of a head, else the id of the record, of an erasure that of what was erased
    text: str


@dataclass(frozen=True, slots=True)
class Waiting(Shown):
    """A correction that nothing has settled: its status says what it waits for, `filed_at` since when it waits."""

    correction: Correction
    status: CorrectionStatus


@dataclass(frozen=True, slots=True)
class Decided(Shown):
    """A decision with what it was about and what became of that: `applied` is the position of the head it led to."""

    decision: Decision
    changeset: int
    kind: str
    reason: str
    planned_by: str
    applied: int | None


@dataclass(frozen=True, slots=True)
class Written(Shown):
    """A correction that a changeset wrote into the weights, with what the editor said of it."""

    correction: Correction
    changeset: int
    method: str
    status: str
    position: int
    at: str


# --- the log


def log(
    work: UnitOfWork, model: str, *, last: int | None = None, since: str | None = None, kinds: Collection[str] = ()
) -> list[Event]:
    """Return what happened, newest last. Quarantined rows and keys belong to no model and are always in it.

    Args:
        work: The ledger.
        model: Its name.
        last: Only so many, the newest.
        since: Only what bears this time (UTC, as `views.moment` gives it) or a later one.
        kinds: Only these of `KINDS`.

    Raises:
        LedgerError: One of `kinds` is none.
    """
    if unknown := set(kinds) - set(KINDS):
        raise LedgerError(f"{min(unknown)!r} is no kind of event", f"write one of {', '.join(KINDS)}")
    found: list[tuple[str, Any]] = []
    for kind, (statement, time) in _sources(model).items():
        if kinds and kind not in kinds:
            continue
        found += ((kind, row) for row in _newest(work.connection, statement, time, last=last, since=since))
    found.sort(key=lambda item: int(item[1]["sequence"]))
    found = found[-last:] if last else found
    planned = _planned(work.connection, [row["id"] for kind, row in found if kind == "planned"])
    return [_event(kind, row, planned) for kind, row in found]


def _newest(
    connection: Connection, statement: Select[Any], time: Column[str], *, last: int | None, since: str | None
) -> list[Any]:
    """The newest rows, newest first, as far back as `since`: until `AT_ONCE` rows in a row are older, for clocks go back."""
    place = statement.selected_columns["sequence"]
    page = last if last is not None and since is None else AT_ONCE
    found: list[Any] = []
    rest = statement.order_by(place.desc()).limit(page)
    while True:
        rows = list(connection.execute(rest).mappings())
        young = [row for row in rows if since is None or row[time.name] >= since]
        found += young
        if len(rows) < page or not young or (last is not None and len(found) >= last):
            return found[:last]
        rest = statement.where(place < rows[-1]["sequence"]).order_by(place.desc()).limit(page)


def _sources(model: str) -> dict[str, tuple[Select[Any], Column[str]]]:
    """Per kind of event, which rows are of it, and when each happened."""
    c, q, s, d, move = tables.correction, tables.quarantined, tables.changeset, tables.decision, tables.head_move
    key, policy, erasure = tables.key_event, tables.policy, tables.erasure
    moves = select(move, s.c.number).outerjoin(s, s.c.id == move.c.changeset_id).where(move.c.model == model)
    of_decision = select(d, s.c.number).join(s, s.c.id == d.c.changeset_id).where(s.c.model == model)
    of_erasure = select(erasure).outerjoin(c, c.c.id == erasure.c.ref).where(or_(c.c.model == model, c.c.id.is_(None)))
    return {
        "filed": (repository.with_text(Correction).where(c.c.model == model), c.c.filed_at),
        "quarantined": (repository.with_text(Quarantined), q.c.quarantined_at),
        "planned": (select(s).where(s.c.model == model), s.c.planned_at),
        "decided": (of_decision, d.c.decided_at),
        "started": (moves.where(move.c.changeset_id.is_(None)), move.c.moved_at),
        "applied": (moves.where(move.c.changeset_id.is_not(None)), move.c.moved_at),
        "key": (select(key), key.c.at),
        "policy": (select(policy).where(policy.c.model == model), policy.c.adopted_at),
        "erased": (of_erasure, erasure.c.erased_at),
    }


def _planned(connection: Connection, changesets: Collection[str]) -> dict[str, tuple[set[str], bool]]:
    """Of each changeset the corrections it wrote or skipped, and whether a gate failed."""
    result, gate = tables.changeset_result, tables.changeset_gate
    written: dict[str, set[str]] = {identity: set() for identity in changesets}
    rows = select(result.c.changeset_id, result.c.correction_id)
    for row in repository.in_chunks(connection, rows, result.c.changeset_id, changesets):
        written[row["changeset_id"]].add(row["correction_id"])
    of_failed = select(gate.c.changeset_id).where(gate.c.passed == 0)
    failed = {r["changeset_id"] for r in repository.in_chunks(connection, of_failed, gate.c.changeset_id, changesets)}
    return {identity: (touched, identity in failed) for identity, touched in written.items()}


def _event(kind: str, row: Mapping[str, Any], planned: Mapping[str, tuple[set[str], bool]]) -> Event:
    place = row["sequence"]
    match kind:
        case "filed":
            c = repository.record_of(Correction, tables.correction, row)
            text = f"{c.subject} | {c.prompt_template} | {c.target_new}"
            return Event(place, c.filed_at, kind, c.submitter, c.id, text)
        case "quarantined":
            q = repository.record_of(Quarantined, tables.quarantined, row)
            return Event(place, q.quarantined_at, kind, "", q.id, f"{q.file_name} line {q.line}, {q.field}: {q.reason}")
        case "planned":
            written, failed = planned[row["id"]]
            count = len(written.union(repository.json_value(tables.changeset, row, "reverted")))
            text = (
                f"{row['kind']} of {count} corrections, {'GATES FAILED' if failed else 'gates passed'}: {row['reason']}"
            )
            return Event(place, row["planned_at"], kind, row["planned_by"], f"#{row['number']}", text)
        case "decided":
            text = f"{row['verdict']}: {row['reason']}"
            return Event(place, row["decided_at"], kind, row["reviewer"], f"#{row['number']}", text)
        case "started" | "applied":
            text = f"base model {row['version'][:12]}"
            if kind == "applied":
                text = f"changeset #{row['number']} leads to {row['version'][:12]}"
            return Event(place, row["moved_at"], kind, row["moved_by"], f"v{row['position']}", text)
        case "key":
            text = f"{row['action']} {row['key_id'][:12]} of {row['person']}: {row['reason']}"
            return Event(place, row["at"], kind, row["by"], row["id"], text)
        case "policy":
            return Event(place, row["adopted_at"], kind, row["adopted_by"], row["id"], row["text"])
    return Event(place, row["erased_at"], kind, row["erased_by"], row["ref"], row["reason"])


# --- what waits


def pending(work: UnitOfWork, model: str, *, since: str | None = None, limit: int | None = 100) -> Page[Waiting]:
    """Return the corrections that no applied or rejected changeset has settled, oldest first.

    Args:
        work: The ledger.
        model: Its name.
        since: Only those that were filed at this time (UTC) or later.
        limit: Only so many; the page's total counts all.
    """
    wait, c = tables.waiting, tables.correction
    found = select(wait.c.correction_id).where(wait.c.model == model)
    if since is not None:
        found = found.join(c, c.c.id == wait.c.correction_id).where(c.c.filed_at >= since)
    total = work.connection.scalar(select(func.count()).select_from(found.subquery())) or 0
    oldest = list(work.connection.scalars(found.order_by(wait.c.sequence).limit(limit)))
    corrections = corrections_of(work, oldest)
    state = read_state(work, model, subjects={correction.subject for correction in corrections.values()})
    statuses = correction_statuses(state)
    return Page(total, tuple(Waiting(correction, statuses[identity]) for identity, correction in corrections.items()))


# --- who decided


def approvals(work: UnitOfWork, model: str, ref: str | None = None, *, by: str | None = None) -> list[Decided]:
    """Return the decisions about something or by somebody, in order, those that say no included.

    Args:
        work: The ledger.
        model: Its name.
        ref: A changeset ('#3', '3', digits of its id), a correction (digits of its id) or a subject; None for all.
        by: The person: the name in any spelling, or the name or the address of "Name <address>".

    Raises:
        LedgerError: `ref` names nothing, or several things.
    """
    d, s, move = tables.decision, tables.changeset, tables.head_move
    columns = (s.c.number, s.c.kind, s.c.reason.label("planned_for"), s.c.planned_by, move.c.position)
    joined = d.join(s, s.c.id == d.c.changeset_id).outerjoin(move, move.c.changeset_id == s.c.id)
    statement = select(d, *columns).select_from(joined).where(s.c.model == model)
    if by is not None:
        statement = statement.where(d.c.reviewer.in_(_people(work.connection, by)))
    if ref is None:
        rows: Iterable[Any] = work.connection.execute(statement).mappings()
    else:
        about = _changesets_about(work, ref)
        rows = repository.in_chunks(work.connection, statement, d.c.changeset_id, about)
    return [
        Decided(
            decision=repository.record_of(Decision, d, row),
            changeset=row["number"],
            kind=row["kind"],
            reason=row["planned_for"],
            planned_by=row["planned_by"],
            applied=row["position"],
        )
        for row in sorted(rows, key=lambda row: int(row["sequence"]))
    ]


def _people(connection: Connection, asked: str) -> list[str]:
    """The names under which this person decided."""
    everybody = connection.scalars(select(tables.decision.c.reviewer).distinct())
    return [name for name in everybody if same_person(asked) in _names(name)]


def _names(person: str) -> set[str]:
    name, _, address = person.partition("<")
    return {same_person(text) for text in (person, name, address.removesuffix(">")) if text.strip()}


def _changesets_about(work: UnitOfWork, ref: str) -> set[str]:
    try:
        return {work.changeset(ref).id}
    except LedgerError:
        if ref.startswith("#") or (ref.isdecimal() and len(ref) < 6):  # a number, and nothing else
            raise
    text = tables.correction_text
    about = select(text.c.correction_id).where(text.c.subject_key == subject_key(ref))
    ids = set(work.connection.scalars(about))
    if not ids:
        try:
            ids = {work.correction(ref).id}
        except LedgerError as error:
            raise LedgerError(f"no changeset, correction or subject is {ref!r}", 'see "nse log"') from error
    return _touching(work.connection, ids)


def _touching(connection: Connection, corrections: Collection[str]) -> set[str]:
    """The changesets that wrote, skipped or reverted one of these corrections."""
    s, result, change = tables.changeset, tables.changeset_result, tables.changeset_change
    rows = list(repository.in_chunks(connection, select(result), result.c.correction_id, corrections))
    # Whatever reverts a correction changes a delta that holds it.
    deltas = {row["delta"] for row in rows if row["delta"] is not None}
    changed = repository.in_chunks(connection, select(change.c.changeset_id), change.c.sha256, deltas)
    owners = {row["changeset_id"] for row in changed}
    reverts = repository.in_chunks(connection, select(s), s.c.id, owners)
    reverted = {r["id"] for r in reverts if set(repository.json_value(s, r, "reverted")) & set(corrections)}
    return reverted | {row["changeset_id"] for row in rows}


# --- what a method wrote


def edited(
    work: UnitOfWork, model: str, method: str, *, since: str | None = None, limit: int | None = 100
) -> Page[Written]:
    """Return the corrections that applied changesets of a method wrote into the weights, newest first.

    Args:
        work: The ledger.
        model: Its name.
        method: The editor's name, as `method.name` in params.yaml.
        since: Only what was put in force at this time (UTC) or later.
        limit: Only so many; the page's total counts all.

    Raises:
        LedgerError: No changeset of the model was made by that method.
    """
    s, result, move = tables.changeset, tables.changeset_result, tables.head_move
    of_model = select(s.c.method).where(s.c.model == model)
    if work.connection.scalar(of_model.where(s.c.method == method).limit(1)) is None:
        known = ", ".join(sorted(work.connection.scalars(of_model.distinct()))) or "none yet"
        raise LedgerError(f"no changeset of {model} was made by method {method!r}", f"methods: {known}")
    joined = result.join(s, s.c.id == result.c.changeset_id).join(move, move.c.changeset_id == s.c.id)
    where = [s.c.model == model, s.c.method == method, result.c.status != "skipped"]
    where += [move.c.moved_at >= since] if since is not None else []
    total = work.connection.scalar(select(func.count()).select_from(joined).where(*where)) or 0
    columns = (result.c.correction_id, result.c.status, s.c.number, s.c.method, move.c.position, move.c.moved_at)
    newest = select(*columns).select_from(joined).where(*where)
    newest = newest.order_by(move.c.position.desc(), result.c.position).limit(limit)
    rows = list(work.connection.execute(newest).mappings())
    corrections = corrections_of(work, [row["correction_id"] for row in rows])
    return Page(total, tuple(
        Written(corrections[r["correction_id"]], r["number"], r["method"], r["status"], r["position"], r["moved_at"])
        for r in rows
    ))  # fmt: skip
