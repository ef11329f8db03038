"""Decide: a named person approves, rejects or withdraws, signed with that person's key; and which policy is in force.

The rules are the ledger's.
"""

from dataclasses import dataclass
from typing import Literal

from flows.checkpoints import keep_checkpoint
from flows.errors import FlowError, Refused
from flows.keys import log_signer, signer
from flows.workspace import Workspace
from ledger.adoption import adopt as adopt_policy
from ledger.adoption import policy_at, read_policies, rules_of
from ledger.decisions import approve, auto_approve, read_case, reject, withdraw
from ledger.policy import Policy, Standing, same_person
from ledger.records import Changeset, Decision, PolicyAdopted
from ledger.status import open_proposals
from ledger.unit_of_work import UnitOfWork

Verdict = Literal["approve", "reject", "withdraw"]
_RULES = {"approve": approve, "reject": reject, "withdraw": withdraw}


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision that was recorded, and what all decisions come to now.

    Attributes:
        changeset: What it is about.
        decision: It.
        standing: What they come to.
        missing: What an approval lacks, and who can give it; empty if nothing, or if it was rejected.
        notes: For the person who decided.
    """

    changeset: Changeset
    decision: Decision
    standing: Standing
    missing: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Adopted:
    """The policy in force, whether it is so from now on, and notes for the person who adopted it."""

    policy: PolicyAdopted
    new: bool
    notes: tuple[str, ...] = ()


def decide(workspace: Workspace, reference: str | None, verdict: Verdict, *, reviewer: str, reason: str) -> Decided:
    """Records a decision on a changeset; on the only one that waits for it if `reference` is None.

    Raises:
        DecisionRefused: If the ledger's rules do not allow it.
        Refused: If the reviewer has no key to sign with.
        FlowError: If no changeset is named and none, or several, wait.
    """
    now = workspace.now()
    with workspace.ledger().begin() as work:
        changeset = work.changeset(reference) if reference else _waiting(work, workspace.model, verdict, reviewer, now)
        policy = rules_of(policy_at(read_policies(work, changeset.model)))
        key, made = signer(workspace, work, reviewer, policy)
        decision = _RULES[verdict](work, changeset, reviewer=reviewer, reason=reason, at=now, signer=key)
        case = read_case(work, changeset)
        standing = case.standing(now)
        notes = (made, policy_warning(workspace, work))
    keep_checkpoint(workspace)
    missing = ""
    if not (standing.approved or standing.rejected):
        missing = ": ".join(standing.lack(barred=(changeset.planned_by, *case.submitters)))
    return Decided(changeset, decision, standing, missing, tuple(note for note in notes if note))


def approve_by_policy(workspace: Workspace, work: UnitOfWork, changeset: Changeset) -> Decision | None:
    """Lets the adopted policy approve a changeset, in the transaction that proposes it; None if it is for people to decide."""
    policy = rules_of(policy_at(read_policies(work, workspace.model)))
    key = log_signer(workspace, work) if policy.auto else None
    return auto_approve(work, changeset, at=workspace.now(), signer=key) if key else None


def adopt(workspace: Workspace, *, by: str, first: bool = False) -> Adopted:
    """Puts the approval section of `params.yaml` in force, signed by `by`; with `first`, only where no policy is yet.

    Raises:
        DecisionRefused: If it asks for what nobody can give.
        Refused: If `by` has no key to sign with.
    """
    wanted, now = workspace.params.approval.policy(), workspace.now()
    with workspace.ledger().begin() as work:
        in_force = policy_at(read_policies(work, workspace.model))
        if in_force is not None and (first or in_force.text == wanted.text()):
            return Adopted(in_force, new=False)
        key, note = signer(workspace, work, by, rules_of(in_force))
        if wanted.auto and log_signer(workspace, work, by=by) is None:
            raise Refused("the ledger's own key is not on this machine", "adopt the policy where it is")
        adopted = adopt_policy(work, workspace.model, wanted, by=by, at=now, signer=key)
    assert adopted is not None  # what is in force already was returned above
    keep_checkpoint(workspace)
    return Adopted(adopted, new=True, notes=(note,) if note else ())


def policy_in_force(workspace: Workspace) -> tuple[PolicyAdopted | None, Policy, str | None]:
    """The policy that was adopted last, its rules, and a warning if `params.yaml` says something else."""
    with workspace.ledger().read() as work:
        adopted = policy_at(read_policies(work, workspace.model))
        return adopted, rules_of(adopted), policy_warning(workspace, work)


def policy_warning(workspace: Workspace, work: UnitOfWork) -> str | None:
    """One line if the policy in force is not the approval section of `params.yaml`."""
    if rules_of(policy_at(read_policies(work, workspace.model))) == workspace.params.approval.policy():
        return None
    return "the approval section of params.yaml is not the policy in force: adopt it with `nse policy adopt`"


def _waiting(work: UnitOfWork, model: str, verdict: Verdict, reviewer: str, at: str) -> Changeset:
    state = open_proposals(work, model)
    found = [c for c in state.changesets.values() if state.status(c, at=at) == "proposed"]
    if verdict == "withdraw":
        found = [
            c
            for c in state.changesets.values()
            if any(same_person(d.reviewer) == same_person(reviewer) for d in state.standing(c, at=at).approvals)
        ]
    if len(found) != 1:
        names = ", ".join(f"#{c.number}" for c in found) or "none"
        raise FlowError(f"which changeset? {names} wait for a decision", f"name one: `nse {verdict} 3 --reason TEXT`")
    return work.changeset(found[0].id)
