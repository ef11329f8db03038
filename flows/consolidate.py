"""Consolidate: one delta in place of all. What is in force is solved in one shot from the base, judged and approved like an edit.

After it the weights depend on which corrections are in force, and not on how they came. Every correction keeps columns of its
own, so that one alone can be reverted. Reverting the consolidation itself brings the deltas back that it stands for.
"""

from collections.abc import Callable
from functools import partial

from flows.dependencies import Dependencies, dependencies
from flows.draft import Plan, save_plan
from flows.errors import Refused
from flows.evidence import provenance
from flows.lock import writer
from flows.plan import Planned, Round, RunStep, call_directly, run_round
from flows.progress import Progress, silent
from flows.reconcile import reconcile
from flows.revert import Tell
from flows.session import Session
from ledger.records import ActiveDelta
from ledger.status import ModelState, open_proposals, read_state


def plan_consolidation(
    session: Session,
    *,
    by: str,
    reason: str = "",
    run_step: RunStep = call_directly,
    tell: Tell | None = None,
    progress: Progress = silent,
    foretell: Callable[[str], None] | None = None,
) -> Planned:
    """Plans a changeset that puts one delta in place of all; it needs approval and `nse apply` like any other.

    Args:
        session: The workspace's model.
        by: Who plans it.
        reason: Why.
        run_step: Runs each step.
        tell: Told what it entails before the work starts.
        progress: Told how far it is.
        foretell: Told how long it will take.

    Raises:
        Refused: If nothing is in force, or all of it is one such delta already.
    """
    workspace = session.workspace
    steps = Round(session, by=by, reason=reason, progress=progress, foretell=foretell)
    with writer(workspace, "consolidate", by):
        run_step("reconcile", partial(reconcile, workspace))
        plan = run_step("choose what is in force", partial(_choose, session, tell))
        number = steps.failed_before(plan)
        repeated = number is not None
        if number is None:
            number = steps.open_before(plan)
        if number is None:
            number = steps.carry_out(plan, run_step)
    with workspace.ledger().read() as work:
        return Planned(work.changeset(f"#{number}"), repeated)


def run_night(
    session: Session,
    *,
    by: str,
    run_step: RunStep = call_directly,
    progress: Progress = silent,
    reason: str = "",
    foretell: Callable[[str], None] | None = None,
) -> Planned:
    """Plans what the night is for: a round, or a consolidation where `round.consolidate_every` makes one due."""
    plan = plan_consolidation if _due_now(session) else run_round
    return plan(session, by=by, reason=reason, run_step=run_step, progress=progress, foretell=foretell)


def _due_now(session: Session) -> bool:
    """Whether a consolidation is due, and none was proposed on this head."""
    workspace = session.workspace
    every = workspace.params.round.consolidate_every
    if not every:
        return False
    with workspace.ledger().read() as work:
        tried = any(made.kind == "consolidate" for made in open_proposals(work, workspace.model).changesets.values())
        return not tried and due(read_state(work, workspace.model), every)


def due(state: ModelState, every: int) -> bool:
    """Whether so many rounds of edits have been applied since the last consolidation, or since the base; never if `every` is 0.

    One round alone on the base is no stream yet: there is nothing to consolidate.
    """
    rounds = 0
    for _, made in state.applied():
        rounds = 0 if made.kind == "consolidate" else rounds + (made.kind == "edit")
    active = state.active(state.head)
    return bool(every and rounds >= every and state.in_force(active) and _written_alone(state, active) is None)


def foresee(session: Session) -> Dependencies:
    """What a consolidation would entail; nothing is written. Raises as `plan_consolidation` does."""
    return _planned(session)[1]


def _choose(session: Session, tell: Tell | None) -> str:
    plan, entailed = _planned(session)
    if tell is not None:
        tell(entailed)
    return save_plan(session.workspace, plan)


def _planned(session: Session) -> tuple[Plan, Dependencies]:
    workspace = session.workspace
    inputs = provenance(workspace)
    with workspace.ledger().read() as work:
        state = read_state(work, workspace.model)
        before = state.active(state.head)
        made = _written_alone(state, before)
        alone = made is not None and inputs.items() <= work.changeset(made).provenance.items()
    in_force = state.in_force(before)
    if not in_force:
        raise Refused("no correction is in force", "see `nse status`; nothing to consolidate")
    if alone:
        problem = "what is in force is one delta already, solved from the base by these settings"
        raise Refused(problem, "see `nse status`; nothing to consolidate")
    written = [identity for identity in state.corrections if identity in in_force]
    plan = Plan(
        kind="consolidate",
        parent=state.head.changeset_id,
        parent_version=state.head.version,
        base_digest=workspace.params.model.digest,
        before=[delta.to_dict() for delta in before],
        after=[],
        rounds=[written],
        retained=written,
        reverted=[],
        provenance=inputs,
    )
    return plan, dependencies(session, state, plan, after=())


def _written_alone(state: ModelState, active: tuple[ActiveDelta, ...]) -> str | None:
    """The changeset that wrote the one delta in force from the base, if it is one alone and all of it is in force.

    Such a delta is what a consolidation gives, whether one or a first round wrote it.
    """
    if len(active) != 1 or active[0].dropped or state.held(active) != state.in_force(active):
        return None
    for move, changeset in state.applied():
        wrote = any(result.delta == active[0].sha256 for result in changeset.results)
        if wrote and state.active(move) == active:
            return changeset.id
    return None
