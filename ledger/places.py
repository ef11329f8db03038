"""What the log says of each place, in 17 bytes, so that records can be compared with it in any order."""

import hashlib
from typing import Any

_GAP = 1_000_000
"""How many numbers the log may skip before the next counts as spoilt, and is kept apart."""
_WIDTH = 16


class Places:
    """The places of a log and which of them a record has claimed."""

    def __init__(self) -> None:
        """Start with a log without events."""
        self._lines = bytearray()
        self._claimed = bytearray()
        self._far: dict[Any, bytes] = {}
        self._far_claimed: set[Any] = set()

    @property
    def size(self) -> int:
        """The number of the last event that follows the others."""
        return len(self._claimed)

    def add(self, sequence: Any, kind: Any, ref: Any, leaf_hash: Any) -> int:
        """Take the next event in the order of their numbers; returns how many are missing before it."""
        line = _line(kind, ref, leaf_hash)
        missing = sequence - 1 - self.size if isinstance(sequence, int) else -1
        if not 0 <= missing <= _GAP:
            self._far[sequence] = line
            return 0
        self._lines += b"\0" * (_WIDTH * missing) + line
        self._claimed += b"\0" * (missing + 1)
        return missing

    def claim(self, sequence: Any, kind: str, ref: str, leaf_hash: str) -> bool:
        """Tell whether the log says this at a place, and no record has claimed it before."""
        if isinstance(sequence, int) and 0 < sequence <= self.size:
            start = _WIDTH * (sequence - 1)
            first = not self._claimed[sequence - 1]
            self._claimed[sequence - 1] = 1
            return first and self._lines[start : start + _WIDTH] == _line(kind, ref, leaf_hash)
        first = sequence not in self._far_claimed
        self._far_claimed.add(sequence)
        return first and self._far.get(sequence) == _line(kind, ref, leaf_hash)

    def see(self, sequence: Any) -> None:
        """Take note that there is a record at a place, one that cannot be read."""
        if isinstance(sequence, int) and 0 < sequence <= self.size:
            self._claimed[sequence - 1] = 1
        else:
            self._far_claimed.add(sequence)

    @property
    def all_seen(self) -> bool:
        """Whether there is a record at every place."""
        return not self._far and 0 not in self._claimed

    def seen(self, sequence: Any) -> bool:
        """Tell whether there is a record at a place."""
        if isinstance(sequence, int) and 0 < sequence <= self.size:
            return bool(self._claimed[sequence - 1])
        return sequence in self._far_claimed


def _line(kind: Any, ref: Any, leaf_hash: Any) -> bytes:
    return hashlib.sha256(f"{kind} {ref} {leaf_hash}".encode(errors="surrogateescape")).digest()[:_WIDTH]
