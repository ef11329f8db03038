"""The ledger as its users see it: open it, read or write in one transaction, move the head by compare-and-swap.

What records mean together is in `views`, which decisions are allowed in `policy`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from sqlalchemy import Connection, Engine, func, select

from ledger import repository, tables
from ledger.database import connect, transaction
from ledger.errors import HeadMoved, LedgerError
from ledger.records import Changeset, Correction, Decision, HeadMove, Quarantined, Record

T = TypeVar("T", Correction, Changeset)

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_PREFIX = re.compile(r"[0-9a-f]{6,64}")


def open_ledger(url: str, *, create: bool = False) -> "Ledger":
    """Open the ledger at `url` (`sqlite:///path`); with `create`, make it or bring an older schema up to date.

    Raises:
        LedgerError: There is none, or it cannot be opened.
        SchemaError: Its schema is newer than this program, or older and `create` is false.
    """
    return Ledger(connect(url, create=create))


class Ledger:
    """A ledger that is open. Safe to share between threads; connections live as long as one unit of work."""

    def __init__(self, engine: Engine) -> None:
        """Use `open_ledger`."""
        self._engine = engine

    @contextmanager
    def begin(self) -> Iterator["UnitOfWork"]:
        """Write: committed when the block ends normally, rolled back otherwise. Writers wait for one another."""
        with transaction(self._engine, write=True) as connection:
            yield UnitOfWork(connection)

    @contextmanager
    def read(self) -> Iterator["UnitOfWork"]:
        """Read one consistent state; a write in the block is refused."""
        with transaction(self._engine, write=False) as connection:
            yield UnitOfWork(connection)


class UnitOfWork:
    """The records of the ledger within one transaction."""

    def __init__(self, connection: Connection) -> None:
        """Use `Ledger.begin` or `Ledger.read`."""
        self.connection = connection
        self._sequence: int | None = None

    # --- corrections

    def add_correction(self, correction: Correction) -> bool:
        """File a correction; false when it is filed already.

        Raises:
            LedgerError: It supersedes a correction that is not in the ledger or is about another model.
        """
        if self._has(correction):
            return False
        if correction.supersedes is not None:
            earlier = repository.select_records(
                self.connection, Correction, tables.correction.c.id == correction.supersedes
            )
            if not earlier or earlier[0].model != correction.model:
                problem = f"{correction.file_name} line {correction.line}: supersedes {correction.supersedes}"
                raise LedgerError(f"{problem}, which is no correction of {correction.model}", 'see "nse log"')
        self._add(correction, at=correction.filed_at)
        return True

    def add_quarantined(self, row: Quarantined) -> bool:
        """Keep a row that could not be filed; false when it is kept already."""
        if self._has(row):
            return False
        self._add(row, at=row.quarantined_at)
        return True

    def corrections(self, model: str) -> list[Correction]:
        """Return the corrections of a model in the order of filing."""
        return repository.select_records(self.connection, Correction, tables.correction.c.model == model)

    def quarantined(self) -> list[Quarantined]:
        """Return the rows that could not be filed, in order."""
        return repository.select_records(self.connection, Quarantined)

    def correction(self, ref: str) -> Correction:
        """Return the correction with this id or id prefix (at least 6 digits).

        Raises:
            LedgerError: There is none, or several.
        """
        return self._by_prefix(Correction, ref, "correction")

    # --- changesets and decisions

    def add_changeset(self, changeset: Changeset) -> Changeset:
        """Record a proposed changeset; returns it with its number (the one it has, if it is recorded already).

        Raises:
            LedgerError: It names a correction the ledger does not hold, or brings several new deltas and does not say
                which of them holds which result.
        """
        if self._has(changeset):
            return self.changeset(changeset.id)
        self._check_references(changeset)
        highest = self.connection.scalar(select(func.max(tables.changeset.c.number))) or 0
        numbered = replace(changeset, number=highest + 1)
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
                self.connection, Changeset, tables.changeset.c.number == min(int(number), 2**63 - 1)
            )
            if not found:
                raise LedgerError(f"there is no changeset #{number}", 'see "nse log"')
            return found[0]
        return self._by_prefix(Changeset, ref, "changeset")

    def changesets(self, model: str) -> list[Changeset]:
        """Return the changesets of a model by number."""
        return repository.select_records(self.connection, Changeset, tables.changeset.c.model == model)

    def add_decision(self, decision: Decision) -> None:
        """Record a decision as it is; `policy.approve` and `policy.reject` check the rules first."""
        if not self._has(decision):
            self._add(decision, at=decision.decided_at)

    def decisions(self, changeset_id: str) -> list[Decision]:
        """Return the decisions about a changeset in order."""
        return repository.select_records(self.connection, Decision, tables.decision.c.changeset_id == changeset_id)

    # --- the head

    def start(self, model: str, version: str, at: str, by: str) -> HeadMove:
        """Put the base model in force as position 0; nothing happens when it is there already.

        Raises:
            LedgerError: The model started from other weights.
        """
        heads = self.heads(model)
        if heads and heads[0].version != version:
            problem = f"{model} started from {heads[0].version[:12]}, not from {version[:12]}"
            raise LedgerError(problem, "restore the base model, or give the new one another name")
        if not heads:
            self._add(HeadMove(model, 0, version, None, at, by), at=at)
        return self.heads(model)[0]

    def head(self, model: str) -> HeadMove:
        """Return the move that put the weights of today in force.

        Raises:
            LedgerError: The model has not been started.
        """
        heads = self.heads(model)
        if not heads:
            raise LedgerError(f"the ledger has no model {model!r}", 'run "nse init"')
        return heads[-1]

    def heads(self, model: str) -> list[HeadMove]:
        """Return every move of a model's head, by position."""
        return repository.select_records(self.connection, HeadMove, tables.head_move.c.model == model)

    def move_head(
        self, model: str, *, expected: HeadMove, version: str, changeset_id: str, at: str, by: str
    ) -> HeadMove:
        """Put the version an approved changeset leads to in force, if the head is still `expected`.

        Raises:
            HeadMoved: The head is another one by now.
            LedgerError: The changeset is not approved, or does not lead from the head to `version`.
        """
        head = self.head(model)
        if head != expected:
            problem = f"the head of {model} is v{head.position} ({head.version[:12]}), no longer v{expected.position}"
            raise HeadMoved(problem, "plan the changeset again")
        changeset = self.changeset(changeset_id)
        if (changeset.model, changeset.parent_version, changeset.candidate_version) != (model, head.version, version):
            problem = f"changeset #{changeset.number} does not lead from {head.version[:12]} to {version[:12]}"
            raise LedgerError(problem, "plan it again")
        if {decision.verdict for decision in self.decisions(changeset.id)} != {"approve"}:
            raise LedgerError(f"changeset #{changeset.number} is not approved", f"nse approve {changeset.number}")
        move = HeadMove(model, head.position + 1, version, changeset.id, at, by)
        self._add(move, at=at)
        return move

    def history(self) -> list[Record]:
        """Return every record of the ledger, of all kinds, in the order they were written."""
        numbered: list[tuple[int, Record]] = []
        for kind in repository.TABLE_OF:
            numbered += repository.select_numbered(self.connection, kind)
        return [record for _, record in sorted(numbered, key=lambda pair: pair[0])]

    # --- what they share

    def _has(self, record: Correction | Quarantined | Changeset | Decision) -> bool:
        if record.id != record.digest():
            kind = type(record).__name__.lower()
            raise LedgerError(f"{kind} {record.id[:12]} does not have the id of its content", "leave the id out")
        table = repository.TABLE_OF[type(record)]
        return self.connection.scalar(select(table.c.id).where(table.c.id == record.id)) is not None

    def _add(self, record: Record, *, at: str) -> None:
        if not _TIME.fullmatch(at):
            raise LedgerError(f"{at!r} is not a UTC time", "write it as 2026-11-21T02:45:34Z")
        if self._sequence is None:
            self._sequence = repository.last_sequence(self.connection)
        self._sequence += 1
        repository.insert_record(self.connection, record, self._sequence)

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

    def _check_references(self, changeset: Changeset) -> None:
        dropped = (correction for delta in changeset.active for correction in delta.dropped)
        table = tables.correction
        known = set(self.connection.scalars(select(table.c.id).where(table.c.model == changeset.model)))
        unknown = {*changeset.correction_ids, *dropped} - known
        if unknown:
            problem = f"the changeset names {sorted(unknown)[0]}, which is no correction of {changeset.model}"
            raise LedgerError(problem, "file it first")
        active = {delta.sha256 for delta in changeset.active}
        held = tables.changeset_delta.c.sha256
        new = active - set(self.connection.scalars(select(held).where(held.in_(active)).distinct()))
        for result in changeset.results:
            if result.status != "skipped" and (result.delta or len(new) > 1) and result.delta not in active:
                problem = f"the changeset does not say which of its deltas holds {result.correction_id}"
                raise LedgerError(problem, "set CaseResult.delta to the delta's sha256")
