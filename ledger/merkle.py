"""The Merkle tree of a log: roots, proofs and their verification, as in RFC 6962 with SHA-256.

Hashes are `bytes` of 32. Where a log keeps its hashes this module does not know: it asks a `Subtree` for them.

References:
    RFC 6962 section 2.1 (roots and proofs); RFC 9162 sections 2.1.3.2 and 2.1.4.2 (verification).
"""

import hashlib
from collections.abc import Callable, Sequence

from ledger.errors import LedgerError

Subtree = Callable[[int, int], bytes]
"""`subtree(level, index)`: the root of the complete subtree over leaves [index * 2**level, (index + 1) * 2**level)."""

EMPTY_ROOT = hashlib.sha256(b"").digest()
"""The root of a tree without leaves."""

_HASH_BYTES = 32
_TILE_LEVEL = 8
_TILE = 1 << _TILE_LEVEL
"""Leaves that `Frontier.extend` takes together."""
_ADVICE = "do not trust it; ask for the proof and the checkpoint again"


class ProofError(LedgerError):
    """A proof does not prove what it is said to, or no such proof exists."""


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf that holds `data`."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of a node above two hashes."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root(size: int, subtree: Subtree) -> bytes:
    """Return the root of the tree over the first `size` leaves.

    Raises:
        ProofError: `size` is not a number from 0 on.
    """
    _check_number(size, "the size")
    return _range_root(0, size, subtree) if size else EMPTY_ROOT


def inclusion_proof(index: int, size: int, subtree: Subtree) -> list[bytes]:
    """Return the hashes that lead from leaf `index` (from 0) to the root of the tree over `size` leaves.

    Raises:
        ProofError: The tree has no such leaf.
    """
    _check_place(index, size)
    begin, end = 0, size
    proof = []
    while end - begin > 1:
        middle = _split(begin, end)
        if index < middle:
            proof.append(_range_root(middle, end, subtree))
            end = middle
        else:
            proof.append(_range_root(begin, middle, subtree))
            begin = middle
    return proof[::-1]


def consistency_proof(old: int, new: int, subtree: Subtree) -> list[bytes]:
    """Return the hashes that show the tree over `old` leaves to be the beginning of the one over `new` leaves.

    Empty when there is nothing to show: `old` is 0 or equals `new`.

    Raises:
        ProofError: `old` is greater than `new`.
    """
    _check_sizes(old, new)
    if old == 0:
        return []
    begin, end = 0, new
    proof = []
    while end != old:
        middle = _split(begin, end)
        if old <= middle:
            proof.append(_range_root(middle, end, subtree))
            end = middle
        else:
            proof.append(_range_root(begin, middle, subtree))
            begin = middle
    if begin > 0:  # else this is the old root, which the verifier has
        proof.append(_range_root(begin, end, subtree))
    return proof[::-1]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that the leaf hash `leaf` is number `index` (from 0) of the tree with this `size` and `root`.

    `size` and `root` belong together: take both from one checkpoint. A proof alone does not bind the size.

    Raises:
        ProofError: It is not shown, or the input is malformed.
    """
    _check_place(index, size)
    _check_hashes(leaf, root, *proof)
    place, last = index, size - 1
    found = leaf
    for sibling in proof:
        if last == 0:
            raise ProofError("the inclusion proof is too long", _ADVICE)
        if place & 1 or place == last:
            found = node_hash(sibling, found)
            place, last = _skip_missing(place, last)
        else:
            found = node_hash(found, sibling)
        place, last = place >> 1, last >> 1
    if last:
        raise ProofError("the inclusion proof is too short", _ADVICE)
    if found != root:
        raise ProofError(f"leaf {index} is not in the tree of {size} leaves with this root", _ADVICE)


def verify_consistency(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Check that the tree with `old` leaves and `old_root` is the beginning of the one with `new` leaves and `new_root`.

    Each size belongs with its root: take both from one checkpoint.

    Raises:
        ProofError: It is not shown, or the input is malformed.
    """
    _check_sizes(old, new)
    _check_hashes(old_root, new_root, *proof)
    if old == 0 or old == new:
        _check_trivial(old, old_root, new, new_root, proof)
        return
    # A complete old tree is itself a node of the new one, and so is not sent.
    path = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    if not path:
        raise ProofError("the consistency proof is empty", _ADVICE)
    place, last = old - 1, new - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    found_old = found_new = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise ProofError("the consistency proof is too long", _ADVICE)
        if place & 1 or place == last:
            found_old, found_new = node_hash(sibling, found_old), node_hash(sibling, found_new)
            place, last = _skip_missing(place, last)
        else:
            found_new = node_hash(found_new, sibling)
        place, last = place >> 1, last >> 1
    if last:
        raise ProofError("the consistency proof is too short", _ADVICE)
    if found_old != old_root or found_new != new_root:
        raise ProofError(f"the tree of {old} leaves is not the beginning of the tree of {new} leaves", _ADVICE)


