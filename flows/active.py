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

    Deltas that come back stand where they stood: `before` keeps the ledger's order. A delta that it brought goes as a whole, with
    what it wrote again of corrections that stay.
    """
    old = {delta.sha256 for delta in before}
    new = {delta.sha256 for delta in after} - old
    brought = state.held(after) - state.held(before)
    taken = state.held(before) - state.held(after)
    paths = {delta.sha256: delta.path for delta in (*before, *now)}
    order = [delta.sha256 for delta in before]
    order += [delta.sha256 for delta in now if delta.sha256 not in old | new]
    wanted = (state.held(now) - brought) | taken
    found = []
    for sha256 in order:
        if kept := state.contents[sha256] & wanted:
            found.append(ActiveDelta(sha256, paths[sha256], tuple(sorted(state.contents[sha256] - kept))))
    return tuple(found)


def unsettled(before: Sequence[ActiveDelta], after: Sequence[ActiveDelta], state: ModelState) -> tuple[str, ...]:
    """Corrections that stay in force but were written to a state that they shared with one that goes.

    A round moves a subject from where the earlier rounds left it to where all its corrections hold. If one of them goes,
    then what the same round and later ones wrote for the others no longer adds up; what earlier rounds wrote, does.
    """
    gone, stays = state.held(before) - state.held(after), state.in_force(after)
    place = {delta.sha256: i for i, delta in enumerate(before)}
    first: dict[str, int] = {}
    for delta in before:
        for identity in gone & state.contents[delta.sha256]:
            subject = _subject(state, identity)
            first[subject] = min(first.get(subject, len(place)), place[delta.sha256])
    moved = {
        _subject(state, identity)
        for delta in after
        for identity in state.held([delta])
        if place.get(delta.sha256, -1) >= first.get(_subject(state, identity), len(place))
    }
    return tuple(identity for identity in state.corrections if identity in stays and _subject(state, identity) in moved)


def _subject(state: ModelState, identity: str) -> str:
    return state.corrections[identity].fact[0]
