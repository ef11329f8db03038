"""The ledger as its users see it: open it, read or write in one transaction, move the head by compare-and-swap.

Every record that is written becomes a leaf of the log. What records mean together is in `status` and `views`, which
decisions are allowed in `policy`.
"""

import re
import secrets
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeVar

from sqlalchemy import ColumnElement, Connection, Engine, Table, delete, func, select

from ledger import merkle, repository, tables
from ledger.active import folded
from ledger.database import connect, transaction
from ledger.errors import ErasureRefused, HeadMoved, LedgerError
from ledger.log import Log, LogEvent
from ledger.records import (
    ActiveDelta,
    CaseRow,
    Changeset,
    Correction,
    Decision,
    DeltaChange,
    Erasure,
    HeadMove,
    Identified,
    KeyEvent,
    PolicyAdopted,
    Quarantined,
    Record,
    subject_key,
)

T = TypeVar("T", Correction, Changeset)
S = TypeVar("S", Correction, Quarantined)
R = TypeVar("R", bound=Record)

CLOCK_TOLERANCE = timedelta(minutes=10)
"""By how much an event may lie before the one that was recorded last: clocks of two machines differ."""
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_PREFIX = re.compile(r"[0-9a-f]{6,64}")


def open_ledger(url: str, *, create: bool = False, any_clock: bool = False) -> "Ledger":
    """Open the ledger at `url` (`sqlite:///path` or `postgresql://...`); with `create`, make it or upgrade its schema.

    With `any_clock`, events may be recorded that lie before the last one: what the last one says is what was wrong.

    Raises:
        LedgerError: There is none, or it cannot be opened.
        SchemaError: Its schema is newer than this program, or older and `create` is false.
    """
    return Ledger(connect(url, create=create), any_clock=any_clock)


class Ledger:
    """A ledger that is open. Safe to share between threads; connections live as long as one unit of work."""

    def __init__(
        self,
        engine: Engine,
        *,
        new_salt: Callable[[], str] = lambda: secrets.token_hex(16),
        any_clock: bool = False,
    ) -> None:
        """Use `open_ledger`. `new_salt` gives 32 hexadecimal digits that nobody can guess."""
        self._engine = engine
        self._new_salt = new_salt
        self.any_clock = any_clock

    @contextmanager
    def begin(self) -> Iterator["UnitOfWork"]:
        """Write: committed when the block ends normally, rolled back otherwise. Writers wait for one another."""
        with transaction(self._engine, write=True) as connection:
            work = UnitOfWork(connection, new_salt=self._new_salt, any_clock=self.any_clock)
            yield work
            work.close()

    @contextmanager
    def read(self) -> Iterator["UnitOfWork"]:
        """Read one consistent state; a write in the block is refused."""
        with transaction(self._engine, write=False) as connection:
            yield UnitOfWork(connection, new_salt=self._new_salt)


@dataclass(frozen=True, slots=True)
class Filed:
    """What filing came to: the record as the ledger holds it, and whether it is new."""

    record: Correction | Quarantined
    new: bool


