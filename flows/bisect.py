"""Bisection: which corrections make a round fail its gates, found by trying the round without some of them.

The search is delta debugging: it ends with a set of which none can be put back. What is tried, and where, is the caller's
matter (`flows.plan`); a trial that was made before a crash is not made again, so a search that is interrupted goes on.

References:
    Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input" (2002): algorithm ddmin, on the set left out.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from flows.explain import Judged, explain, failing_cases
from ledger.records import CaseResult, CaseRow, Changeset, Gate, Metric, Shown
from nse.evaluation.gates import OF_CORRECTIONS, kind_of

Cures = Callable[[Sequence[str]], bool]
"""Tells whether the round passes its gates without these corrections."""
LEFT_OUT, UNDECIDED, NOTHING = "left out ", "undecided", "bisection"
"""Names in a changeset's provenance: of each culprit (with its id), of the set that holds one, of a search that found nothing."""
EVIDENCE = 3
"""Failing cases of each gate that are kept as evidence against a culprit."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a search came to.

    Attributes:
        corrections: The round passes without these; all of the round if no smaller set was found.
        proven: Whether each of them is at fault: the round fails when it is put back. If not, the solves were spent.
        solves: Rounds that were tried.
    """

    corrections: tuple[str, ...]
    proven: bool
    solves: int

    @property
    def at_fault(self) -> tuple[str, ...]:
        """The culprits, where it is proven that they are."""
        return self.corrections if self.proven else ()


@dataclass(frozen=True, slots=True)
class Search(Shown):
    """A search as it is kept in the draft of its round.

    Attributes:
        with_it: By culprit the plan that fails with it, and passes without it.
        undecided: Corrections of which at least one is at fault: the solves were spent before it was known which.
        solves: Rounds that were tried.
    """

    with_it: dict[str, str]
    undecided: list[str]
    solves: int

    @classmethod
    def of(cls, found: Found, with_it: Mapping[str, str], size: int) -> "Search":
        """What was found in a round of that size."""
        smaller = len(found.corrections) < size and not found.proven
        return cls(dict(with_it), list(found.corrections) if smaller else [], found.solves)


@dataclass(frozen=True, slots=True)
class LeftOut(Shown):
    """A correction that a round left out because its gates failed with it.

    Attributes:
        correction_id: It.
        evidence: The gates that failed with it, in one line.
        cases: What was asked with it in the weights and answered wrong; of kind `<kind> with <id>`, by head and candidate.
    """

    correction_id: str
    evidence: str
    cases: tuple[CaseRow, ...]

    @property
    def cases_with_it(self) -> tuple[CaseRow, ...]:
        """Those of the candidate."""
        return tuple(case for case in self.cases if case.phase == "candidate")


class _SpentError(Exception):
    """The solves are spent."""


class _Trials:
    """Asks each set once, and counts."""

    def __init__(self, cures: Cures, solves: int) -> None:
        self._cures, self._solves = cures, solves
        self._known: dict[frozenset[str], bool] = {}

    @property
    def made(self) -> int:
        return len(self._known)

    def __call__(self, without: Sequence[str]) -> bool:
        key = frozenset(without)
        if key not in self._known:
            if self.made >= self._solves:
                raise _SpentError
            self._known[key] = self._cures(without)
        return self._known[key]


def search(corrections: Sequence[str], cures: Cures, *, solves: int, suspects: Collection[str] = ()) -> Found:
    """Finds a small set without which the round passes, and none of which can be put back.

    Args:
        corrections: Those of the round that failed, the likeliest culprits first.
        cures: Makes one trial: a solve and an evaluation.
        solves: Most trials.
        suspects: A set to try first, if it is not all of them.
    """
    trials, found = _Trials(cures, solves), list(corrections)
    try:
        first = [identity for identity in corrections if identity in suspects]
        if 0 < len(first) < len(found) and trials(first):
            found = first
        parts = 2
        while len(found) > 1:
            chunks = _split(found, parts)
            smaller = next((chunk for chunk in chunks if trials(chunk)), None)
            if smaller is not None:
                found, parts = smaller, 2
                continue
            rests = ([i for i in found if i not in chunk] for chunk in chunks) if parts > 2 else iter(())
            smaller = next((rest for rest in rests if trials(rest)), None)
            if smaller is not None:
                found, parts = smaller, max(parts - 1, 2)
                continue
            if parts == len(found):
                break
            parts = min(2 * parts, len(found))
    except _SpentError:
        return Found(tuple(found), proven=False, solves=trials.made)
    return Found(tuple(found), proven=len(found) < len(corrections), solves=trials.made)


