"""What the ledger says of one thing: a changeset, a subject, a version, the difference of two versions. Read-only.

Statuses are derived in `status`; lists over many things are in `queries`.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import select

from ledger import repository, tables
from ledger.active import folded
from ledger.errors import LedgerError
from ledger.records import ActiveDelta, Changeset, Correction, Decision, DeltaChange, HeadMove, Shown, subject_key
from ledger.status import (
    ChangesetStatus,
    CorrectionStatus,
    ModelState,
    Stretch,
    changeset_status,
    correction_statuses,
    read_state,
)
from ledger.unit_of_work import UnitOfWork


@dataclass(frozen=True, slots=True)
class Replaced(Shown):
    """A delta that a consolidation stands for, and the number of the changeset that brought it in force first."""

    sha256: str
    path: str
    changeset: int


@dataclass(frozen=True, slots=True)
class ChangesetView(Shown):
    """A changeset with what became of it, and of a consolidation the deltas that it stands for."""

    changeset: Changeset
    status: ChangesetStatus
    corrections: tuple[Correction, ...]
    decisions: tuple[Decision, ...]
    applied: HeadMove | None
    stands_for: tuple[Replaced, ...] = ()


@dataclass(frozen=True, slots=True)
class Blame(Shown):
    """The whole story of one correction.

    `changeset` is the number of the one that first brought it in force, or else of the last that tried; `decisions` are
    about that one; `reverted_by` is the number of the one that took it out of force last. `status` is that of today,
    `in_force` says whether it was in force at the version that was asked for.
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


def show(work: UnitOfWork, ref: str) -> ChangesetView:
    """Return a changeset ('#3', '3' or a digest prefix) with its status, corrections, decisions and head."""
    changeset = work.changeset(ref)
    corrections = corrections_of(work, changeset.correction_ids)
    return ChangesetView(
        changeset=changeset,
        status=changeset_status(work, changeset),
        corrections=tuple(corrections[identity] for identity in changeset.correction_ids),
        decisions=tuple(work.decisions(changeset.id)),
        applied=work.move_of(changeset.id),
        stands_for=_stands_for(work, changeset) if changeset.kind == "consolidate" else (),
    )


def _stands_for(work: UnitOfWork, changeset: Changeset) -> tuple[Replaced, ...]:
    gone = {change.sha256: change.path for change in changeset.changes if change.removed}
    change, move, made = tables.changeset_change, tables.head_move, tables.changeset
    applied = select(change.c.sha256, made.c.number).select_from(
        change.join(made, made.c.id == change.c.changeset_id).join(move, move.c.changeset_id == made.c.id)
    )
    rows = sorted(
        repository.in_chunks(work.connection, applied, change.c.sha256, gone),
        key=lambda row: int(row["number"]),
        reverse=True,
    )
    first = {row["sha256"]: int(row["number"]) for row in rows}
    return tuple(Replaced(sha256, path, first[sha256]) for sha256, path in gone.items())


def blame(
    work: UnitOfWork, model: str, subject: str, relation: str | None = None, *, at: HeadMove | None = None
) -> list[Blame]:
    """Return the story of each correction of a subject (in any spelling), of one relation if given, oldest first.

    With `at`, only of those that were in force at that head.
    """
    state = read_state(work, model, subjects=[subject])
    statuses, stretches = correction_statuses(state), state.stretches()
    position = (at or state.head).position
    stories = [
        _blame(state, correction, statuses[correction.id], stretches.get(correction.id, ()), position)
        for correction in state.corrections.values()
        if subject_key(correction.subject) == subject_key(subject) and relation in (None, correction.relation)
    ]
    return [story for story in stories if at is None or story.in_force]


def _blame(
    state: ModelState, correction: Correction, status: CorrectionStatus, held: tuple[Stretch, ...], position: int
) -> Blame:
    applied = state.heads[held[0].start] if held else None
    tried = [changeset.id for changeset in state.changesets.values() if correction.id in changeset.correction_ids]
    by = applied.changeset_id if applied is not None else (tried[-1] if tried else None)
    end = held[-1].end if held else None
    ended_by = None if end is None else state.heads[end].changeset_id
    return Blame(
        correction=correction,
        status=status,
        in_force=_covers(held, position),
        changeset=state.changesets[by].number if by else None,
        decisions=tuple(state.decisions.get(by, ())) if by else (),
        applied=applied,
        reverted_by=state.changesets[ended_by].number if ended_by else None,
    )


def _covers(held: Collection[Stretch], position: int) -> bool:
    return any(s.start <= position and (s.end is None or position < s.end) for s in held)


def diff(work: UnitOfWork, model: str, a: HeadMove | str, b: HeadMove | str) -> VersionDiff:
    """Return what changed from `a` to `b`, each a head or whatever `resolve_version` reads.

    Only what the changesets between the two touched is read: quick for neighbours, whatever came before them.
    """
    one = resolve_version(work, model, a) if isinstance(a, str) else a
    other = resolve_version(work, model, b) if isinstance(b, str) else b
    changes = _changes_of_deltas_touched(work, model, *sorted((one.position, other.position)))
    old = folded(change for position, change in changes if position <= one.position)
    new = folded(change for position, change in changes if position <= other.position)
    came, went = _beliefs(work, model, {change.sha256 for _, change in changes}, one, other)
    return VersionDiff(
        a=one,
        b=other,
        came_in_force=came,
        went_out_of_force=went,
        deltas_added=tuple(delta for delta in new if delta not in old),
        deltas_removed=tuple(delta for delta in old if delta not in new),
    )


