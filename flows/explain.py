"""Why a gate failed: the cases behind its metric, with what the head and the candidate answered."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ledger.records import CaseRow, Gate, Shown
from nse.evaluation.gates import kind_of

WARNING = "warning: "
"""Begins the name, in a changeset's provenance, of a gate that only warns and failed."""
NOT_MEASURED = "not measured: "
"""Begins the name, in a changeset's provenance, of a gate that does not apply."""
MOST = 10
"""Most cases that are shown of one gate."""


class Judged(Protocol):
    """A changeset or the evidence for one."""

    @property
    def gates(self) -> tuple[Gate, ...]:
        """The gates."""
        ...

    @property
    def cases(self) -> tuple[CaseRow, ...]:
        """The answers of head and candidate."""
        ...


@dataclass(frozen=True, slots=True)
class FailingCase(Shown):
    """One question of a gate that failed.

    Attributes:
        kind: What it measures.
        case_id: The correction, known fact or canary that it belongs to.
        prompt: The question.
        expected: The right answer.
        before: What the head says; None if it was not asked.
        after: What the candidate says.
        probability_before: p(expected) of the head.
        probability_after: p(expected) of the candidate.
        broken: Whether the head had it right.
    """

    kind: str
    case_id: str
    prompt: str
    expected: str
    before: str | None
    after: str
    probability_before: float | None
    probability_after: float
    broken: bool


@dataclass(frozen=True, slots=True)
class Explanation(Shown):
    """A gate that failed, how many cases speak against it, and the first of them; none for a metric that has no cases."""

    gate: Gate
    total: int
    cases: tuple[FailingCase, ...]


def explain(evidence: Judged, *, most: int = MOST) -> list[Explanation]:
    """Which cases made each gate fail: first those that the head had right, then those whose probability fell most.

    The record says of a case what was generated and p(expected), not p of another object: of a gate by probability or argmax
    the cases are those whose p(expected) is below one half. Of a gate that bounds a share from above they are those that
    passed.
    """
    found = []
    for gate in evidence.gates:
        if not gate.passed:
            cases = failing_cases(gate, evidence.cases)
            found.append(Explanation(gate, len(cases), tuple(cases[:most])))
    return found


def failing_cases(gate: Gate, cases: Sequence[CaseRow]) -> list[FailingCase]:
    """The cases that speak against a gate, in the order of `explain`."""
    kind, by_answer = kind_of(gate.name), "_generation" in gate.name
    own = [case for case in cases if kind is not None and case.kind == kind]
    before = {(case.case_id, case.prompt, case.expected): case for case in own if case.phase == "head"}

    def right(case: CaseRow) -> bool:
        good = case.passed if by_answer else case.probability >= 0.5
        return good if gate.op == ">=" else not good

    found = []
    for case in own:
        if case.phase == "candidate" and not right(case):
            head = before.get((case.case_id, case.prompt, case.expected))
            found.append(_failing(case, head, broken=head is not None and right(head)))
    return sorted(found, key=lambda case: (not case.broken, case.probability_after - (case.probability_before or 0.0)))


def _failing(case: CaseRow, head: CaseRow | None, *, broken: bool) -> FailingCase:
    return FailingCase(
        kind=case.kind,
        case_id=case.case_id,
        prompt=case.prompt,
        expected=case.expected,
        before=head.generated if head is not None else None,
        after=case.generated,
        probability_before=head.probability if head is not None else None,
        probability_after=case.probability,
        broken=broken,
    )
