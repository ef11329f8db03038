"""The Merkle log of the ledger: one leaf per record, in the order of writing (RFC 6962, by `merkle`).

Stored are the leaf hashes and the roots of complete subtrees of every eighth level, so that a root or a proof reads a few
hundred hashes, whatever the size. What a leaf says is `repository.leaf`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, insert, select

from ledger import merkle, repository, tables
from ledger.errors import LedgerError

STRIDE = 8
"""Levels between stored subtree roots: each stands for 256 of the level below."""
_WIDTH = 1 << STRIDE


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One line of the log: which record it is the leaf of. `ref` is its id, of a head move `model position`."""

    sequence: int
    kind: str
    ref: str
    leaf_hash: str


@dataclass(slots=True)
class Log:
    """The log within one transaction."""

    connection: Connection
    _known: dict[tuple[int, int], list[bytes]] = field(default_factory=dict)

    def size(self) -> int:
        """Return the number of events."""
        return repository.last_sequence(self.connection)

    def append(self, events: Sequence[LogEvent]) -> None:
        """Add events that follow the last one, and the subtree roots that they complete."""
        if not events:
            return
        rows = [{"sequence": e.sequence, "kind": e.kind, "ref": e.ref, "leaf_hash": e.leaf_hash} for e in events]
        self.connection.execute(insert(tables.log_event), rows)
        start, end, level = events[0].sequence - 1, events[-1].sequence, 0
        while end // _WIDTH > start // _WIDTH:
            start, end, level = start // _WIDTH, end // _WIDTH, level + STRIDE
            hashes = {place: self.subtree(level, place, stored=False).hex() for place in range(start, end)}
            nodes = [{"level": level, "place": place, "hash": text} for place, text in hashes.items()]
            self.connection.execute(insert(tables.log_node), nodes)

    def root(self, size: int | None = None) -> bytes:
        """Return the root of the first `size` events, of all if None."""
        return merkle.root(self.size() if size is None else size, self.subtree)

    def subtree(self, level: int, place: int, *, stored: bool = True) -> bytes:
        """Return the root of the complete subtree over events [place * 2**level, (place + 1) * 2**level).

        Raises:
            LedgerError: The log does not hold it.
        """
        below = level % STRIDE or (0 if stored else STRIDE)
        at = level - below
        hashes = [self._hash(at, (place << below) + i) for i in range(1 << below)]
        while len(hashes) > 1:
            hashes = [merkle.node_hash(hashes[i], hashes[i + 1]) for i in range(0, len(hashes), 2)]
        return hashes[0]

    def _hash(self, level: int, place: int) -> bytes:
        tile, offset = place // _WIDTH, place % _WIDTH
        if len(self._known.get((level, tile), ())) <= offset:
            self._known[level, tile] = self._read(level, tile)
        found: list[bytes] = self._known[level, tile]
        if len(found) <= offset:
            raise LedgerError(f"the log lacks hash {place} of level {level}", 'run "nse verify"')
        return found[offset]

    def _read(self, level: int, tile: int) -> list[bytes]:
        start = tile * _WIDTH
        if level:
            node = tables.log_node
            where = (node.c.level == level, node.c.place >= start, node.c.place < start + _WIDTH)
            statement = select(node.c.hash).where(*where).order_by(node.c.place)
        else:
            event = tables.log_event
            within = event.c.sequence.between(start + 1, start + _WIDTH)
            statement = select(event.c.leaf_hash).where(within).order_by(event.c.sequence)
        return [bytes.fromhex(text) for text in self.connection.scalars(statement)]