class Frontier:
    """The right edge of a growing tree: enough to append leaves and to know the root, in memory of log2(size) hashes."""

    def __init__(self, *, keep_level: int = 0, on_complete: Callable[[int, int, bytes], None] | None = None) -> None:
        """Start an empty tree; `on_complete(level, index, hash)` gets each complete subtree of `keep_level` or above."""
        self.size = 0
        self._complete: list[bytes] = []  # the roots of complete subtrees, largest first: one for each bit of `size`
        self._keep_level = keep_level
        self._on_complete = on_complete

    def append(self, leaf: bytes) -> None:
        """Add a leaf hash.

        Raises:
            ProofError: `leaf` is not 32 bytes.
        """
        if len(leaf) != _HASH_BYTES:
            raise ProofError(f"a leaf hash has {len(leaf)} bytes, not {_HASH_BYTES}", "append the hash, not the data")
        self._add(leaf, 0)

    def extend(self, leaves: Sequence[bytes]) -> None:
        """Add leaf hashes: as `append` does each, and quicker where nobody asks for the subtrees of low levels.

        Raises:
            ProofError: One of them is not 32 bytes.
        """
        whole = self._on_complete is None or self._keep_level >= _TILE_LEVEL
        place = 0
        while place < len(leaves):
            tile = leaves[place : place + _TILE]
            if whole and len(tile) == _TILE and not self.size % _TILE and set(map(len, tile)) == {_HASH_BYTES}:
                self._add(_root_of_tile(tile), _TILE_LEVEL)
                place += _TILE
            else:
                self.append(tile[0])
                place += 1

    def _add(self, node: bytes, level: int) -> None:
        """Add a complete subtree of a level on the right of all others, and what it completes."""
        complete, on_complete, index = self._complete, self._on_complete, self.size >> level
        self.size += 1 << level
        if on_complete and level >= self._keep_level:
            on_complete(level, index, node)
        while index & 1:
            node = hashlib.sha256(b"\x01" + complete.pop() + node).digest()  # node_hash, without the call
            index >>= 1
            level += 1
            if on_complete and level >= self._keep_level:
                on_complete(level, index, node)
        complete.append(node)

    def root(self) -> bytes:
        """Return the root over the leaves so far."""
        return _fold(self._complete) if self._complete else EMPTY_ROOT


def subtrees_of(leaves: Sequence[bytes]) -> Subtree:
    """Return the subtrees over leaf hashes held in memory, each computed once; for tests and small trees.

    The callable raises ProofError for a subtree that is not complete.
    """
    known: dict[tuple[int, int], bytes] = {}

    def subtree(level: int, index: int) -> bytes:
        if level < 0 or index < 0 or (index + 1) << level > len(leaves):
            raise ProofError(f"subtree {index} of level {level} is not complete in a tree of {len(leaves)} leaves")
        if level == 0:
            return leaves[index]
        if (level, index) not in known:
            known[level, index] = node_hash(subtree(level - 1, 2 * index), subtree(level - 1, 2 * index + 1))
        return known[level, index]

    return subtree


def _root_of_tile(hashes: Sequence[bytes]) -> bytes:
    """Return the root over so many hashes as is a power of two."""
    while len(hashes) > 1:
        pairs = zip(hashes[::2], hashes[1::2], strict=True)
        hashes = [hashlib.sha256(b"\x01" + left + right).digest() for left, right in pairs]
    return hashes[0]


def _range_root(begin: int, end: int, subtree: Subtree) -> bytes:
    """Return the root over leaves [begin, end), not none, where `begin` is a multiple of a power of two >= end - begin."""
    complete = []
    while begin < end:
        level = (end - begin).bit_length() - 1  # the largest that fits; `begin` stays a multiple of it
        complete.append(subtree(level, begin >> level))
        begin += 1 << level
    return _fold(complete)


def _fold(complete: Sequence[bytes]) -> bytes:
    """Return the root over complete subtrees that lie side by side, largest first."""
    found = complete[-1]
    for left in reversed(complete[:-1]):
        found = node_hash(left, found)
    return found


def _split(begin: int, end: int) -> int:
    """Return where RFC 6962 divides a tree: its left part is the largest power of two less than the whole."""
    return begin + (1 << ((end - begin - 1).bit_length() - 1))


def _skip_missing(place: int, last: int) -> tuple[int, int]:
    """Go up past the levels at which the last node of a row has no sibling."""
    while place and not place & 1:
        place, last = place >> 1, last >> 1
    return place, last


def _check_trivial(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> None:
    if proof:
        raise ProofError(f"the consistency proof from {old} to {new} leaves is too long", _ADVICE)
    if old == 0 and old_root != EMPTY_ROOT:
        raise ProofError("the root of an empty tree is not the hash of nothing", _ADVICE)
    if old == new and old_root != new_root:
        raise ProofError(f"there are two roots for {old} leaves", "the log shows different histories: keep both roots")


def _check_place(index: int, size: int) -> None:
    _check_number(size, "the size")
    _check_number(index, "the index")
    if index >= size:
        raise ProofError(f"there is no leaf {index} in a tree of {size} leaves", "count from 0")


def _check_sizes(old: int, new: int) -> None:
    _check_number(old, "the old size")
    _check_number(new, "the new size")
    if old > new:
        raise ProofError(f"the old tree has {old} leaves and the new one {new}", "give the smaller tree first")


def _check_number(value: object, name: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ProofError(f"{name} is {value!r}", "give a whole number from 0 on")


def _check_hashes(*hashes: object) -> None:
    for value in hashes:
        if not isinstance(value, bytes) or len(value) != _HASH_BYTES:
            raise ProofError(f"{value!r:.80} is not a hash", f"give {_HASH_BYTES} bytes")
