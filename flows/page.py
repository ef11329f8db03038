"""A changeset as one file of HTML for people: who decided what, what the model says before and after, and on what evidence.

The file loads nothing and runs nothing, and is made of the ledger alone: the same ledger gives the same bytes. Its words are in
`templates/changeset.html`. For places that read Markdown, such as Prefect's UI, there is `report`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from flows import charts
from flows.bisect import left_out
from flows.metrics import NORM, of_candidate, retention_by_age
from flows.report import beliefs, inputs, metric_pairs, name_of, remarks
from ledger.decisions import Case, read_case
from ledger.records import CaseRow, Changeset, Decision, Gate
from ledger.unit_of_work import UnitOfWork
from ledger.views import ChangesetView, show
from nse.evaluation.gates import kind_of

OPEN = 20
"""So many rows of a table are seen at once; the others are folded away."""
MEANING = {
    "proposed": "waits for approval",
    "gate-failed": "cannot be approved: a gate failed",
    "approved": "approved, not in force yet",
    "rejected": "rejected",
    "applied": "applied",
    "stale": "stale: the head moved on before it was applied",
}
KINDS = {
    "efficacy": "The corrections, as they were filed",
    "generalization": "The corrections, in other words",
    "specificity": "Neighbours, which must not change",
    "retention": "Earlier corrections, which must hold",
    "untouched": "Known facts that no correction is about",
    "kept": "Facts that the suite names, which must hold",
    "canary": "Canaries",
    "same_subject": "Other facts of the corrected subjects",
    "distracted": "Neighbours, after the correction was stated",
    "shared_name": "Subjects whose names share a part",
    "near_duplicate": "Subjects whose names differ by little",
    "new_object": "Facts of the new objects",
    "chained": "What follows from the corrections",
    "reversed": "The corrections backwards",
    "running_text": "The corrections within running text",
    "chat": "The corrections as a chat",
    "chat_efficacy": "The corrections, asked in the chat format",
    "chat_generalization": "The corrections, in other words, in the chat format",
    "chat_specificity": "Neighbours, in the chat format",
    "chat_retention": "Earlier corrections, in the chat format",
    "chat_untouched": "Known facts that no correction is about, in the chat format",
    "chat_kept": "Facts that the suite names, in the chat format",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt of the evaluation, of the head and of the candidate."""

    case: CaseRow
    head: CaseRow | None

    @property
    def broke(self) -> bool:
        """Whether the head's answer was right and the candidate's is wrong."""
        return self.head is not None and self.head.passed and not self.case.passed


@dataclass(frozen=True, slots=True)
class Kind:
    """All prompts of one kind: those the candidate fails, what broke first, and the others; and the gates on it that failed."""

    name: str
    meaning: str
    failing: tuple[Asked, ...]
    passing: tuple[Asked, ...]
    gates: tuple[Gate, ...]

    @property
    def asked(self) -> int:
        """How many there are."""
        return len(self.failing) + len(self.passing)

    @property
    def broken(self) -> int:
        """How many of them the head answered and the candidate does not."""
        return sum(asked.broke for asked in self.failing)


@dataclass(frozen=True, slots=True)
class Without:
    """A correction that was left out because gates failed with it: its name, which gates, and what was answered with it."""

    name: str
    evidence: str
    asked: tuple[Asked, ...]


@dataclass(frozen=True, slots=True)
class Compared:
    """One metric of head and candidate, and how long its bars are."""

    name: str
    head: float | None
    candidate: float | None
    bars: tuple[float | None, float | None]


@dataclass(frozen=True, slots=True)
class Signed:
    """A decision, and what is wrong with it: nothing if its signature and its signer are good."""

    decision: Decision
    objections: tuple[str, ...]