class UnitOfWork:
    """The records of the ledger within one transaction."""

    def __init__(self, connection: Connection, *, new_salt: Callable[[], str], any_clock: bool = False) -> None:
        """Use `Ledger.begin` or `Ledger.read`."""
        self.connection = connection
        self.log = Log(connection)
        self._new_salt = new_salt
        self._any_clock = any_clock
        self._events: list[LogEvent] = []
        self._sequence: int | None = None

    def close(self) -> None:
        """Write the leaves of what was recorded to the log."""
        self.log.append(self._events)
        self._events = []

    # --- corrections

    def file(self, corrections: Sequence[Correction]) -> list[Filed]:
        """File corrections, each of them once, however often it is given.

        Raises:
            LedgerError: One supersedes a correction that is not in the ledger or is about another model.
        """
        known = self._known(Correction, corrections)
        found: list[Filed] = []
        new: dict[str, Correction] = {}
        for correction in corrections:
            said = correction.text_digest()
            record = known.get(said) or new.get(said)
            found.append(Filed(record or correction.salted(self._new_salt()), record is None))
            if record is None:
                made = found[-1].record
                assert isinstance(made, Correction)
                new[said] = made
        self._check_superseded(list(new.values()))
        filed = self._add_all(list(new.values()), at=[c.filed_at for c in new.values()])
        if filed:
            repository.wait(self.connection, filed)
        return found

    def add_correction(self, correction: Correction) -> Filed:
        """File one correction; see `file`."""
        return self.file([correction])[0]

    def add_quarantined(self, row: Quarantined) -> Filed:
        """Keep a row that could not be filed, once."""
        known = self._known(Quarantined, [row]).get(row.text_digest())
        if known is not None:
            return Filed(known, new=False)
        kept = row.salted(self._new_salt())
        self._add(kept, at=kept.quarantined_at)
        return Filed(kept, new=True)

    def corrections(self, model: str, *, subjects: Collection[str] | None = None) -> list[Correction]:
        """Return the corrections of a model, of these subjects (in any spelling) if given, in the order of filing."""
        table = tables.correction
        if subjects is None:
            return repository.select_records(self.connection, Correction, table.c.model == model)
        keys = {subject_key(subject) for subject in subjects}
        ids = repository.owners(self.connection, Correction, "subject_key", keys)
        found = repository.in_chunks(self.connection, repository.with_text(Correction), table.c.id, ids)
        rows = sorted((row for row in found if row["model"] == model), key=lambda row: int(row["sequence"]))
        return repository.read_records(self.connection, Correction, rows)

    def quarantined(self) -> list[Quarantined]:
        """Return the rows that could not be filed, in order."""
        return repository.select_records(self.connection, Quarantined)

    def correction(self, ref: str) -> Correction:
        """Return the correction with this id or id prefix (at least 6 digits).

        Raises:
            LedgerError: There is none, or several.
        """
        return self._by_prefix(Correction, ref, "correction")

    def waiting(self, model: str) -> list[str]:
        """Return the ids of the corrections that no applied or rejected changeset has settled, in the order of filing."""
        table = tables.waiting
        statement = select(table.c.correction_id).where(table.c.model == model).order_by(table.c.sequence)
        return list(self.connection.scalars(statement))

    # --- changesets and decisions

    def add_changeset(self, changeset: Changeset) -> Changeset:
        """Record a proposed changeset; returns it with its number and identity, its cases salted.

        Raises:
            LedgerError: It names a correction or a parent that the ledger does not hold, or does not say which delta
                holds a correction that it wrote.
        """
        salted = replace(
            changeset, id="", cases=tuple(case if case.salt else self._salted(case) for case in changeset.cases)
        )
        if self._has(salted):
            return self.changeset(salted.id)
        self._check_references(salted)
        highest = self.connection.scalar(select(func.max(tables.changeset.c.number))) or 0
        numbered = replace(salted, number=highest + 1)
        self._add(numbered, at=numbered.planned_at)
        return numbered

    def changeset(self, ref: str) -> Changeset:
        """Return the changeset '#3', '3', or with this id or id prefix.

        Raises:
            LedgerError: There is none, or several.
        """
        number = ref.removeprefix("#")
        if number.isdecimal() and (ref.startswith("#") or len(number) < 6):
            found = repository.select_records(
                self.connection, Changeset, tables.changeset.c.number == min(int(number), 2**31 - 1)
            )
            if not found:
                raise LedgerError(f"there is no changeset #{number}", 'see "nse log"')
            return found[0]
        return self._by_prefix(Changeset, ref, "changeset")

    def planned(self, model: str, plan_digest: str) -> int | None:
        """Return the number of the last changeset of a model that was planned with exactly these inputs."""
        table = tables.changeset
        where = (table.c.model == model, table.c.plan_digest == plan_digest)
        number: int | None = self.connection.scalar(select(func.max(table.c.number)).where(*where))
        return number

    def add_decision(self, decision: Decision) -> None:
        """Record a decision as it is; `policy` checks the rules first. A rejection settles the changeset's corrections."""
        if self._has(decision):
            return
        self._add(decision, at=decision.decided_at)
        if decision.verdict == "reject":
            repository.settle(self.connection, self._written(decision.changeset_id), superseded=False)

    def decisions(self, changeset_id: str) -> list[Decision]:
        """Return the decisions about a changeset in order."""
        return repository.select_records(self.connection, Decision, tables.decision.c.changeset_id == changeset_id)

    # --- keys, policies, erasures

    def add_key_event(self, event: KeyEvent) -> None:
        """Record that a key was registered or revoked."""
        if not self._has(event):
            self._add(event, at=event.at)

    def key_events(self) -> list[KeyEvent]:
        """Return what happened to signing keys, in order."""
        return repository.select_records(self.connection, KeyEvent)

    def add_policy(self, policy: PolicyAdopted) -> None:
        """Record a policy that was adopted."""
        if not self._has(policy):
            self._add(policy, at=policy.adopted_at)

    def policies(self, model: str) -> list[PolicyAdopted]:
        """Return the policies of a model, in order; the last is in force."""
        return repository.select_records(self.connection, PolicyAdopted, tables.policy.c.model == model)

    def add_erasure(self, erasure: Erasure) -> None:
        """Record that something was erased that is not in the ledger: an artifact, by its SHA-256. See `erase` for texts."""
        if not self._has(erasure):
            self._add(erasure, at=erasure.erased_at)

    def erase(self, erasure: Erasure) -> int:
        """Record an erasure and delete the text it is about, from the evaluations' cases as well; returns the rows deleted.

        Raises:
            ErasureRefused: The text was erased before, or nothing has that id.
        """
        owners = {table: name for table, name in tables.TEXT_TABLES.items() if name}
        there = [t for t, name in owners.items() if self._exists(t, t.c[name] == erasure.ref)]
        if not there:
            raise ErasureRefused(f"{erasure.ref[:12]} has no text", "it was erased already, or never filed")
        self.add_erasure(erasure)
        table, case, text = there[0], tables.changeset_case, tables.case_text
        gone = self.connection.execute(delete(table).where(table.c[str(owners[table])] == erasure.ref)).rowcount
        cases = select(case.c.changeset_id, case.c.position).where(case.c.case_id == erasure.ref)
        for changeset_id, position in self.connection.execute(cases).all():
            own = (text.c.changeset_id == changeset_id, text.c.position == position)
            gone += self.connection.execute(delete(text).where(*own)).rowcount
        self.connection.execute(delete(tables.waiting).where(tables.waiting.c.correction_id == erasure.ref))
        return gone

    # --- the head

    def start(self, model: str, version: str, at: str, by: str) -> HeadMove:
        """Put the base model in force as position 0; nothing happens when it is there already.

        Raises:
            LedgerError: The model started from other weights.
        """
        first = self.heads(model, tables.head_move.c.position == 0)
        if first and first[0].version != version:
            problem = f"{model} started from {first[0].version[:12]}, not from {version[:12]}"
            raise LedgerError(problem, "restore the base model, or give the new one another name")
        if not first:
            self._add(HeadMove(model, 0, version, None, at, by), at=at)
        return self.heads(model, tables.head_move.c.position == 0)[0]

    def head(self, model: str) -> HeadMove:
        """Return the move that put the weights of today in force.

        Raises:
            LedgerError: The model has not been started.
        """
        table = tables.head_move
        last = select(func.max(table.c.position)).where(table.c.model == model).scalar_subquery()
        heads = self.heads(model, table.c.position == last)
        if not heads:
            raise LedgerError(f"the ledger has no model {model!r}", 'run "nse init"')
        return heads[0]

    def heads(self, model: str, *conditions: ColumnElement[bool]) -> list[HeadMove]:
        """Return the moves of a model's head that meet `conditions`, by position."""
        return repository.select_records(self.connection, HeadMove, tables.head_move.c.model == model, *conditions)

    def move_of(self, changeset_id: str) -> HeadMove | None:
        """Return the move that a changeset led to, if it was applied."""
        found = repository.select_records(self.connection, HeadMove, tables.head_move.c.changeset_id == changeset_id)
        return found[0] if found else None

    def active(self, model: str, position: int) -> tuple[ActiveDelta, ...]:
        """Return the deltas in force at a position of the head, in the order in which they first came in force."""
        return folded(self._history(model, position))

    def candidate(self, changeset: Changeset) -> tuple[ActiveDelta, ...]:
        """Return the deltas in force if a changeset is applied.

        Raises:
            LedgerError: Its parent was never applied.
        """
        position = 0
        if changeset.parent is not None:
            move = self.move_of(changeset.parent)
            if move is None:
                raise LedgerError(f"the parent of changeset #{changeset.number} was never applied", 'run "nse verify"')
            position = move.position
        return folded([*self._history(changeset.model, position), *changeset.changes])

    def move_head(
        self, model: str, *, expected: HeadMove, version: str, changeset_id: str, at: str, by: str
    ) -> HeadMove:
        """Put the version a changeset leads to in force, if the head is still `expected`; `policy` checks approval first.

        Raises:
            HeadMoved: The head is another one by now.
            LedgerError: The changeset does not lead from the head to `version`.
        """
        head = self.head(model)
        if head != expected:
            problem = f"the head of {model} is v{head.position} ({head.version[:12]}), no longer v{expected.position}"
            raise HeadMoved(problem, "plan the changeset again")
        changeset = self.changeset(changeset_id)
        leads = (changeset.model, changeset.parent, changeset.parent_version, changeset.candidate_version)
        if leads != (model, head.changeset_id, head.version, version):
            problem = f"changeset #{changeset.number} does not lead from {head.version[:12]} to {version[:12]}"
            raise LedgerError(problem, "plan it again")
        move = HeadMove(model, head.position + 1, version, changeset.id, max(at, head.moved_at), by)
        self._add(move, at=at)
        repository.settle(self.connection, self._written(changeset.id), superseded=True)
        return move

    # --- what they share

    def _history(self, model: str, position: int) -> list[DeltaChange]:
        """Every change of an active delta up to a position of the head, in order."""
        change, move = tables.changeset_change, tables.head_move
        statement = (
            select(change)
            .join(move, move.c.changeset_id == change.c.changeset_id)
            .where(move.c.model == model, move.c.position <= position)
            .order_by(move.c.position, change.c.position)
        )
        rows = self.connection.execute(statement).mappings()
        return [repository.record_of(DeltaChange, change, row) for row in rows]

    def _written(self, changeset_id: str) -> list[str]:
        table = tables.changeset_result
        return list(self.connection.scalars(select(table.c.correction_id).where(table.c.changeset_id == changeset_id)))

    def _salted(self, case: CaseRow) -> CaseRow:
        return case.salted(self._new_salt())

    def _known(self, kind: type[S], records: Sequence[S]) -> dict[str, S]:
        """The records that say what one of `records` says, by their text digest."""
        ids = repository.owners(self.connection, kind, "text_digest", [record.text_digest() for record in records])
        table = repository.TABLE_OF[kind]
        rows = list(repository.in_chunks(self.connection, repository.with_text(kind), table.c.id, ids))
        return {record.text_digest(): record for record in repository.read_records(self.connection, kind, rows)}

    def _exists(self, table: Table, condition: ColumnElement[bool]) -> bool:
        return self.connection.scalar(select(1).select_from(table).where(condition).limit(1)) is not None

    def _has(self, record: Identified) -> bool:
        if record.id != record.digest():
            kind = type(record).__name__.lower()
            raise LedgerError(f"{kind} {record.id[:12]} does not have the id of its content", "leave the id out")
        table = repository.TABLE_OF[type(record)]
        return self._exists(table, table.c.id == record.id)

    def _add(self, record: Record, *, at: str) -> None:
        self._add_all([record], at=[at])

    def _add_all(self, records: Sequence[R], *, at: Sequence[str]) -> list[tuple[int, R]]:
        if not records:
            return []
        for time in at:
            if not _TIME.fullmatch(time):
                raise LedgerError(f"{time!r} is not a UTC time", "write it as 2026-11-21T02:45:34Z")
        if self._sequence is None:
            self._sequence = repository.last_sequence(self.connection)
            if not self._any_clock:
                self._check_clock(min(at))
        numbered = list(enumerate(records, self._sequence + 1))
        self._sequence += len(records)
        table = repository.TABLE_OF[type(records[0])]
        for row in repository.insert_records(self.connection, numbered):
            ref = str(row["id"]) if "id" in row else f"{row['model']} {row['position']}"
            leaf_hash = merkle.leaf_hash(repository.leaf(table, row)).hex()
            self._events.append(LogEvent(row["sequence"], table.name, ref, leaf_hash))
        return numbered

    def _check_clock(self, at: str) -> None:
        """Raise if a time lies well before the last event's: a clock was set back, and the order of events would be lost."""
        last = repository.last_time(self.connection)
        if last is not None and datetime.fromisoformat(at) < datetime.fromisoformat(last) - CLOCK_TOLERANCE:
            problem = f"the clock says {at}, but the last event was recorded at {last}"
            raise LedgerError(
                problem, "set the clock right; if the recorded time was the wrong one, give NSE_ANY_CLOCK=1"
            )

    def _by_prefix(self, kind: type[T], ref: str, noun: str) -> T:
        prefix = ref.lower()
        if not _PREFIX.fullmatch(prefix):
            raise LedgerError(f"{ref!r} names no {noun}", "give its number or at least 6 hexadecimal digits of its id")
        column = repository.TABLE_OF[kind].c.id
        # "g" comes after every hexadecimal digit: a range can use the index, LIKE cannot
        found = repository.select_records(self.connection, kind, column >= prefix, column < f"{prefix}g")
        if len(found) != 1:
            many = f"{len(found)} {noun}s begin" if found else f"no {noun} begins"
            raise LedgerError(f"{many} with {ref}", "give more digits" if found else 'see "nse log"')
        return found[0]

    def _check_superseded(self, corrections: Sequence[Correction]) -> None:
        table = tables.correction
        wanted = {c.supersedes: c for c in corrections if c.supersedes is not None}
        rows = repository.in_chunks(self.connection, select(table.c.id, table.c.model), table.c.id, wanted.keys())
        models = {row["id"]: row["model"] for row in rows} | {c.id: c.model for c in corrections}
        for earlier, correction in wanted.items():
            if models.get(earlier) != correction.model:
                problem = f"{correction.file_name} line {correction.line}: supersedes {earlier}"
                raise LedgerError(f"{problem}, which is no correction of {correction.model}", 'see "nse log"')

    def _check_references(self, changeset: Changeset) -> None:
        table, named = tables.correction, {*changeset.correction_ids}
        named |= {identity for change in changeset.changes for identity in change.dropped}
        mine = select(table.c.id).where(table.c.model == changeset.model)
        unknown = named - {row["id"] for row in repository.in_chunks(self.connection, mine, table.c.id, named)}
        if unknown:
            problem = f"the changeset names {sorted(unknown)[0]}, which is no correction of {changeset.model}"
            raise LedgerError(problem, "file it first")
        new = {change.sha256 for change in changeset.changes if not change.removed}
        for result in changeset.results:
            if result.status != "skipped" and result.delta not in new:
                problem = f"the changeset does not say which of its deltas holds {result.correction_id}"
                raise LedgerError(problem, "set CaseResult.delta to the delta's sha256")