def _split(items: Sequence[str], parts: int) -> list[list[str]]:
    """Consecutive parts of nearly the same size."""
    bounds = [len(items) * part // parts for part in range(parts + 1)]
    return [list(items[start:end]) for start, end in pairwise(bounds)]


def curable(gates: Sequence[Gate], metrics: Sequence[Metric]) -> bool:
    """Whether leaving corrections out may help: not if a gate on what the model knew before fails at the head as well."""
    head = {metric.name: metric.value for metric in metrics if metric.phase == "head"}
    for gate in gates:
        value = head.get(gate.name)
        if gate.passed or kind_of(gate.name) in OF_CORRECTIONS or value is None:
            continue
        if not (value >= gate.bound if gate.op == ">=" else value <= gate.bound):
            return False
    return True


def suspicion(evidence: Judged, subjects: Mapping[str, str]) -> Counter[str]:
    """How many failing cases of gates that failed speak against each correction; those that have none are left out.

    A case speaks against the correction that it belongs to, and against those whose subject it asks about.

    Args:
        evidence: Of the round.
        subjects: Of its corrections, by id.
    """
    failing = [case for gate in evidence.gates if not gate.passed for case in failing_cases(gate, evidence.cases)]
    return Counter(
        identity
        for case in failing
        for identity, subject in subjects.items()
        if case.case_id == identity or subject in case.prompt
    )


def narrowed_by(
    changeset: Changeset, search: Search, with_it: Mapping[str, Judged], results: Sequence[CaseResult]
) -> Changeset:
    """The changeset of a round with what was found out about those that it lacks.

    Culprits are among its results as skipped: they leave the queue when it is applied, and come back if it goes stale. The why is
    in its provenance and its cases. Of a set that holds a culprit nothing is recorded but its ids: it waits for the next round.

    Args:
        changeset: The round without them; or the whole one, if nothing was found.
        search: What was found.
        with_it: By culprit the evidence of the round that fails with it.
        results: Of the culprits.
    """
    told = {f"{LEFT_OUT}{identity}": _in_words(judged, changeset.gates) for identity, judged in with_it.items()}
    after = f"after {search.solves} rounds that were tried"
    if search.undecided:
        told[UNDECIDED] = (
            f"the gates fail with these, {after} it is not known with which: {', '.join(search.undecided)}"
        )
    elif not with_it:
        told[NOTHING] = f"no smaller set of corrections at fault was found {after}"
    names = [f"{identity[:12]} ({_failed(judged)})" for identity, judged in with_it.items()]
    reason = changeset.reason
    if names:
        reason += f"; left out, for the gates fail with it: {', '.join(names)}"
    if search.undecided:
        reason += f"; {len(search.undecided)} wait, for the gates fail with some of them"
    cases = [row for identity, judged in with_it.items() for row in _evidence_against(identity, judged)]
    return replace(
        changeset,
        id="",
        results=(*changeset.results, *results),
        cases=(*changeset.cases, *cases),
        provenance=changeset.provenance | told,
        reason=reason,
    )


def left_out(changeset: Changeset) -> list[LeftOut]:
    """The corrections that a changeset left out because its gates failed with them, with the evidence."""
    return [
        LeftOut(
            identity := name.removeprefix(LEFT_OUT),
            evidence,
            tuple(case for case in changeset.cases if case.kind.endswith(_kind_with("", identity))),
        )
        for name, evidence in sorted(changeset.provenance.items())
        if name.startswith(LEFT_OUT)
    ]


def _failed(with_it: Judged) -> str:
    return ", ".join(dict.fromkeys(gate.name for gate in with_it.gates if not gate.passed))


def _in_words(with_it: Judged, without: Sequence[Gate]) -> str:
    """The gates that failed with a correction, and their values without it, in one line that holds no text of corrections."""
    values = {(gate.name, gate.op): gate.value for gate in without}
    told = []
    for gate in with_it.gates:
        if not gate.passed:
            now = values.get((gate.name, gate.op))
            other = "" if now is None else f", {now:.4g} without it"
            told.append(f"{gate.name} {gate.value:.4g} with it, {gate.op} {gate.bound:g} demanded{other}")
    return "; ".join(told)


def _evidence_against(correction_id: str, with_it: Judged) -> list[CaseRow]:
    """The worst cases of a round that fails with a correction, as rows for the record of the round without it.

    Their kind is `<kind> with <first digits of the correction's id>`; they belong to the cases that they are, so that the text of
    a correction that is erased is erased here too.
    """
    rows = {(row.kind, row.case_id, row.prompt, row.expected, row.phase): row for row in with_it.cases}
    found: dict[tuple[str, ...], CaseRow] = {}
    for explanation in explain(with_it, most=EVIDENCE):
        for case in explanation.cases:
            for phase in ("head", "candidate"):
                key = (case.kind, case.case_id, case.prompt, case.expected, phase)
                if key in rows:
                    found[key] = replace(rows[key], kind=_kind_with(case.kind, correction_id))
    return list(found.values())


def _kind_with(kind: str, correction_id: str) -> str:
    return f"{kind} with {correction_id[:12]}"