def page(work: UnitOfWork, reference: str, *, at: str | None = None) -> str:
    """The page of a changeset ('#3', '3' or a digest prefix).

    Args:
        work: The ledger.
        reference: The changeset.
        at: The time, if approvals shall expire.

    Raises:
        LedgerError: If it names none or several.
    """
    view = show(work, reference)
    changeset, case = view.changeset, read_case(work, view.changeset)
    parent = work.move_of(changeset.parent) if changeset.parent else None
    ages = retention_by_age(work, changeset)
    kinds = kinds_of(changeset)
    figures = of_candidate(changeset.metrics)
    norms = [(_place(name), value or 0.0) for name, value in figures.items() if name.startswith(NORM)]
    return _templates().get_template("changeset.html").render(
        view=view,
        changeset=changeset,
        meaning=MEANING[view.status],
        parent_position=parent.position if parent else 0,
        standing=case.standing(at),
        decisions=_signed(case),
        beliefs=sorted(beliefs(view), key=lambda belief: belief.passed),
        gates=sorted(changeset.gates, key=lambda gate: gate.passed),
        kinds=kinds,
        broken=sum(kind.broken for kind in kinds),
        without=without_of(view),
        remarks=remarks(changeset),
        provenance=inputs(changeset),
        metrics=compared(changeset),
        ages=ages,
        curve=charts.curve(ages) if ages else None,
        norms=charts.bars(norms),
        charts=charts,
    )  # fmt: skip


def kinds_of(changeset: Changeset) -> tuple[Kind, ...]:
    """The cases of a changeset by kind: first those on which a gate failed, then those of which something fails."""
    elsewhere = {case.kind for told in left_out(changeset) for case in told.cases}  # not of this candidate
    asked: dict[str, list[Asked]] = {}
    for one in _asked(changeset.cases):
        if one.case.kind not in elsewhere:
            asked.setdefault(one.case.kind, []).append(one)
    failed = [gate for gate in changeset.gates if not gate.passed]
    kinds = [
        Kind(
            name,
            KINDS.get(name, name.replace("_", " ")),
            tuple(sorted((a for a in own if not a.case.passed), key=lambda a: not a.broke)),
            tuple(a for a in own if a.case.passed),
            tuple(gate for gate in failed if kind_of(gate.name) == name),
        )
        for name, own in asked.items()
    ]
    return tuple(sorted(kinds, key=lambda kind: (not kind.gates, not kind.failing)))


def without_of(view: ChangesetView) -> list[Without]:
    """What a changeset left out, and why."""
    return [
        Without(name_of(view, told.correction_id), told.evidence, tuple(_asked(told.cases)))
        for told in left_out(view.changeset)
    ]


def compared(changeset: Changeset) -> list[Compared]:
    """The metrics in their order; shares have bars against 1, other figures against the greater of the two."""
    found = []
    for name, head, candidate in metric_pairs(changeset.metrics):
        if name.startswith(NORM):
            continue
        scale = max(1.0, *(value for value in (head, candidate) if value is not None))
        lengths = (charts.length(head, scale), charts.length(candidate, scale))
        found.append(Compared(name, head, candidate, lengths))
    return found


def _asked(cases: Sequence[CaseRow]) -> list[Asked]:
    head = {(c.kind, c.case_id, c.prompt, c.expected): c for c in cases if c.phase == "head"}
    return [Asked(c, head.get((c.kind, c.case_id, c.prompt, c.expected))) for c in cases if c.phase == "candidate"]


def _place(name: str) -> str:
    place = name.removeprefix(NORM)
    return f"layer {place}" if place.isdecimal() else place


def _signed(case: Case) -> list[Signed]:
    return [Signed(placed.record, tuple(case.objections(placed))) for placed in case.decisions]


@cache
def _templates() -> Environment:
    found = Environment(
        loader=PackageLoader("flows"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    found.filters |= {"number": _number, "change": _change, "fold": _fold}
    return found


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _change(pair: Compared) -> str:
    if pair.head is None or pair.candidate is None:
        return ""
    difference = pair.candidate - pair.head
    return f"{difference:+.3g}" if difference else "same"


def _fold(rows: Sequence[object]) -> tuple[Sequence[object], Sequence[object]]:
    """The rows that are seen at once, and those that are folded away: never just a few."""
    return (rows, ()) if len(rows) <= OPEN + 5 else (rows[:OPEN], rows[OPEN:])
