"""Whether the log and the records are those that were written: every leaf, node, id and salted hash, recomputed.

Tables are streamed; what is kept is some 20 bytes an event. The parts of changesets are checked in `parts`, what is between
tables in `references`; whether what was written obeyed the rules is asked in `rules`.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from sqlalchemy import Table, select

from ledger import merkle, repository, tables
from ledger.findings import name_of, plain
from ledger.forms import Form, Shape, Shapes, Unreadable, identity_form, leaf_form, rows_query
from ledger.log import STRIDE
from ledger.places import Places
from ledger.reading import Reading
from ledger.records import Changeset, Identified
from ledger.texts import erased_refs, text_check

_UNKNOWN = b"\0" * 32
"""Stands for a leaf that cannot be read."""
_CHANGED = "the row was changed"


@dataclass(slots=True)
class Logged:
    """What the log came to."""

    size: int = 0
    roots: dict[int, bytes] = field(default_factory=dict)
    """Of the sizes asked for that the log has reached."""


def check_log_and_records(reading: Reading, *, roots_at: Collection[int]) -> Logged:
    """Check the log and every row of every record table against it.

    Args:
        reading: Where to read, and where what is wrong is noted.
        roots_at: The sizes at which the root of the log is wanted.
    """
    check = _Check(reading, roots_at)
    reading.guard("table log_event", check.log)
    erased = erased_refs(reading)
    for kind, table in repository.TABLE_OF.items():
        reading.guard(f"table {table.name}", lambda kind=kind: check.records(kind, erased))  # type: ignore[misc]
    reading.guard("table log_event", check.missing)
    check.logged.size = check.places.size
    return check.logged


class _Check:
    """The log as it was read, and what records claim of it."""

    def __init__(self, reading: Reading, roots_at: Collection[int]) -> None:
        self.logged = Logged()
        self.places = Places()
        self._reading = reading
        self._roots_at = sorted(roots_at)

    # --- the log

    def log(self) -> None:
        """Read the log: keep what it says of each place, compare its nodes, take the roots that are wanted."""
        table, nodes = tables.log_event, {}
        frontier = merkle.Frontier(
            keep_level=STRIDE,
            on_complete=lambda level, place, made: (
                nodes.update({(level, place): made}) if level % STRIDE == 0 else None
            ),
        )
        self._grow(frontier, [])
        for rows in self._reading.partitions(select(table).order_by(table.c.sequence)):
            leaves = []
            for sequence, kind, ref, leaf_hash in rows:
                leaf = _bytes_of(leaf_hash)
                if leaf is None:
                    self._reading.find(f"log_event {plain(sequence)}", f"{_CHANGED}: its leaf_hash is no hash")
                lost = self.places.add(sequence, kind, ref, leaf_hash)
                if lost:
                    self._reading.find(f"log_event {plain(sequence)}", f"the {lost} events before it are gone")
                    # so that the subtrees after a gap are compared with what belongs there
                    leaves += [_UNKNOWN] * lost
                leaves.append(leaf or _UNKNOWN)
            self._grow(frontier, leaves)
        self._nodes(nodes)

    def _grow(self, frontier: merkle.Frontier, leaves: Sequence[bytes]) -> None:
        """Append leaves, and keep the roots of the wanted sizes on the way."""
        start = frontier.size
        after = start if start else -1  # the root of nothing can be wanted as well
        wanted = self._roots_at
        for size in wanted[bisect_right(wanted, after) : bisect_right(wanted, start + len(leaves))]:
            frontier.extend(leaves[frontier.size - start : size - start])
            self.logged.roots[size] = frontier.root()
        frontier.extend(leaves[frontier.size - start :])

    def _nodes(self, expected: dict[tuple[int, int], bytes]) -> None:
        for level, place, text in self._reading.rows(select(tables.log_node)):
            made = expected.pop((level, place), None)
            where = f"log_node {plain(level)} {plain(place)}"
            if made is None:
                self._reading.find(where, "the log has no such node")
            elif made.hex() != text:
                self._reading.find(where, "it is not the root of the events below it: it was changed, or one of them")
        for level, place in expected:
            self._reading.find(f"log_node {level} {place}", "it is gone")

    # --- the records

    def records(self, kind: type, erased: frozenset[str]) -> None:
        """Check every row of one kind: its leaf, its text, and its id, but that of a changeset, which covers its parts."""
        table, shape_of = repository.TABLE_OF[kind], Shapes()
        claim = self._claim(table)
        identity = identity_form(kind) if issubclass(kind, Identified) and kind is not Changeset else None
        with_text = kind in repository.TEXT_OF
        check_text = text_check(self._reading, kind, erased) if with_text else None
        for row in self._reading.rows_with_text(kind) if with_text else self._reading.rows(rows_query(kind)):
            shape = shape_of(row)
            claim(row, shape)
            if identity is not None:
                check_identity(self._reading, table, identity, row, shape)
            if check_text is not None:
                check_text(row, shape)

    def _claim(self, table: Table) -> Callable[[Sequence[Any], Shape], None]:
        """How to compare a record of a table with what the log says at its place."""
        leaf, names = leaf_form(table), list(table.columns.keys())
        keys = [names.index(column.name) for column in table.primary_key.columns]
        key_of, place_of = itemgetter(*keys), itemgetter(names.index("sequence"))
        places, of_table = self.places, table.name

        def claim(row: Sequence[Any], shape: Shape) -> None:
            ref = str(key_of(row)) if len(keys) == 1 else " ".join(map(str, key_of(row)))
            sequence = place_of(row)
            try:
                leaf_hash = hashlib.sha256(b"\0" + leaf(row, shape).encode()).hexdigest()
            except (Unreadable, UnicodeEncodeError) as error:
                places.see(sequence)
                problem = str(error) if isinstance(error, Unreadable) else "it holds bytes that are no text"
                self._reading.find_row(table, row, f"{_CHANGED}: {problem}")
                return
            if not places.claim(sequence, of_table, ref, leaf_hash):
                self._refused(table, row, (sequence, ref, leaf_hash))

        return claim

    def _refused(self, table: Table, row: Sequence[Any], claimed: tuple[Any, str, str]) -> None:
        """Say why the log does not hold what a record claims: its place, its key and its leaf's hash."""
        sequence, ref, leaf_hash = claimed
        where, event = name_of(table, list(table.columns), row), tables.log_event
        there = self._reading.connection.execute(select(event).where(event.c.sequence == sequence)).first()
        if there is None:
            problem = f"its place {sequence} is not in the log: it was renumbered, or written past the ledger"
        elif (there.kind, there.ref) != (table.name, ref):
            problem = f"it names {plain(there.kind)} {plain(there.ref)}, not {where}"
            where = f"log_event {sequence}"
        elif there.leaf_hash != leaf_hash:
            problem = f"{_CHANGED}: it is not what log_event {sequence} recorded, or that was changed"
        else:
            problem = f"another record has its place {sequence} in the log as well"
        self._reading.find(where, problem)

    def missing(self) -> None:
        """Name the events of the log whose records are gone."""
        if self.places.all_seen:
            return
        event = tables.log_event
        for sequence, kind, ref in self._reading.rows(select(event.c.sequence, event.c.kind, event.c.ref)):
            if not self.places.seen(sequence):
                where = f"{plain(kind)} {plain(ref)}"
                self._reading.find(where, f"it is in the log, as log_event {sequence}, and gone")


def check_identity(
    reading: Reading, table: Table, form: Form, row: Sequence[Any], shape: Shape, more: str = ""
) -> None:
    """Compare a record's id, the first column, with the digest of its content."""
    try:
        if form.digest(row, shape) != row[0]:
            reading.find_row(table, row, f"its id is not the digest of its content{more}")
    except Unreadable:
        return  # said by its leaf


def _bytes_of(leaf_hash: Any) -> bytes | None:
    try:
        found = bytes.fromhex(leaf_hash)
    except (TypeError, ValueError):
        return None
    return found if len(found) == len(_UNKNOWN) else None
