"""Questions people ask of the ledger: log, show, blame, diff, and which version a name means. Read-only.

Statuses are derived in `status` and offered here too.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ledger.errors import LedgerError
from ledger.records import (
    ActiveDelta,
    Changeset,
    Correction,
    Decision,
    HeadMove,
    Quarantined,
    Record,
    Shown,
)
from ledger.status import (
    ChangesetStatus,
    CorrectionStatus,
    ModelState,
    changeset_status,
    correction_status,
    correction_statuses,
    read_state,
)
from ledger.unit_of_work import UnitOfWork

__all__ = [
    "Blame",
    "ChangesetStatus",
    "ChangesetView",
    "CorrectionStatus",
    "Event",
    "VersionDiff",
    "active_at",
    "blame",
    "changeset_status",
    "correction_status",
    "delta_contents",
    "diff",
    "log",
    "resolve_version",
    "show",
]


@dataclass(frozen=True, slots=True)
class Event(Shown):
    """One line of the log: filed, quarantined, planned, decided, started or applied."""

    at: str
    kind: str
    by: str
    ref: str  # '#3' of a changeset, 'v2' of a head, else the id of the record
    text: str


@dataclass(frozen=True, slots=True)
class ChangesetView(Shown):
    """A changeset with what became of it."""

    changeset: Changeset
    status: ChangesetStatus
    corrections: tuple[Correction, ...]
    decisions: tuple[Decision, ...]
    applied: HeadMove | None


@dataclass(frozen=True, slots=True)
class Blame(Shown):
    """The whole story of one correction.

    `changeset` is the number of the one that brought it in force, or else of the last that tried; `decisions` are about
    that one; `reverted_by` is the number of the one that took it out of force last.
    """

    correction: Correction
    status: CorrectionStatus
    in_force: bool
    changeset: int | None
    decisions: tuple[Decision, ...]
    applied: HeadMove | None
    reverted_by: int | None


@dataclass(frozen=True, slots=True)
class VersionDiff(Shown):
    """What changed from head `a` to head `b`."""

    a: HeadMove
    b: HeadMove
    came_in_force: tuple[Correction, ...]
    went_out_of_force: tuple[Correction, ...]
    deltas_added: tuple[ActiveDelta, ...]
    deltas_removed: tuple[ActiveDelta, ...]


def log(work: UnitOfWork, model: str) -> list[Event]:
    """Return what happened, newest last. Quarantined rows belong to no model and are always in it."""
    history = work.history()
    changesets = (record for record in history if isinstance(record, Changeset))
    numbers = {changeset.id: changeset.number for changeset in changesets if changeset.model == model}
    events = (_event(record, model, numbers) for record in history)
    return [event for event in events if event is not None]


def _event(record: Record, model: str, numbers: dict[str, int | None]) -> Event | None:
    match record:
        case Quarantined():
            text = f"{record.file_name} line {record.line}, {record.field}: {record.reason}"
            return Event(record.quarantined_at, "quarantined", "", record.id, text)
        case Correction(model=other) if other == model:
            text = f"{record.subject} | {record.prompt_template} | {record.target_new}"
            return Event(record.filed_at, "filed", record.submitter, record.id, text)
        case Changeset(model=other) if other == model:
            gates = "gates passed" if record.gate_passed else "GATES FAILED"
            text = f"{record.kind} of {len(record.correction_ids)} corrections, {gates}: {record.reason}"
            return Event(record.planned_at, "planned", record.planned_by, f"#{record.number}", text)
        case Decision(changeset_id=identity) if identity in numbers:
            text = f"{record.verdict}: {record.reason}"
            return Event(record.decided_at, "decided", record.reviewer, f"#{numbers[identity]}", text)
        case HeadMove(model=other, changeset_id=None) if other == model:
            text = f"base model {record.version[:12]}"
            return Event(record.moved_at, "started", record.moved_by, f"v{record.position}", text)
        case HeadMove(model=other, changeset_id=str(applied)) if other == model:
            text = f"changeset #{numbers[applied]} leads to {record.version[:12]}"
            return Event(record.moved_at, "applied", record.moved_by, f"v{record.position}", text)
    return None


def show(work: UnitOfWork, ref: str) -> ChangesetView:
    """Return a changeset ('#3', '3' or a digest prefix) with its status, corrections, decisions and head."""
    changeset = work.changeset(ref)
    return ChangesetView(
        changeset=changeset,
        status=changeset_status(work, changeset),
        corrections=tuple(work.correction(identity) for identity in changeset.correction_ids),
        decisions=tuple(work.decisions(changeset.id)),
        applied=next((move for move in work.heads(changeset.model) if move.changeset_id == changeset.id), None),
    )


def blame(work: UnitOfWork, model: str, subject: str, relation: str | None = None) -> list[Blame]:
    """Return the story of each correction of a subject (in any letter case), of one relation if given, oldest first."""
    state = read_state(work, model)
    statuses = correction_statuses(state)
    in_force = [state.in_force(state.active(move)) for move in state.heads]
    return [
        _blame(state, in_force, correction, statuses[correction.id])
        for correction in state.corrections.values()
        if correction.subject.strip().casefold() == subject.strip().casefold()
        and relation in (None, correction.relation)
    ]


def _blame(
    state: ModelState, in_force: Sequence[frozenset[str]], correction: Correction, status: CorrectionStatus
) -> Blame:
    held = [correction.id in at_head for at_head in in_force]
    applied = state.heads[held.index(True)] if True in held else None
    ends = [place for place in range(1, len(held)) if held[place - 1] and not held[place]]
    tried = [changeset.id for changeset in state.changesets.values() if correction.id in changeset.correction_ids]
    by = applied.changeset_id if applied is not None else (tried[-1] if tried else None)
    ended_by = state.heads[ends[-1]].changeset_id if ends and not held[-1] else None
    return Blame(
        correction=correction,
        status=status,
        in_force=bool(held) and held[-1],
        changeset=state.changesets[by].number if by else None,
        decisions=tuple(state.decisions[by]) if by else (),
        applied=applied,
        reverted_by=state.changesets[ended_by].number if ended_by else None,
    )


def diff(work: UnitOfWork, model: str, a: HeadMove | str, b: HeadMove | str) -> VersionDiff:
    """Return what changed from `a` to `b`, each a head or whatever `resolve_version` reads."""
    state = read_state(work, model)
    one = resolve_version(work, model, a) if isinstance(a, str) else a
    other = resolve_version(work, model, b) if isinstance(b, str) else b
    before, after = state.in_force(state.active(one)), state.in_force(state.active(other))
    old, new = state.active(one), state.active(other)
    return VersionDiff(
        a=one,
        b=other,
        came_in_force=tuple(c for c in state.corrections.values() if c.id in after - before),
        went_out_of_force=tuple(c for c in state.corrections.values() if c.id in before - after),
        deltas_added=tuple(delta for delta in new if delta not in old),
        deltas_removed=tuple(delta for delta in old if delta not in new),
    )


def active_at(work: UnitOfWork, move: HeadMove) -> tuple[ActiveDelta, ...]:
    """Return the deltas in force at a head: its weights are base + these, less what is dropped of them."""
    return () if move.changeset_id is None else work.changeset(move.changeset_id).active


def delta_contents(work: UnitOfWork, model: str) -> dict[str, frozenset[str]]:
    """Return the ids of the corrections that each delta (by its SHA-256) of a model holds, dropped ones included."""
    return read_state(work, model).contents


def resolve_version(work: UnitOfWork, model: str, text: str) -> HeadMove:
    """Return the head that `text` names.

    'head'; 'base'; 'v3', the position; '#5', the changeset that led to it; a date or time in ISO form, the last head
    at or before it (UTC unless it says otherwise, a bare date means its end); or at least 6 digits of the version's
    digest, the last head of that version.

    Raises:
        LedgerError: It names none, or several different ones.
    """
    head = work.head(model)
    heads = work.heads(model)
    if text in ("head", "base"):
        return head if text == "head" else heads[0]
    if text.startswith("#"):
        changeset = work.changeset(text)
        found = [move for move in heads if move.changeset_id == changeset.id]
        problem = f"changeset {text} was not applied to {model}"
    elif re.fullmatch(r"v\d{1,9}", text):
        found = [move for move in heads if move.position == int(text[1:])]
        problem = f"{model} has no {text}, its head is v{head.position}"
    elif re.match(r"\d{4}-\d\d-\d\d", text):
        found = [move for move in heads if move.moved_at <= _moment(text)]
        problem = f"{model} was not there on {text}, its base was put in force at {heads[0].moved_at}"
    elif re.fullmatch(r"[0-9a-fA-F]{6,64}", text):
        found = [move for move in heads if move.version.startswith(text.lower())]
        problem = f"no version of {model} begins with {text}"
        if len({move.version for move in found}) > 1:
            raise LedgerError(f"several versions of {model} begin with {text}", "give more digits")
    else:
        found, problem = [], f"{text!r} names no version"
    if not found:
        raise LedgerError(problem, "write head, base, v3, #5, a date, or at least 6 digits of a version's digest")
    return found[-1]


def _moment(text: str) -> str:
    try:
        time = datetime.fromisoformat(f"{text}T23:59:59" if len(text) == 10 else text)
    except ValueError as error:
        raise LedgerError(f"{text!r} is no date", "write 2026-11-21 or 2026-11-21T02:45:34Z") from error
    utc = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    return utc.strftime("%Y-%m-%dT%H:%M:%SZ")
