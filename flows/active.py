"""Sets of active deltas: which corrections they hold in force, and what they are without some of them. No tensors."""

from collections.abc import Collection, Mapping, Sequence

from ledger.records import ActiveDelta
from ledger.status import ModelState

Contents = Mapping[str, frozenset[str]]
"""The corrections that each delta holds, by its SHA-256."""


def held(active: Sequence[ActiveDelta], contents: Contents) -> frozenset[str]:
    """The corrections whose columns are in the weights."""
    return frozenset[str]().union(*(contents[delta.sha256] - set(delta.dropped) for delta in active))


def in_force(active: Sequence[ActiveDelta], state: ModelState) -> frozenset[str]:
    """The corrections that the model shall answer: those held, less those that another one held supersedes."""
    ids = held(active, state.contents)
    return frozenset(i for i in ids if not state.replacers.get(i, frozenset()) & ids)


def without(active: Sequence[ActiveDelta], dropped: Collection[str], contents: Contents) -> tuple[ActiveDelta, ...]:
    """The active deltas less some corrections; a delta of which nothing is left goes as a whole."""
    kept = []
    for delta in active:
        out = contents[delta.sha256] & {*delta.dropped, *dropped}
        if out != contents[delta.sha256]:
            kept.append(ActiveDelta(delta.sha256, delta.path, tuple(sorted(out))))
    return tuple(kept)


def undone(
    now: Sequence[ActiveDelta], before: Sequence[ActiveDelta], after: Sequence[ActiveDelta], contents: Contents
) -> tuple[ActiveDelta, ...]:
    """What is active now, less what led from `before` to `after`: columns it brought go, columns it dropped come back.

    Deltas that come back stand where they stood: `before` keeps the ledger's order.
    """
    brought = held(after, contents) - held(before, contents)
    taken = held(before, contents) - held(after, contents)
    paths = {delta.sha256: delta.path for delta in (*before, *now)}
    order = [delta.sha256 for delta in before]
    order += [delta.sha256 for delta in now if delta.sha256 not in order]
    wanted = (held(now, contents) - brought) | taken
    found = []
    for sha256 in order:
        if kept := contents[sha256] & wanted:
            found.append(ActiveDelta(sha256, paths[sha256], tuple(sorted(contents[sha256] - kept))))
    return tuple(found)
