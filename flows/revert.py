"""Revert: a changeset that leaves corrections or rounds out, judged and approved like an edit.

`drop` leaves columns out and later deltas as they are; where some corrections of a subject go and others stay, those that stay
are written again. `replay` solves what came later again, as if what goes had never been. Which sets of deltas that gives is
`flows.active`'s to say, what it entails `flows.dependencies`'.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from flows.active import Active, Holding, freed, holding, replayed, undone, unsettled, without
from flows.dependencies import Dependencies, Mode, dependencies
from flows.draft import Plan, save_plan
from flows.errors import FlowError, Refused
from flows.evidence import provenance
from flows.lock import writer
from flows.plan import Round, RunStep, call_directly
from flows.progress import Progress, silent
from flows.reconcile import reconcile
from flows.session import Session
from ledger.policy import same_person
from ledger.records import Changeset, Correction
from ledger.status import ASIDE_AGAIN, REVERTED_ASIDE, ModelState, correction_statuses, read_state
from ledger.unit_of_work import UnitOfWork
from ledger.views import moment, resolve_version

Tell = Callable[[Dependencies], None]
"""Told what a revert entails before the work starts."""


@dataclass(frozen=True, slots=True)
class Query:
    """Corrections by where they come from: those that meet every condition given here.

    Attributes:
        source: Their source, as it is written.
        submitter: Who filed them, in any letter case; of "Name <address>" the name is enough.
        since: When they were filed, not before this date or time (UTC).
        until: And not after this one; a bare date means its end.
    """

    source: str | None = None
    submitter: str | None = None
    since: str | None = None
    until: str | None = None

    def __str__(self) -> str:
        """What is asked for, in words."""
        asked = {"from": self.source, "filed by": self.submitter, "filed since": self.since, "filed until": self.until}
        return ", ".join(f"{words} {value}" for words, value in asked.items() if value is not None)


@dataclass(frozen=True, slots=True)
class Target:
    """What to undo: one of these.

    Attributes:
        reference: A changeset ('#3', '3') or a correction (prefix of its id).
        version: The version to go back to, as `nse ask --at` reads it.
        query: Corrections by where they come from.
    """

    reference: str | None = None
    version: str | None = None
    query: Query = Query()

    def __str__(self) -> str:
        """What was named."""
        return self.reference or self.version or str(self.query)

    def checked(self) -> "Target":
        """The same, if it names one thing.

        Raises:
            FlowError: If it names nothing, or several things.
        """
        named = [text for text in (self.reference, self.version and f"--to {self.version}", str(self.query)) if text]
        if not named:
            advice = (
                "give a changeset (#3), a correction's id, --to VERSION, or --source, --submitter, --since, --until"
            )
            raise FlowError("nothing is named to revert", advice)
        if len(named) > 1:
            raise FlowError(f"{' and '.join(named)} are both named to revert", "give one of them")
        return self


@dataclass(frozen=True, slots=True)
class _Aim:
    """What stays or comes back, and a set that was in force once that may hold some of it."""

    after: Holding
    known: tuple[Active, ...] = ()


def plan_revert(
    session: Session,
    target: Target,
    *,
    by: str,
    reason: str,
    mode: Mode = "drop",
    run_step: RunStep = call_directly,
    tell: Tell | None = None,
    progress: Progress = silent,
) -> Changeset:
    """Plans a changeset that undoes `target`; it needs approval and `nse apply` like any other.

    Args:
        session: The workspace's model.
        target: What to undo.
        by: Who plans it.
        reason: Why.
        mode: How it goes about it. Back to a version, and after a round that is the last, both give the same weights.
        run_step: Runs each step.
        tell: Told what it entails before the work starts.
        progress: Told how far it is.

    Raises:
        FlowError: If the target or the reason is missing, or nothing was ever filed that a query asks for.
        Refused: If there is nothing to undo.
        LedgerError: If the target names nothing, or several things.
    """
    workspace = session.workspace
    if not reason.strip():
        raise FlowError("a revert needs a reason", "give --reason TEXT")
    steps = Round(session, by=by, reason=reason, progress=progress)
    with writer(workspace, "revert", by):
        run_step("reconcile", partial(reconcile, workspace))
        plan = run_step("choose what stays", partial(_choose, session, target.checked(), mode, tell))
        number = steps.open_before(plan)
        if number is None:
            number = steps.carry_out(plan, run_step)
    with workspace.ledger().read() as work:
        return work.changeset(f"#{number}")


def foresee(session: Session, target: Target, mode: Mode = "drop") -> Dependencies:
    """What the revert would entail; nothing is written, and nobody needs to answer for it. Raises as `plan_revert` does."""
    return _planned(session, target.checked(), mode)[1]


def _choose(session: Session, target: Target, mode: Mode, tell: Tell | None) -> str:
    plan, entailed = _planned(session, target, mode)
    if tell is not None:
        tell(entailed)
    return save_plan(session.workspace, plan)


def _planned(session: Session, target: Target, mode: Mode) -> tuple[Plan, Dependencies]:
    workspace = session.workspace
    with workspace.ledger().read() as work:
        state = read_state(work, workspace.model)
        before = holding(state, state.head)
        aim = _aim(work, state, before, target)
    if aim.after == before:
        state_of_it = "in force already" if target.version else "not in force"
        raise Refused(f"{target} is {state_of_it}", "see `nse status`; nothing to revert")
    back = {} if target.version else freed(before, aim.after, state)
    now, stay = before.deltas, aim.after.deltas
    if mode == "replay":
        after, rounds = replayed(now, stay, state, known=aim.known, back=back)
        written = list(rounds.values())
    else:
        after, rounds = stay, {}
        wanted = {*unsettled(now, after, state, known=aim.known), *back}
        again = [identity for identity in state.corrections if identity in wanted]
        written = [again] if again else []
    new = {identity for of_round in written for identity in of_round}
    was, stays = state.in_force(now), state.not_superseded(state.held(after) | new)
    plan = Plan(
        kind="revert",
        mode=mode,
        parent=state.head.changeset_id,
        parent_version=state.head.version,
        base_digest=workspace.params.model.digest,
        before=[delta.to_dict() for delta in now],
        after=[delta.to_dict() for delta in after],
        rounds=written,
        retained=[identity for identity in state.corrections if identity in stays - new],
        reverted=[identity for identity in state.corrections if identity in was ^ stays],
        superseded=sorted(new - stays),
        provenance=provenance(workspace) | set_aside(before, aim.after, state),
    )
    return plan, dependencies(session, state, plan, after=after, origins=list(rounds))


def set_aside(before: Holding, after: Holding, state: ModelState) -> dict[str, str]:
    """What the ledger has to be told of corrections without columns: who is set aside no more, and who is again."""
    held = state.held(after.deltas)
    told = {REVERTED_ASIDE: before.aside - after.aside - held, ASIDE_AGAIN: after.aside - before.aside}
    return {name: " ".join(sorted(ids)) for name, ids in told.items() if ids}


def _aim(work: UnitOfWork, state: ModelState, before: Holding, target: Target) -> _Aim:
    # Where what goes had superseded an erased correction, that one must not come back: nobody can judge it.
    unwanted = {identity for identity, correction in state.corrections.items() if correction.erased}
    if target.version is not None:
        version = holding(state, resolve_version(work, state.head.model, target.version))
        return _Aim(_less(before, version, unwanted, state), (version.deltas,))
    if target.reference is None:
        found = _found(state, target.query)
        chosen = found & state.in_force(before.deltas)
        if not chosen:
            raise Refused(f"nothing {target.query} is in force", "see `nse status`; nothing to revert")
        return _Aim(_less(before, _without(before, chosen, state), unwanted | found, state))
    if re.fullmatch(r"#\d+|\d{1,5}", target.reference):
        changeset = work.changeset(target.reference)
        place = state.place(changeset.id)
        if place is None:
            raise Refused(f"changeset #{changeset.number} was never applied", "reject it instead")
        old, new = (holding(state, state.heads[position]) for position in (place - 1, place))
        return _Aim(_less(before, undone(before, old, new, state), unwanted, state), (old.deltas,))
    correction = work.correction(target.reference)
    if correction.id not in state.in_force(before.deltas):
        raise _not_in_force(state, correction)
    return _Aim(_less(before, _without(before, {correction.id}, state), unwanted, state))


def _without(before: Holding, dropped: Collection[str], state: ModelState) -> Holding:
    return Holding(without(before.deltas, dropped, state), before.aside)


def _less(before: Holding, after: Holding, unwanted: Collection[str], state: ModelState) -> Holding:
    """What is kept `after`, less those of `unwanted` that would come in force, and less erased columns that would come back."""
    deltas, aside = after.deltas, after.aside - frozenset(unwanted)
    while back := (state.in_force(deltas) - state.in_force(before.deltas)) & frozenset(unwanted):
        deltas = without(deltas, back, state)
    erased = {i for i in state.held(deltas) - state.held(before.deltas) if state.corrections[i].erased}
    return Holding(without(deltas, erased, state) if erased else deltas, aside)


def _not_in_force(state: ModelState, correction: Correction) -> Refused:
    name = f"correction {correction.id[:12]} ({correction.subject}, {correction.target_new})"
    status = correction_statuses(state).get(correction.id)
    if status is None:
        return Refused(f"{name} is about {correction.model}", "go to the workspace of that model")
    return Refused(f"{name} is not in force: it is {status}", f"see `nse blame {correction.subject!r}`")


def _found(state: ModelState, query: Query) -> frozenset[str]:
    """The corrections that a query is about, in force or not.

    Raises:
        FlowError: If nothing was ever filed from that source or by that person, or the dates are in the wrong order.
        LedgerError: If a date is none.
    """
    corrections = state.corrections.values()
    sources = {correction.source for correction in corrections if not correction.erased}
    people = {correction.submitter for correction in corrections}
    submitters = {person for person in people if query.submitter is None or _is(person, query.submitter)}
    if query.source is not None and query.source not in sources:
        raise FlowError(f"no correction is from {query.source!r}", f"sources are {_some(sources)}")
    if not submitters:
        raise FlowError(f"nobody called {query.submitter!r} filed a correction", f"people are {_some(people)}")
    since = "" if query.since is None else moment(query.since, end=False)
    until = "~" if query.until is None else moment(query.until)  # "~" comes after every time
    if since > until:
        raise FlowError(f"{query.since} is later than {query.until}", "give --since the earlier one")
    return frozenset(
        correction.id
        for correction in corrections
        if query.source in (None, correction.source)
        and correction.submitter in submitters
        and since <= correction.filed_at <= until
    )


def _is(person: str, asked: str) -> bool:
    return same_person(asked) in (same_person(person), same_person(person.partition("<")[0]))


def _some(names: Collection[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names)[:5]) + (" ..." if len(names) > 5 else "") or "none yet"
