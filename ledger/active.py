"""The set of active deltas: what changes make of it, and the changes between two sets. No database, no rules."""

from collections.abc import Iterable, Sequence

from ledger.records import ActiveDelta, DeltaChange


def folded(changes: Iterable[DeltaChange]) -> tuple[ActiveDelta, ...]:
    """Return the deltas in force after all changes since the base, in the order in which they first came in force.

    So one that is removed and comes back stands where it stood: the same set has the same order, and the same weights.
    """
    state: dict[str, DeltaChange] = {}
    for change in changes:
        state[change.sha256] = change
    return tuple(ActiveDelta(c.sha256, c.path, c.dropped) for c in state.values() if not c.removed)


def changes_between(before: Sequence[ActiveDelta], after: Sequence[ActiveDelta]) -> tuple[DeltaChange, ...]:
    """Return what leads from one set to another: first what goes or loses columns, then what comes, in its order."""
    old = {delta.sha256: delta for delta in before}
    new = {delta.sha256: delta for delta in after}
    gone = [DeltaChange(d.sha256, d.path, d.dropped, removed=True) for d in before if d.sha256 not in new]
    other = [DeltaChange(d.sha256, d.path, d.dropped) for d in after if old.get(d.sha256) != d]
    return (*gone, *other)
