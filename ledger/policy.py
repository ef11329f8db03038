"""Which decisions are allowed, and by whom. `audit` checks the same rules again on what was applied."""

from collections.abc import Iterable

from ledger.errors import DecisionRefused
from ledger.records import Changeset, Decision
from ledger.unit_of_work import UnitOfWork


def approve(work: UnitOfWork, changeset: Changeset, *, reviewer: str, reason: str, at: str) -> Decision:
    """Approve a changeset and record the decision.

    Raises:
        DecisionRefused: A gate failed, it is stale, it is decided already, reviewer or reason is empty, or the reviewer
            planned it or filed one of its corrections.
    """
    if not changeset.gate_passed:
        failed = ", ".join(gate.name for gate in changeset.gates if not gate.passed)
        raise DecisionRefused(f"changeset #{changeset.number} failed its gates ({failed})", "reject it or plan again")
    return _decide(work, Decision(
        changeset_id=changeset.id, verdict="approve", reviewer=reviewer, reason=reason, decided_at=at
    ))  # fmt: skip


def reject(work: UnitOfWork, changeset: Changeset, *, reviewer: str, reason: str, at: str) -> Decision:
    """Reject a changeset and record the decision; its corrections are not planned again.

    Raises:
        DecisionRefused: As for `approve`, but failed gates do not matter.
    """
    return _decide(work, Decision(
        changeset_id=changeset.id, verdict="reject", reviewer=reviewer, reason=reason, decided_at=at
    ))  # fmt: skip


def _decide(work: UnitOfWork, decision: Decision) -> Decision:
    changeset = work.changeset(decision.changeset_id)
    name = f"changeset #{changeset.number}"
    earlier = work.decisions(changeset.id)
    if earlier:
        last = earlier[-1]
        problem = f"{name} was decided at {last.decided_at}: {last.verdict} by {last.reviewer}"
        raise DecisionRefused(problem, "plan a new changeset")
    head = work.head(changeset.model)
    if head.version != changeset.parent_version:
        problem = f"{name} is stale: it was planned on {changeset.parent_version[:12]}, the head is {head.version[:12]}"
        raise DecisionRefused(problem, "plan it again")
    submitters = {work.correction(identity).submitter for identity in changeset.correction_ids}
    objections = reviewer_objections(changeset, submitters, decision)
    if objections:
        raise DecisionRefused(f"{name}: {objections[0]}", "another person must decide, by name, with a reason")
    work.add_decision(decision)
    return decision


def reviewer_objections(changeset: Changeset, submitters: Iterable[str], decision: Decision) -> list[str]:
    """Return what is wrong with who decided and with what reason, whatever the state of the ledger."""
    problems = [f"the {name} is empty" for name in ("reviewer", "reason") if not getattr(decision, name).strip()]
    reviewer = _same_person(decision.reviewer)
    if reviewer == _same_person(changeset.planned_by):
        problems.append(f"{decision.reviewer} planned it")
    if reviewer in {_same_person(submitter) for submitter in submitters}:
        problems.append(f"{decision.reviewer} filed one of its corrections")
    return problems


def _same_person(name: str) -> str:
    return " ".join(name.split()).casefold()
