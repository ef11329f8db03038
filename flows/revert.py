"""Revert: a changeset that leaves out corrections or rounds, judged and approved like an edit; later deltas stay.

Corrections of one subject share their columns' effect: where some of them go and others stay, those that stay are written again.
"""

import re
from dataclasses import dataclass
from functools import partial

from flows.active import undone, unsettled, without
from flows.draft import Plan, save_plan
from flows.errors import FlowError, Refused
from flows.evidence import provenance
from flows.lock import writer
from flows.plan import Round, RunStep, call_directly
from flows.progress import Progress, silent
from flows.session import Session
from ledger.records import ActiveDelta, Changeset
from ledger.status import ModelState, read_state
from ledger.unit_of_work import UnitOfWork
from ledger.views import changeset_status, resolve_version


@dataclass(frozen=True, slots=True)
class Target:
    """What to undo: one of these.

    Attributes:
        reference: A changeset ('#3', '3') or a correction (prefix of its id).
        version: The version to go back to, as `nse ask --at` reads it.
    """

    reference: str | None = None
    version: str | None = None


def plan_revert(
    session: Session,
    target: Target,
    *,
    by: str,
    reason: str,
    run_step: RunStep = call_directly,
    progress: Progress = silent,
) -> Changeset:
    """Plans a changeset that undoes `target`; it needs approval and `nse apply` like any other.

    Raises:
        FlowError: If the target or the reason is missing.
        Refused: If there is nothing to undo.
        LedgerError: If the target names nothing, or several things.
    """
    workspace = session.workspace
    if not reason.strip():
        raise FlowError("a revert needs a reason", "give --reason TEXT")
    steps = Round(session, by=by, reason=reason, progress=progress)
    with writer(workspace, "revert", by):
        plan = run_step("choose what stays", partial(_choose, session, target))
        stored = None
        if steps.writes(plan):
            run_step("compute values", steps.values, plan)
            run_step("edit", steps.edit, plan)
        run_step("evaluate", steps.evaluate, plan)
        if steps.writes(plan):
            stored = run_step("store delta", steps.store, plan)
        number = run_step("propose changeset", steps.propose, plan, stored)
    with workspace.ledger().read() as work:
        return work.changeset(f"#{number}")


def _choose(session: Session, target: Target) -> str:
    workspace = session.workspace
    with workspace.ledger().read() as work:
        state = read_state(work, workspace.model)
        head = work.head(workspace.model)
        before = state.active(head)
        after = _after(work, state, before, target)
    if after == before:
        raise Refused(f"{target.reference or target.version} is not in force", "see `nse status`; nothing to revert")
    stays, was = state.in_force(after), state.in_force(before)
    again = unsettled(before, after, state)
    plan = Plan(
        kind="revert",
        parent_version=head.version,
        base_digest=workspace.params.model.digest,
        before=[delta.to_dict() for delta in before],
        after=[delta.to_dict() for delta in after],
        corrections=list(again),
        retained=[identity for identity in state.corrections if identity in stays and identity not in again],
        reverted=[identity for identity in state.corrections if identity in was - stays],
        provenance=provenance(workspace),
    )
    return save_plan(workspace, plan)


def _after(
    work: UnitOfWork, state: ModelState, before: tuple[ActiveDelta, ...], target: Target
) -> tuple[ActiveDelta, ...]:
    """The deltas that stay active."""
    if target.version is not None:
        return state.active(resolve_version(work, state.heads[0].model, target.version))
    if not target.reference:
        raise FlowError("nothing is named to revert", "give a changeset (#3), a correction's id, or --to VERSION")
    if re.fullmatch(r"#\d+|\d{1,5}", target.reference):
        changeset = work.changeset(target.reference)
        if changeset_status(work, changeset) != "applied":
            raise Refused(f"changeset #{changeset.number} was never applied", "reject it instead")
        place = next(i for i, move in enumerate(state.heads) if move.changeset_id == changeset.id)
        return undone(before, state.active(state.heads[place - 1]), changeset.active, state)
    correction = work.correction(target.reference)
    if correction.id not in state.in_force(before):
        problem = f"correction {correction.id[:12]} ({correction.subject}, {correction.target_new}) is not in force"
        raise Refused(problem, f"see `nse blame {correction.subject!r}`")
    return without(before, {correction.id}, state)
