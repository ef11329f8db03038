"""Putting a policy in force: a person signs it into the ledger. Which one was in force at which place of the log."""

from collections.abc import Sequence
from dataclasses import replace

from ledger import tables
from ledger.errors import DecisionRefused, LedgerError
from ledger.persons import Registry, Signer, read_registry
from ledger.placed import Placed, before, read_placed
from ledger.policy import Policy, read_policy, same_person
from ledger.records import PolicyAdopted
from ledger.unit_of_work import UnitOfWork

Policies = Sequence[Placed[PolicyAdopted]]
"""The policies of one model that were adopted, in order."""


def adopt(work: UnitOfWork, model: str, policy: Policy, *, by: str, at: str, signer: Signer) -> PolicyAdopted | None:
    """Put a policy in force for a model; None if it is in force already.

    Raises:
        DecisionRefused: It asks for what nobody can give, or the key is not one that signs for `by`.
    """
    in_force = policy_at(read_policies(work, model))
    if in_force is not None and in_force.text == policy.text():
        return None
    asked = [(policy.approvals, policy.reviewers), *((rule.approvals, rule.reviewers) for rule in policy.rules)]
    for approvals, reviewers in asked:
        people = len({same_person(name) for name in reviewers}) if reviewers else approvals
        if not 1 <= approvals <= people:
            raise DecisionRefused(f"{approvals} approvals of {people} reviewers cannot be had", "correct the policy")
    unsigned = PolicyAdopted(model=model, text=policy.text(), adopted_by=by, adopted_at=at, key_id=signer.id)
    adopted = replace(unsigned, signature=signer.sign(unsigned))
    if wrong := read_registry(work).objection(adopted, by):
        raise DecisionRefused(f"the policy was not adopted: {wrong}", f"sign with a key of {by}")
    work.add_policy(adopted)
    return adopted


def read_policies(work: UnitOfWork, model: str) -> Policies:
    """Return the policies that were adopted for a model, in order."""
    return read_placed(work.connection, PolicyAdopted, tables.policy.c.model == model)


def policy_at(policies: Policies, place: int | None = None) -> PolicyAdopted | None:
    """Return the policy in force at a place of the log (None: its end); None if none had been adopted."""
    adopted = before(policies, place)
    return adopted[-1].record if adopted else None


def rules_of(adopted: PolicyAdopted | None) -> Policy:
    """Return the rules of a policy; the default ones if none was adopted.

    Raises:
        LedgerError: It holds none that this program knows.
    """
    return Policy() if adopted is None else read_policy(adopted.text)


def adoption_objections(adopted: Placed[PolicyAdopted], registry: Registry) -> list[str]:
    """Return what is wrong with a policy in the ledger: its text or its signature."""
    problems = [registry.objection(adopted.record, adopted.record.adopted_by, adopted.place)]
    try:
        rules_of(adopted.record)
    except LedgerError as error:
        problems.append(error.problem)
    return [problem for problem in problems if problem]
