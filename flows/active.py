"""Sets of active deltas without some of their corrections. What a set holds in force is the ledger's to say. No tensors."""

from collections.abc import Collection, Sequence

from ledger.records import ActiveDelta
from ledger.status import ModelState


def without(active: Sequence[ActiveDelta], dropped: Collection[str], state: ModelState) -> tuple[ActiveDelta, ...]:
    """The active deltas less some corrections; a delta of which nothing is left goes as a whole."""
    kept = []
    for delta in active:
        out = state.contents[delta.sha256] & {*delta.dropped, *dropped}
        if out != state.contents[delta.sha256]:
            kept.append(ActiveDelta(delta.sha256, delta.path, tuple(sorted(out))))
    return tuple(kept)


def undone(
    now: Sequence[ActiveDelta], before: Sequence[ActiveDelta], after: Sequence[ActiveDelta], state: ModelState
) -> tuple[ActiveDelta, ...]:
    """What is active now, less what led from `before` to `after`: columns it brought go, columns it dropped come back.

    Deltas that come back stand where they stood: `before` keeps the ledger's order.
    """
    brought = state.held(after) - state.held(before)
    taken = state.held(before) - state.held(after)
    paths = {delta.sha256: delta.path for delta in (*before, *now)}
    order = [delta.sha256 for delta in before]
    order += [delta.sha256 for delta in now if delta.sha256 not in order]
    wanted = (state.held(now) - brought) | taken
    found = []
    for sha256 in order:
        if kept := state.contents[sha256] & wanted:
            found.append(ActiveDelta(sha256, paths[sha256], tuple(sorted(state.contents[sha256] - kept))))
    return tuple(found)