def _changes_of_deltas_touched(work: UnitOfWork, model: str, after: int, up_to: int) -> list[tuple[int, DeltaChange]]:
    """Every applied change, with its position, of the deltas that were changed after one position up to another."""
    change, move = tables.changeset_change, tables.head_move
    joined = select(change, move.c.position.label("at")).join(move, move.c.changeset_id == change.c.changeset_id)
    joined = joined.where(move.c.model == model)
    between = joined.where(move.c.position > after, move.c.position <= up_to)
    touched = {row["sha256"] for row in work.connection.execute(between).mappings()}
    rows = list(repository.in_chunks(work.connection, joined, change.c.sha256, touched))
    rows.sort(key=lambda row: (row["at"], row["position"]))
    return [(row["at"], repository.record_of(DeltaChange, change, row)) for row in rows]


def _beliefs(
    work: UnitOfWork, model: str, deltas: Collection[str], one: HeadMove, other: HeadMove
) -> tuple[tuple[Correction, ...], tuple[Correction, ...]]:
    """The corrections that came and that went from one head to another, if only `deltas` were touched between them."""
    result = tables.changeset_result
    held = repository.in_chunks(work.connection, select(result.c.correction_id), result.c.delta, deltas)
    touched = corrections_of(work, {row["correction_id"] for row in held}).values()
    # An erased correction has no subject to ask for.
    whole = any(correction.erased for correction in touched)
    state = read_state(work, model, subjects=None if whole else {correction.subject for correction in touched})
    stretches = state.stretches()
    went: list[Correction] = []
    came: list[Correction] = []
    for identity, correction in state.corrections.items():
        before, after = (_covers(stretches.get(identity, ()), move.position) for move in (one, other))
        if before != after:
            (came if after else went).append(correction)
    return tuple(came), tuple(went)


def corrections_of(work: UnitOfWork, ids: Collection[str]) -> dict[str, Correction]:
    """Return these corrections by their ids, in the order of filing."""
    statement, column = repository.with_text(Correction), tables.correction.c.id
    rows = sorted(repository.in_chunks(work.connection, statement, column, ids), key=lambda row: int(row["sequence"]))
    return {c.id: c for c in repository.read_records(work.connection, Correction, rows)}


def resolve_version(work: UnitOfWork, model: str, text: str) -> HeadMove:
    """Return the head that `text` names.

    'head'; 'base'; 'v3', the position; '#5', the changeset that led to it; a date or time in ISO form, the last head
    at or before it (UTC unless it says otherwise, a bare date means its end); or at least 6 digits of the version's
    digest, the last head of that version.

    Raises:
        LedgerError: It names none, or several different ones.
    """
    head, table = work.head(model), tables.head_move
    if text == "head":
        return head
    if text == "base":
        return work.heads(model, table.c.position == 0)[0]
    if text.startswith("#"):
        move = work.move_of(work.changeset(text).id)
        found = [move] if move is not None and move.model == model else []
        problem = f"changeset {text} was not applied to {model}"
    elif re.fullmatch(r"v\d{1,9}", text):
        found = work.heads(model, table.c.position == int(text[1:]))
        problem = f"{model} has no {text}, its head is v{head.position}"
    elif re.match(r"\d{4}-\d\d-\d\d", text):
        found = _last_by(work, model, moment(text))
        first = work.heads(model, table.c.position == 0)[0]
        problem = f"{model} was not there on {text}, its base was put in force at {first.moved_at}"
    elif re.fullmatch(r"[0-9a-fA-F]{6,64}", text):
        # "g" comes after every hexadecimal digit
        found = work.heads(model, table.c.version >= text.lower(), table.c.version < f"{text.lower()}g")
        problem = f"no version of {model} begins with {text}"
        if len({move.version for move in found}) > 1:
            raise LedgerError(f"several versions of {model} begin with {text}", "give more digits")
    else:
        found, problem = [], f"{text!r} names no version"
    if not found:
        raise LedgerError(problem, "write head, base, v3, #5, a date, or at least 6 digits of a version's digest")
    return found[-1]


def _last_by(work: UnitOfWork, model: str, at: str) -> list[HeadMove]:
    table = tables.head_move
    before = select(table.c.position).where(table.c.model == model, table.c.moved_at <= at)
    last = before.order_by(table.c.moved_at.desc(), table.c.position.desc()).limit(1).scalar_subquery()
    return work.heads(model, table.c.position == last)


def moment(text: str, *, end: bool = True) -> str:
    """Return the UTC time that a date or time in ISO form means; a bare date its last second, or its first.

    Raises:
        LedgerError: It is no date.
    """
    try:
        time = datetime.fromisoformat(f"{text}T{'23:59:59' if end else '00:00:00'}" if len(text) == 10 else text)
    except ValueError as error:
        raise LedgerError(f"{text!r} is no date", "write 2026-11-21 or 2026-11-21T02:45:34Z") from error
    utc = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    return utc.strftime("%Y-%m-%dT%H:%M:%SZ")
