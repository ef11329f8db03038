"""Deciding about changesets: approve, reject, withdraw, approval by policy; and whether what was decided allows to apply.

Every decision is signed with a key of the reviewer's. The rules are those of `policy`, the keys those of `persons`; what
is asked here before a decision is recorded, `audit` asks again of what is recorded, by its place in the log.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ledger import erasing, repository, tables
from ledger.adoption import Policies, policy_at, read_policies, rules_of
from ledger.errors import DecisionRefused, LedgerError
from ledger.persons import Registry, Signer, read_registry
from ledger.placed import Placed, before, read_placed
from ledger.policy import POLICY, Judged, Policy, Standing, concerned, reviewer_objections, same_person, standing
from ledger.records import Changeset, Correction, Decision, HeadMove
from ledger.unit_of_work import UnitOfWork

_OTHERS = "another person must decide, by name, with a reason"


@dataclass(frozen=True, slots=True)
class Case:
    """All that a decision about one changeset depends on."""

    changeset: Changeset
    corrections: tuple[Correction, ...]  # those whose force it changes
    decisions: tuple[Placed[Decision], ...]
    registry: Registry
    policies: Policies
    head: HeadMove
    applied: HeadMove | None

    @property
    def name(self) -> str:
        """What people call the changeset."""
        return f"changeset #{self.changeset.number}"

    @property
    def submitters(self) -> tuple[str, ...]:
        """Who filed the corrections."""
        return tuple(dict.fromkeys(correction.submitter for correction in self.corrections))

    @property
    def relations(self) -> tuple[str | None, ...]:
        """The relations of the corrections."""
        return tuple(correction.relation for correction in self.corrections)

    @property
    def adopted(self) -> str | None:
        """The id of the policy in force."""
        found = policy_at(self.policies)
        return found.id if found else None

    def policy(self) -> Policy:
        """Return the rules in force.

        Raises:
            LedgerError: This program does not know them.
        """
        return rules_of(policy_at(self.policies))

    def objections(self, decision: Placed[Decision]) -> list[str]:
        """Return what is wrong with one of the decisions."""
        return objections_to_decision(
            self.changeset, decision, self.submitters, self.relations, registry=self.registry, policies=self.policies
        )

    def valid(self) -> list[Decision]:
        """Return the decisions that nothing is wrong with."""
        return [placed.record for placed in self.decisions if not self.objections(placed)]

    def standing(self, at: str | None) -> Standing:
        """Return what the valid decisions come to under the policy in force."""
        return standing(self.changeset, self.relations, self.valid(), self.policy(), at=at)


def read_case(work: UnitOfWork, changeset: Changeset) -> Case:
    """Return what a decision about a changeset depends on."""
    table, about = tables.correction, concerned(changeset)
    rows = list(repository.in_chunks(work.connection, repository.with_text(Correction), table.c.id, about))
    return Case(
        changeset=changeset,
        corrections=tuple(repository.read_records(work.connection, Correction, rows)),
        decisions=tuple(read_placed(work.connection, Decision, tables.decision.c.changeset_id == changeset.id)),
        registry=read_registry(work),
        policies=read_policies(work, changeset.model),
        head=work.head(changeset.model),
        applied=work.move_of(changeset.id),
    )


def approve(work: UnitOfWork, changeset: Changeset, *, reviewer: str, reason: str, at: str, signer: Signer) -> Decision:
    """Approve a changeset and record the decision.

    Raises:
        DecisionRefused: A gate failed, it is stale, applied, rejected or approved by enough people already, the reviewer
            approved it before, planned it, filed one of its corrections or is not on the policy's list, name or reason
            is empty, it would put an erased correction in force, or the key does not sign for the reviewer.
    """
    if not changeset.gate_passed:
        raise DecisionRefused(f"changeset #{changeset.number} {_failed_gates(changeset)}", "reject it or plan again")
    case = read_case(work, changeset)
    _check_open(case)
    _check_erased(work, case)
    stands = case.standing(at)
    own = [decision for decision in stands.approvals if same_person(decision.reviewer) == same_person(reviewer)]
    if own or stands.approved:
        by = ", ".join(f"{decision.reviewer} at {decision.decided_at}" for decision in own or stands.approvals)
        advice = "apply it" if stands.approved else "another person must approve"
        raise DecisionRefused(f"{case.name} was approved by {by}", advice)
    return _record(work, case, "approve", reviewer=reviewer, reason=reason, at=at, signer=signer)


def reject(work: UnitOfWork, changeset: Changeset, *, reviewer: str, reason: str, at: str, signer: Signer) -> Decision:
    """Reject a changeset, also one that is approved, and record the decision; its corrections are not planned again.

    Raises:
        DecisionRefused: It is stale, applied or rejected, or the reviewer, the reason or the key are refused as in `approve`.
    """
    case = read_case(work, changeset)
    _check_open(case)
    return _record(work, case, "reject", reviewer=reviewer, reason=reason, at=at, signer=signer)


def withdraw(
    work: UnitOfWork, changeset: Changeset, *, reviewer: str, reason: str, at: str, signer: Signer
) -> Decision:
    """Take the reviewer's own approval back, and record that.

    Raises:
        DecisionRefused: There is none, the changeset is stale, applied or rejected, or reason or key are refused as in
            `approve`.
    """
    case = read_case(work, changeset)
    _check_open(case)
    given = [d for d in case.valid() if same_person(d.reviewer) == same_person(reviewer)]
    if not given or given[-1].verdict != "approve":
        raise DecisionRefused(f"{reviewer} has no approval of {case.name} to withdraw", 'see "nse show"')
    return _record(work, case, "withdraw", reviewer=reviewer, reason=reason, at=at, signer=signer)


def auto_approve(work: UnitOfWork, changeset: Changeset, *, at: str, signer: Signer) -> Decision | None:
    """Let the adopted policy approve a changeset, and record it; None if it does not, or somebody has decided.

    `signer` is the ledger's own key, registered for `policy.POLICY`.

    Raises:
        DecisionRefused: The key is not that one.
    """
    case = read_case(work, changeset)
    if case.decisions or objections_to_auto(work, case):
        return None
    adopted = policy_at(case.policies)
    assert adopted is not None  # without one nothing is approved by policy
    reason = f"policy {adopted.id[:12]}, adopted by {adopted.adopted_by}"
    return _record(work, case, "approve", reviewer=POLICY, reason=reason, at=at, signer=signer, policy_id=adopted.id)


def objections_to_auto(work: UnitOfWork, case: Case) -> list[str]:
    """Return why the adopted policy does not approve a changeset by itself; nothing if it does."""
    try:
        _check_open(case)
        _check_erased(work, case)
    except DecisionRefused as error:
        return [error.problem]
    adopted = policy_at(case.policies)
    if adopted is None:
        return ["no policy was adopted"]
    objections = case.policy().objections_to_auto(case.changeset, case.relations)
    return [*objections, *_own_work(case.changeset, case.submitters, adopted.adopted_by)]


def check_applicable(work: UnitOfWork, changeset: Changeset, *, at: str) -> Standing:
    """Return what the decisions come to if the changeset may be put in force at that time.

    Call it in the transaction that moves the head.

    Raises:
        DecisionRefused: It may not: the line says what is missing, and who can give it.
    """
    case = read_case(work, changeset)
    if not changeset.gate_passed:
        raise DecisionRefused(f"{case.name} {_failed_gates(changeset)}", "plan a new one")
    _check_open(case)
    _check_erased(work, case)
    stands = case.standing(max(at, case.head.moved_at))  # the head never moves back in time
    if stands.approved:
        return stands
    has, advice = stands.lack(barred=(changeset.planned_by, *case.submitters))
    wrong = [
        f"the {placed.record.verdict} by {placed.record.reviewer} does not count: {objections[0]}"
        for placed in case.decisions
        if (objections := case.objections(placed))
    ]
    raise DecisionRefused("; ".join([f"{case.name} {has}", *wrong]), advice)


# --- rules, for records that are there already as well


def objections_to_decision(
    changeset: Judged,
    decision: Placed[Decision],
    submitters: Iterable[str],
    relations: Sequence[str | None],
    *,
    registry: Registry,
    policies: Policies,
) -> list[str]:
    """Return what is wrong with a decision in the ledger: who, why, the signature, and the policy if that approved.

    Args:
        changeset: What it is about.
        decision: It, and its place in the log.
        submitters: Of the corrections that the changeset is about, see `policy.concerned`.
        relations: Of these corrections.
        registry: The keys.
        policies: Those of the changeset's model.
    """
    record = decision.record
    submitters = tuple(submitters)
    problems = reviewer_objections(changeset, submitters, record)
    if record.policy_id is not None:
        problems += _objections_to_automatic(changeset, decision, submitters, relations, policies)
    wrong = registry.objection(record, record.reviewer, decision.place)
    return [*problems, wrong] if wrong else problems


def objections_to_applied(
    changeset: Judged,
    move: Placed[HeadMove],
    decisions: Sequence[Placed[Decision]],
    submitters: Iterable[str],
    relations: Sequence[str | None],
    *,
    registry: Registry,
    policies: Policies,
) -> list[str]:
    """Return why a changeset should not have been applied, by what the log held then; see `objections_to_decision`."""
    names = tuple(submitters)
    problems = ["a gate failed"] if not all(gate.passed for gate in changeset.gates) else []
    problems += [
        f"the {late.record.verdict} by {late.record.reviewer} came after it was applied"
        for late in decisions
        if late.place > move.place
    ]
    valid = []
    for decision in before(decisions, move.place):
        wrong = objections_to_decision(changeset, decision, names, relations, registry=registry, policies=policies)
        problems += [f"the {decision.record.verdict} by {decision.record.reviewer}: {problem}" for problem in wrong]
        if not wrong:
            valid.append(decision.record)
    try:
        rules = rules_of(policy_at(policies, move.place))
    except LedgerError as error:
        return [*problems, error.problem]
    stands = standing(changeset, relations, valid, rules, at=move.record.moved_at)
    if stands.rejected:
        problems.append("it was rejected before it was applied")
    elif not stands.approved:
        problems.append(f"it was applied when it {stands.lack()[0].replace('has', 'had', 1)}")
    return problems


def _objections_to_automatic(
    changeset: Judged,
    decision: Placed[Decision],
    submitters: Iterable[str],
    relations: Sequence[str | None],
    policies: Policies,
) -> list[str]:
    record = decision.record
    adopted = policy_at(policies, decision.place)
    if record.reviewer != POLICY or record.verdict != "approve":
        return ["it names a policy, and is no approval by one"]
    if adopted is None or adopted.id != record.policy_id:
        return ["the policy that it names was not in force"]
    try:
        problems = rules_of(adopted).objections_to_auto(changeset, relations)
    except LedgerError as error:
        problems = [error.problem]
    return [*problems, *_own_work(changeset, submitters, adopted.adopted_by)]


def _own_work(changeset: Judged, submitters: Iterable[str], adopter: str) -> list[str]:
    """A policy approves on the word of who adopted it, so not what that person planned or filed."""
    problems = []
    if same_person(adopter) == same_person(changeset.planned_by):
        problems.append(f"{adopter}, who adopted the policy, planned it")
    if same_person(adopter) in {same_person(name) for name in submitters}:
        problems.append(f"{adopter}, who adopted the policy, filed one of its corrections")
    return problems


# --- what a decision needs when it is made


def _check_open(case: Case) -> None:
    """Raise unless the changeset is one that can still be decided and applied."""
    changeset = case.changeset
    if case.applied is not None:
        at, by = case.applied.moved_at, case.applied.moved_by
        raise DecisionRefused(f"{case.name} was applied at {at} by {by}", "revert it to undo it")
    rejections = [placed.record for placed in case.decisions if placed.record.verdict == "reject"]
    if rejections:
        last = rejections[-1]
        problem = f"{case.name} was decided at {last.decided_at}: reject by {last.reviewer}"
        raise DecisionRefused(problem, "plan a new changeset")
    if case.head.changeset_id != changeset.parent:
        planned_on, head = changeset.parent_version[:12], case.head.version[:12]
        problem = f"{case.name} is stale: it was planned on {planned_on}, the head is {head}"
        raise DecisionRefused(problem, "plan it again")


def _check_erased(work: UnitOfWork, case: Case) -> None:
    """Raise if the changeset would put a correction in force whose text was erased, and which nobody can judge."""
    # One that is erased is not in force, so a changeset that changes its force brings it back.
    back = [correction.id for correction in case.corrections if correction.erased]
    back += erasing.brought_back(work, case.changeset)
    if back:
        raise DecisionRefused(
            f"{case.name} would put the erased correction {back[0][:12]} in force", "plan one that leaves it out"
        )


def _record(
    work: UnitOfWork,
    case: Case,
    verdict: Literal["approve", "reject", "withdraw"],
    *,
    reviewer: str,
    reason: str,
    at: str,
    signer: Signer,
    policy_id: str | None = None,
) -> Decision:
    unsigned = Decision(
        changeset_id=case.changeset.id,
        verdict=verdict,
        reviewer=reviewer,
        reason=reason,
        decided_at=at,
        policy_id=policy_id,
        key_id=signer.id,
    )
    if objections := reviewer_objections(case.changeset, case.submitters, unsigned):
        raise DecisionRefused(f"{case.name}: {objections[0]}", _OTHERS)
    required = case.policy().required(case.changeset, case.relations)
    if policy_id is None and verdict != "withdraw" and not required.allows(reviewer):
        names = ", ".join(required.reviewers or ()) or "nobody: its lists have no name in common"
        raise DecisionRefused(
            f"{case.name}: {reviewer} is not among its reviewers ({names})", "one of them must decide"
        )
    decision = replace(unsigned, signature=signer.sign(unsigned))
    if wrong := case.registry.objection(decision, reviewer):
        raise DecisionRefused(f"{case.name}: {wrong}", f"sign with a key of {reviewer}")
    if decision.id in {placed.record.id for placed in case.decisions}:  # the ledger holds a record once
        raise DecisionRefused(f"{case.name}: {reviewer} decided the same in this very second", "decide again")
    work.add_decision(decision)
    return decision


def _failed_gates(changeset: Changeset) -> str:
    return f"failed its gates ({', '.join(gate.name for gate in changeset.gates if not gate.passed)})"
