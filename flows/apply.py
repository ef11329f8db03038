"""Apply: an approved changeset becomes the head, after everything it rests on has been checked again."""

from dataclasses import dataclass
from functools import partial

from flows.checkpoints import keep_checkpoint
from flows.errors import FlowError, Refused
from flows.lock import writer
from flows.metrics import keep_metrics
from flows.plan import RunStep, call_directly
from flows.reconcile import reconcile
from flows.session import Session
from ledger.decisions import check_applicable
from ledger.records import Changeset, HeadMove
from ledger.status import open_proposals
from ledger.unit_of_work import UnitOfWork


@dataclass(frozen=True, slots=True)
class Applied:
    """The head after an apply, and whether the changeset had been applied before."""

    changeset: Changeset
    head: HeadMove
    already: bool


def apply(session: Session, reference: str | None, *, by: str, run_step: RunStep = call_directly) -> Applied:
    """Puts a changeset in force: artifacts, decision, base and candidate version are verified, then the head moves.

    Args:
        session: The workspace's model.
        reference: The changeset; the one that is approved if None.
        by: Who does it.
        run_step: Runs each step.

    Raises:
        Refused: If nothing is approved, or another `apply` was faster.
        DecisionRefused: If the changeset may not be applied: it lacks approvals, they expired, it is stale.
        FlowError: If it names nothing, or the weights are not those that were evaluated.
        ArtifactError: If the bytes of a delta are not those the ledger recorded.
        HeadMoved: If the head moves meanwhile.
    """
    workspace = session.workspace
    with workspace.ledger().read() as work:
        changeset = work.changeset(reference) if reference else _approved(work, workspace.model, workspace.now())
        if before := work.move_of(changeset.id):
            return Applied(changeset, before, already=True)
    with writer(workspace, "apply", by):
        run_step("reconcile", partial(reconcile, workspace))
        with workspace.ledger().read() as work:
            if meanwhile := work.move_of(changeset.id):
                problem = (
                    f"{meanwhile.moved_by} applied changeset #{changeset.number} meanwhile, as v{meanwhile.position}"
                )
                raise Refused(problem, "nothing is left to do")
        run_step("check decision", partial(check_decision, session), changeset.id)
        run_step("check weights", partial(check_weights, session), changeset.id)
        run_step("move head", partial(move_head, session, by=by), changeset.id)
        run_step("checkpoint", partial(keep_checkpoint, workspace, push=True))
        keep_metrics(workspace)
    with workspace.ledger().read() as work:
        return Applied(changeset, work.head(workspace.model), already=False)


def check_decision(session: Session, changeset_id: str) -> int:
    """Checks that the changeset may be applied; returns how many approvals count.

    Raises:
        DecisionRefused: If it may not; the line says what is missing.
    """
    workspace = session.workspace
    with workspace.ledger().read() as work:
        return len(check_applicable(work, work.changeset(changeset_id), at=workspace.now()).approvals)


def check_weights(session: Session, changeset_id: str) -> str:
    """Composes the candidate from verified artifacts; returns its version.

    Raises:
        FlowError: If base or result are not what the changeset says.
    """
    with session.workspace.ledger().read() as work:
        changeset = work.changeset(changeset_id)
        active = work.candidate(changeset)
    name = f"changeset #{changeset.number}"
    if changeset.base_digest != session.editable.base_digest:
        problem = f"{name} is for base {changeset.base_digest[:12]}, the model is {session.editable.base_digest[:12]}"
        raise FlowError(problem, "restore that base model")
    version = session.version(session.deltas(active))
    if version != changeset.candidate_version:
        problem = f"{name} was evaluated as {changeset.candidate_version[:12]}, its deltas give {version[:12]}"
        raise FlowError(problem, "plan it again on this machine")
    return version


def move_head(session: Session, changeset_id: str, *, by: str) -> int:
    """Moves the head by compare-and-swap; returns its new position.

    Raises:
        HeadMoved: If it is no longer where the changeset expects it.
        DecisionRefused: If the changeset may not be applied any more.
    """
    workspace = session.workspace
    with workspace.ledger().read() as work:
        changeset, expected = work.changeset(changeset_id), work.head(workspace.model)
    now = workspace.now()
    with workspace.ledger().begin() as work:
        check_applicable(work, changeset, at=now)
        moved = work.move_head(
            workspace.model,
            expected=expected,
            version=changeset.candidate_version,
            changeset_id=changeset.id,
            at=now,
            by=by,
        )
    return moved.position


def _approved(work: UnitOfWork, model: str, at: str) -> Changeset:
    state = open_proposals(work, model)
    found = [c for c in state.changesets.values() if state.status(c, at=at) == "approved"]
    if not found:
        raise Refused("no changeset is approved and waiting", "see `nse status`")
    if len(found) > 1:
        raise FlowError(f"changesets {', '.join(f'#{c.number}' for c in found)} are approved", "name the one to apply")
    return work.changeset(found[0].id)
