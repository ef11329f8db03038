"""Sets of active deltas without some of their corrections, and what has to be written again then. No tensors.

What a set holds in force is the ledger's to say.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ledger.records import ActiveDelta, HeadMove
from ledger.status import ModelState

Active = tuple[ActiveDelta, ...]


@dataclass(frozen=True, slots=True)
class Holding:
    """What nobody has reverted.

    Attributes:
        deltas: Those in force.
        aside: Corrections without columns: a consolidation left them out, as others superseded them.
    """

    deltas: Active
    aside: frozenset[str] = frozenset()

    def kept(self, state: ModelState) -> frozenset[str]:
        """The corrections that it holds, or that are set aside."""
        return state.held(self.deltas) | self.aside


def without(active: Sequence[ActiveDelta], dropped: Collection[str], state: ModelState) -> Active:
    """The active deltas less some corrections; a delta of which nothing is left goes as a whole."""
    kept = []
    for delta in active:
        out = _held_by(state, delta.sha256) & {*delta.dropped, *dropped}
        if out != _held_by(state, delta.sha256):
            kept.append(ActiveDelta(delta.sha256, delta.path, tuple(sorted(out))))
    return tuple(kept)


def holding(state: ModelState, move: HeadMove) -> Holding:
    """What is kept at a head; what was erased is set aside no more, since it cannot be written again."""
    aside, erased = frozenset[str](), {identity for identity, made in state.corrections.items() if made.erased}
    for at, changeset in state.applied():
        if at.position > move.position:
            break
        if changeset.kind == "consolidate":
            before = state.active(state.heads[at.position - 1])
            aside |= state.held(before) - state.in_force(before)
        if aside or changeset.aside:
            aside = (aside ^ changeset.aside) - state.held(state.active(at))
    return Holding(state.active(move), aside - erased)


def undone(now: Holding, before: Holding, after: Holding, state: ModelState) -> Holding:
    """What is kept now, less what led from `before` to `after`: columns it brought go, columns it dropped come back.

    A delta that it brought goes as a whole, with what it wrote again of corrections that stay. The order is the ledger's: a delta
    that comes back stands where it stood. What stays or comes back and has no columns is set aside.
    """
    brought = after.kept(state) - before.kept(state)
    taken = before.kept(state) - after.kept(state)
    kept = (now.kept(state) - brought) | taken
    if now.deltas == after.deltas:
        reverted = state.held(before.deltas) - kept
        deltas = without(before.deltas, reverted, state) if reverted else before.deltas
        return Holding(deltas, kept - state.held(deltas))
    came, went = _columns(after.deltas, state), _columns(before.deltas, state)
    new = {delta.sha256 for delta in after.deltas} - {delta.sha256 for delta in before.deltas}
    columns = (_columns(now.deltas, state) - (came - went)) | (went - came)
    found = []
    for sha256, path in {delta.sha256: delta.path for delta in (*before.deltas, *now.deltas)}.items():
        stay = {identity for identity in _held_by(state, sha256) & kept if (sha256, identity) in columns}
        if stay and sha256 not in new:
            found.append(ActiveDelta(sha256, path, tuple(sorted(_held_by(state, sha256) - stay))))
    deltas = _in_order(found, state)
    return Holding(deltas, kept - state.held(deltas))


def freed(before: Holding, after: Holding, state: ModelState) -> dict[str, str]:
    """Corrections without columns that nothing supersedes any more after a change: each has to be written again.

    Args:
        before: What is kept.
        after: What stays or comes back.
        state: What the ledger says.

    Returns:
        By correction, the SHA-256 of the delta that holds what superseded it; empty where no delta does.
    """
    already = before.aside & state.not_superseded(before.kept(state))  # it could not be written, and is not tried again
    free = (after.aside & state.not_superseded(after.kept(state))) - already
    holders = {identity: delta.sha256 for delta in before.deltas for identity in state.held([delta])}
    over = {i: sorted(state.replacers.get(i, frozenset()) & state.in_force(before.deltas)) for i in free}
    return {identity: holders[others[0]] if others else "" for identity, others in over.items()}


def unsettled(
    before: Sequence[ActiveDelta],
    after: Sequence[ActiveDelta],
    state: ModelState,
    *,
    known: Sequence[Sequence[ActiveDelta]] = (),
) -> tuple[str, ...]:
    """Corrections that are in force after a change, but were written to a state of their subject that the change takes away.

    A round moves a subject from where the earlier rounds left it to where all its corrections hold. So what is left of a subject
    adds up if it is what the first rounds wrote in a set that was in force; of every other subject all is written again.

    Args:
        before: The deltas in force.
        after: Those that stay or come back.
        state: What the ledger says.
        known: Other sets that were in force once.
    """
    sets = [_by_subject(active, state) for active in (before, *known)]
    moved = {
        subject
        for subject, columns in _by_subject(after, state).items()
        if not any(other.get(subject, [])[: len(columns)] == columns for other in sets)
    }
    stays = state.in_force(after)
    return tuple(identity for identity in state.corrections if identity in stays and _subject(state, identity) in moved)


def replayed(
    before: Sequence[ActiveDelta],
    after: Sequence[ActiveDelta],
    state: ModelState,
    *,
    known: Sequence[Sequence[ActiveDelta]] = (),
    back: Mapping[str, str] | None = None,
) -> tuple[Active, dict[str, list[str]]]:
    """The deltas that stay as they are, and by the later ones the corrections that take a round each to be solved again.

    What stays is the longest beginning that `after` shares with `before` or with another set that was in force once (`known`). Of
    a correction that several later deltas hold, the first round writes it; one whose text was erased cannot be written again.
    What comes `back` is written in the round of the delta that it is given with (`freed`), or in one of its own after all others.
    """
    back = back or {}
    kept = max(_shared(after, other) for other in (before, *known))
    order = {identity: place for place, identity in enumerate(state.corrections)}
    rounds: dict[str, list[str]] = {}
    written: set[str] = set()
    stay = {delta.sha256: state.held([delta]) for delta in after[kept:]}
    gone = [delta for delta in before if delta.sha256 in back.values() and delta.sha256 not in stay]
    for delta in _in_order((*after[kept:], *gone), state):
        held = stay.get(delta.sha256, frozenset()) | {i for i, place in back.items() if place == delta.sha256}
        again = {i for i in held - written if not state.corrections[i].erased}
        written |= again
        if again:
            rounds[delta.sha256] = sorted(again, key=order.__getitem__)
    if loose := back.keys() - written:
        rounds[""] = sorted(loose, key=order.__getitem__)
    return tuple(after[:kept]), rounds


def _shared(one: Sequence[ActiveDelta], other: Sequence[ActiveDelta]) -> int:
    """How many deltas two sets begin with alike."""
    alike = (a == b for a, b in zip(one, other, strict=False))
    return next((place for place, same in enumerate(alike) if not same), min(len(one), len(other)))


def _by_subject(active: Sequence[ActiveDelta], state: ModelState) -> dict[str, list[tuple[str, frozenset[str]]]]:
    """Of each subject the columns in force: by delta, in order, the corrections that they belong to."""
    found: dict[str, list[tuple[str, frozenset[str]]]] = {}
    for delta in active:
        own: dict[str, set[str]] = {}
        for identity in state.held([delta]):
            own.setdefault(_subject(state, identity), set()).add(identity)
        for subject, held in own.items():
            found.setdefault(subject, []).append((delta.sha256, frozenset(held)))
    return found


def _in_order(deltas: Iterable[ActiveDelta], state: ModelState) -> Active:
    """Deltas in the order in which they first came in force, as the ledger has them; new ones last."""
    came = (change.sha256 for _, changeset in state.applied() for change in changeset.changes)
    place = {sha256: number for number, sha256 in enumerate(dict.fromkeys(came))}
    return tuple(sorted(deltas, key=lambda delta: place.get(delta.sha256, len(place))))


def _columns(active: Sequence[ActiveDelta], state: ModelState) -> frozenset[tuple[str, str]]:
    """What is written in the weights: by SHA-256 of a delta, each correction of it that is not dropped."""
    return frozenset((delta.sha256, identity) for delta in active for identity in state.held([delta]))


def _held_by(state: ModelState, sha256: str) -> frozenset[str]:
    return state.contents.get(sha256, frozenset())


def _subject(state: ModelState, identity: str) -> str:
    return state.corrections[identity].fact[0]
