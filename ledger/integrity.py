"""Whether the rows of a ledger are those that were written: every leaf, digest, salted hash and reference, recomputed.

Tables are streamed; what is kept is some 20 bytes an event and some hundred a changeset. Whether what was written obeyed the
rules is asked in `audit`.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from sqlalchemy import Column, Connection, Row, Select, Table, and_, func, select
from sqlalchemy.exc import DBAPIError

from ledger import merkle, repository, tables, waiting
from ledger.findings import RESTORE, Finding, Progress, name_of, partitions, plain
from ledger.forms import (
    Form,
    Unreadable,
    identity_form,
    leaf_form,
    part_form,
    query_columns,
    rows_query,
    said_form,
    shape_of,
    text_form,
)
from ledger.log import STRIDE
from ledger.places import Places
from ledger.records import PARTS, CaseRow, Changeset, Correction, Erasable, Identified, subject_key

_NO_PARTS = hashlib.sha256(b"").hexdigest()
_UNKNOWN = b"\0" * 32
"""Stands for a leaf that cannot be read."""
_CHANGED = "the row was changed"
Shape = tuple[type, ...]
_UNDECODABLE = "Could not decode to UTF-8"


class Undecodable(Exception):
    """A text column of SQLite holds bytes that are no text: check again with `lenient`, which is slower."""


class Integrity:
    """One run over all tables of a ledger."""

    def __init__(
        self, connection: Connection, *, roots_at: Collection[int], progress: Progress, lenient: bool = False
    ) -> None:
        """Look at the ledger of a transaction.

        Args:
            connection: Its connection.
            roots_at: The sizes at which the root of the log is wanted.
            progress: Told how far it is.
            lenient: Whether the connection gives bytes that are no text as surrogates.
        """
        self.findings: list[Finding] = []
        self.roots: dict[int, bytes] = {}
        """Of the sizes asked for that the log has reached."""
        self._connection = connection
        self._lenient = lenient
        self._roots_at = frozenset(roots_at)
        self._progress = progress
        self._places = Places()
        self._parts: dict[str, dict[str, str]] = defaultdict(dict)
        self._erased: frozenset[str] = frozenset()
        self._keys = {
            table: [place for place, column in enumerate(table.columns) if column.primary_key]
            for table in tables.RECORD_TABLES
        }
        self._done = self._total = 0

    @property
    def size(self) -> int:
        """The number of events of the log."""
        return self._places.size

    def check(self) -> None:
        """Check every row of every table.

        Raises:
            Undecodable: Bytes that are no text were met, unless `lenient`.
        """
        self._guard("all tables", self._count)
        self._guard("log_event", self._log)
        self._guard("erasure", self._read_erasures)
        for name, kind in PARTS.items():
            self._guard(repository.PART_TABLE[kind].name, lambda name=name, kind=kind: self._part_table(name, kind))  # type: ignore[misc]
        for kind, table in repository.TABLE_OF.items():
            self._guard(table.name, lambda kind=kind: self._record_table(kind))  # type: ignore[misc]
        self._guard("log_event", self._missing)
        self._guard("changeset", self._numbers)
        for table in tables.metadata.sorted_tables:
            self._guard(table.name, lambda table=table: self._references(table))  # type: ignore[misc]
        self._guard("changeset", self._named_in_json)
        self._guard("waiting", self._waiting)

    # --- the log

    def _count(self) -> None:
        for table in tables.metadata.sorted_tables:
            self._total += self._connection.scalar(select(func.count()).select_from(table)) or 0

    def _log(self) -> None:
        table, nodes = tables.log_event, {}
        frontier = merkle.Frontier(
            keep_level=STRIDE,
            on_complete=lambda level, place, made: (
                nodes.update({(level, place): made}) if level % STRIDE == 0 else None
            ),
        )
        self._keep_root(frontier)
        for rows in self._stream(select(table).order_by(table.c.sequence)):
            for sequence, kind, ref, leaf_hash in rows:
                leaf = _bytes_of(leaf_hash)
                if leaf is None:
                    self._find(f"log_event {plain(sequence)}", f"{_CHANGED}: its leaf_hash is no hash")
                lost = self._places.add(sequence, kind, ref, leaf_hash)
                if lost:
                    self._find(f"log_event {plain(sequence)}", f"the {lost} events before it are gone")
                for _ in range(lost):  # so that the subtrees after a gap are compared with what belongs there
                    frontier.append(_UNKNOWN)
                    self._keep_root(frontier)
                frontier.append(leaf or _UNKNOWN)
                self._keep_root(frontier)
        self._nodes(nodes)

    def _keep_root(self, frontier: merkle.Frontier) -> None:
        if frontier.size in self._roots_at:
            self.roots[frontier.size] = frontier.root()

    def _nodes(self, expected: dict[tuple[int, int], bytes]) -> None:
        for rows in self._stream(select(tables.log_node)):
            for level, place, text in rows:
                made = expected.pop((level, place), None)
                where = f"log_node {plain(level)} {plain(place)}"
                if made is None:
                    self._find(where, "the log has no such node")
                elif made.hex() != text:
                    self._find(where, "it is not the root of the events below it: it was changed, or one of them")
        for level, place in expected:
            self._find(f"log_node {level} {place}", "it is gone")

    def _claim(self, table: Table, row: Sequence[Any], shape: Shape, *, sequence: Any, leaf: Form) -> None:
        """Compare a record with what the log says at its place."""
        ref = " ".join(str(row[place]) for place in self._keys[table])
        try:
            leaf_hash = hashlib.sha256(b"\0" + leaf(row, shape).encode()).hexdigest()
        except (Unreadable, UnicodeEncodeError) as error:
            self._places.see(sequence)
            problem = str(error) if isinstance(error, Unreadable) else "it holds bytes that are no text"
            where = name_of(table, list(table.columns), row)
            self._find(where, f"{_CHANGED}: {problem}")
            return
        if self._places.claim(sequence, table.name, ref, leaf_hash):
            return
        where, event = name_of(table, list(table.columns), row), tables.log_event
        there = self._connection.execute(select(event).where(event.c.sequence == sequence)).first()
        if there is None:
            self._find(where, f"its place {sequence} is not in the log: it was renumbered, or written past the ledger")
        elif (there.kind, there.ref) != (table.name, ref):
            self._find(f"log_event {sequence}", f"it names {plain(there.kind)} {plain(there.ref)}, not {where}")
        elif there.leaf_hash != leaf_hash:
            self._find(where, f"{_CHANGED}: it is not what log_event {sequence} recorded, or that was changed")
        else:
            self._find(where, f"another record has its place {sequence} in the log as well")

    def _missing(self) -> None:
        if self._places.all_seen:
            return
        event = tables.log_event
        for rows in self._stream(select(event.c.sequence, event.c.kind, event.c.ref)):
            for sequence, kind, ref in rows:
                if not self._places.seen(sequence):
                    self._find(f"{plain(kind)} {plain(ref)}", f"it is in the log, as log_event {sequence}, and gone")

    # --- records and parts

    def _read_erasures(self) -> None:
        self._erased = frozenset(self._connection.scalars(select(tables.erasure.c.ref)))

    def _record_table(self, kind: type) -> None:
        table, columns = repository.TABLE_OF[kind], query_columns(kind)
        leaf, place = leaf_form(table), list(table.columns.keys()).index("sequence")
        identity = identity_form(kind) if issubclass(kind, Identified) else None
        check_text = self._text_check(kind, columns) if kind in repository.TEXT_OF else None
        for rows in self._stream(rows_query(kind)):
            for row in rows:
                shape = shape_of(row)
                self._claim(table, row, shape, sequence=row[place], leaf=leaf)
                if identity is not None:
                    self._identity(kind, identity, row, shape)
                if check_text is not None:
                    check_text(row, shape)

    def _identity(self, kind: type, form: Form, row: Sequence[Any], shape: Shape) -> None:
        if kind is Changeset:
            parts = self._parts.get(row[0], {})
            row = (*row, *(parts.get(name, _NO_PARTS) for name in PARTS))
            shape = shape_of(row)
        try:
            if form.digest(row, shape) != row[0]:
                more = ": a part was changed, added or removed" if kind is Changeset else ""
                table = repository.TABLE_OF[kind]
                self._find(name_of(table, list(table.columns), row), f"its id is not the digest of its content{more}")
        except Unreadable:
            return  # said by its leaf

    def _part_table(self, name: str, kind: type) -> None:
        table, columns = repository.PART_TABLE[kind], query_columns(kind)
        form, stored = part_form(kind), [column.name for column in columns].index("row_digest")
        check_text = self._text_check(kind, columns) if kind is CaseRow else None
        owner, expected, hasher = None, 0, hashlib.sha256()
        for rows in self._stream(rows_query(kind).order_by(table.c.changeset_id, table.c.position)):
            for row in rows:
                if row[0] != owner:
                    if owner is not None:
                        self._parts[owner][name] = hasher.hexdigest()
                    owner, expected, hasher = row[0], 0, hashlib.sha256()
                if row[1] != expected:
                    self._find(name_of(table, columns, row), f"it stands where position {expected} belongs")
                expected += 1
                shape = shape_of(row)
                try:
                    digest = form.digest(row, shape)
                except Unreadable as error:
                    digest = ""
                    self._find(name_of(table, columns, row), f"{_CHANGED}: {error}")
                if digest and digest != row[stored]:
                    self._find(name_of(table, columns, row), f"{_CHANGED}: it does not match its digest")
                hasher.update(digest.encode())
                if check_text is not None:
                    check_text(row, shape)
        if owner is not None:
            self._parts[owner][name] = hasher.hexdigest()

    def _text_check(self, kind: type[Erasable], columns: Sequence[Column[Any]]) -> Callable[[Row[Any], Shape], None]:
        """How to compare the text beside a row with the row's salted hash, and what is derived from the text with it."""
        table, names = repository.TEXT_OF[kind], [(column.table, column.name) for column in columns]
        owner_table = (repository.TABLE_OF | repository.PART_TABLE)[kind]

        def place(of: Table, name: str) -> int:
            return names.index((of, name))

        form, hash_at = text_form(kind), place(owner_table, "text_hash")
        # what an erasure names, and whether there is a text row
        ref_at = place(owner_table, "case_id" if kind is CaseRow else "id")
        there_at = place(table, next(iter(table.primary_key.columns)).name)
        keys = [place(owner_table, column.name) for column in owner_table.primary_key.columns]
        said = None if kind is CaseRow else (said_form(kind), place(table, "text_digest"))  # type: ignore[arg-type]
        key_at = (place(table, "subject"), place(table, "subject_key")) if kind is Correction else None

        def compare(row: Row[Any], shape: Shape, *, there: bool, erased: bool) -> str | None:
            if erased:
                return "its erasure is recorded, and the text is still there" if there else None
            if not there:
                return "the text is gone, and no erasure says so"
            try:
                if form.digest(row, shape) != row[hash_at]:
                    return "the text is not the one whose salted hash was recorded"
                if key_at is not None and subject_key(row[key_at[0]]) != row[key_at[1]]:
                    return "the subject_key is not that of the subject"
                if said is not None and said[0].digest(row, shape) != row[said[1]]:
                    return "the text_digest is not that of the text"
            except Unreadable as error:
                return f"{_CHANGED}: {error}"
            return None

        def check(row: Row[Any], shape: Shape) -> None:
            problem = compare(row, shape, there=row[there_at] is not None, erased=row[ref_at] in self._erased)
            if problem is not None:
                self._find(" ".join([table.name, *(plain(row[key]) for key in keys)]), problem)

        return check

    # --- between tables

    def _numbers(self) -> None:
        table = tables.changeset
        numbers = list(self._connection.scalars(select(table.c.number).order_by(table.c.sequence)))
        if numbers != list(range(1, len(numbers) + 1)):
            problem = f"the changesets are not numbered 1 to {len(numbers)} in the order of the log"
            self._find("changeset numbers", f"{problem}: some were deleted or renumbered")

    def _references(self, table: Table) -> None:
        for key in table.foreign_keys:
            target = key.column.table.alias("target")
            lost = ~select(1).where(target.c[key.column.name] == key.parent).exists()
            what = f"{key.parent.name} names nothing that is in {key.column.table.name}"
            self._each(table, select(table).where(key.parent.is_not(None), lost), what)
        if table is tables.case_text:
            case = tables.changeset_case
            same = and_(case.c.changeset_id == table.c.changeset_id, case.c.position == table.c.position)
            lost = ~select(1).where(same).exists()
            self._each(table, select(table).where(lost), "it is the text of no row of changeset_case")
        if table is tables.erasure:
            owners = (tables.correction.c.id, tables.quarantined.c.id, tables.changeset_change.c.sha256)
            known = [~select(1).where(owner == table.c.ref).exists() for owner in owners]
            self._each(table, select(table).where(*known), "nothing has the id that it erases")
        if table is tables.changeset_result:
            change = tables.changeset_change
            holds = select(1).where(change.c.changeset_id == table.c.changeset_id, change.c.sha256 == table.c.delta)
            wrong = and_(table.c.status != "skipped", ~holds.where(change.c.removed == 0).exists())
            self._each(table, select(table).where(wrong), "its delta is none that its changeset brings")

    def _each(self, table: Table, statement: Select[Any], problem: str) -> None:
        for rows in partitions(self._connection, statement):
            for row in rows:
                self._find(name_of(table, list(table.columns), row), problem)

    def _named_in_json(self) -> None:
        """Whether the corrections that are named in JSON columns are there."""
        for table, column in ((tables.changeset, "reverted"), (tables.changeset_change, "dropped")):
            statement = select(*table.primary_key.columns, table.c[column]).where(table.c[column] != "[]")
            for rows in partitions(self._connection, statement):
                named = [(row, identity) for row in rows for identity in _identities(row[-1])]
                known = select(tables.correction.c.id)
                wanted = {identity for _, identity in named}
                found = {r["id"] for r in repository.in_chunks(self._connection, known, tables.correction.c.id, wanted)}
                for row, identity in named:
                    if identity not in found:
                        where = name_of(table, list(table.primary_key.columns), row)
                        self._find(where, f"{column} names {plain(identity)[:64]}, which is not in correction")

    def _waiting(self) -> None:
        advice = 'run "nse reconcile"'
        for statement, problem in (
            (waiting.surplus(), "the index lists correction {}, which does not wait"),
            (waiting.lacking(), "the index lacks correction {}, which waits"),
        ):
            for _, sequence, identity in self._connection.execute(statement):
                self.findings.append(Finding(f"waiting {plain(sequence)}", problem.format(plain(identity)), advice))

    # --- what they share

    def _stream(self, statement: Select[Any]) -> Iterator[Sequence[Row[Any]]]:
        for rows in partitions(self._connection, statement):
            yield rows
            self._done += len(rows)
            self._progress("rows of the ledger", min(self._done, self._total), self._total)

    def _find(self, where: str, problem: str) -> None:
        self.findings.append(Finding(where, problem, RESTORE))

    def _guard(self, name: str, check: Callable[[], None]) -> None:
        """Run a check; what the database cannot read is a finding, and the next check goes on."""
        try:
            check()
        except DBAPIError as error:
            if _UNDECODABLE in str(error.orig) and not self._lenient:
                raise Undecodable from error
            self._find(f"table {name}", f"the database cannot read it: {' '.join(str(error.orig).split())}")


def _bytes_of(leaf_hash: Any) -> bytes | None:
    try:
        found = bytes.fromhex(leaf_hash)
    except (TypeError, ValueError):
        return None
    return found if len(found) == len(_UNKNOWN) else None


def _identities(text: Any) -> list[str]:
    try:
        found = json.loads(text)
    except (TypeError, ValueError):
        return []  # said by the row's digest
    return [item for item in found if isinstance(item, str)] if isinstance(found, list) else []
