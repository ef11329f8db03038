"""Decide: a named person approves or rejects a proposed changeset. The rules are the ledger's."""

from typing import Literal

from flows.errors import FlowError
from flows.workspace import Workspace
from ledger.policy import approve, reject
from ledger.records import Changeset, Decision
from ledger.unit_of_work import UnitOfWork
from ledger.views import changeset_status


def decide(
    workspace: Workspace, reference: str | None, verdict: Literal["approve", "reject"], *, reviewer: str, reason: str
) -> tuple[Changeset, Decision]:
    """Records a decision on a changeset; on the only one that waits if `reference` is None.

    Raises:
        DecisionRefused: If the ledger's rules do not allow it.
        FlowError: If no changeset is named and none, or several, wait.
    """
    rule = approve if verdict == "approve" else reject
    with workspace.ledger().begin() as work:
        changeset = work.changeset(reference) if reference else _waiting(work, workspace.model)
        return changeset, rule(work, changeset, reviewer=reviewer, reason=reason, at=workspace.now())


def _waiting(work: UnitOfWork, model: str) -> Changeset:
    found = [c for c in work.changesets(model) if changeset_status(work, c) == "proposed"]
    if len(found) != 1:
        names = ", ".join(f"#{c.number}" for c in found) or "none"
        raise FlowError(f"which changeset? {names} wait for a decision", "name one, e.g. `nse approve 3 --reason TEXT`")
    return found[0]
