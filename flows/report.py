"""A changeset as a page of Markdown: what, who, answers before and after, metrics, gates, provenance."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from flows.bisect import LEFT_OUT, NOTHING, UNDECIDED, left_out
from flows.explain import NOT_MEASURED, WARNING, explain
from ledger.records import CaseRow, Changeset, Correction, Metric
from ledger.views import ChangesetView


@dataclass(frozen=True, slots=True)
class Belief:
    """One fact before and after a changeset, by the question it is about."""

    subject: str
    relation: str
    old: str
    new: str
    before: str
    after: str
    probability_before: float
    probability_after: float
    status: str
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for `--json`."""
        return {name: getattr(self, name) for name in self.__slots__}


def beliefs(view: ChangesetView) -> list[Belief]:
    """What the head answered and what the candidate answers to each correction of a changeset."""
    changeset = view.changeset
    asked: dict[tuple[str, str], CaseRow] = {}
    for case in changeset.cases:
        if case.kind == "efficacy":
            asked.setdefault((case.case_id, case.phase), case)
    statuses = {result.correction_id: result.status for result in changeset.results}
    found = []
    for correction in view.corrections:
        before, after = asked.get((correction.id, "head")), asked.get((correction.id, "candidate"))
        if before is not None and after is not None:
            found.append(_belief(correction, before, after, statuses.get(correction.id, "")))
    return found


def _belief(correction: Correction, before: CaseRow, after: CaseRow, status: str) -> Belief:
    return Belief(
        subject=correction.subject,
        relation=correction.relation or correction.prompt_template,
        old=correction.target_true or "",
        new=correction.target_new,
        before=before.generated,
        after=after.generated,
        probability_before=before.probability,
        probability_after=after.probability,
        status=status,
        passed=after.passed,
    )


def metric_pairs(metrics: Sequence[Metric]) -> list[tuple[str, float | None, float | None]]:
    """(name, of the head, of the candidate) in the order of the candidate's."""
    values = {(m.name, m.phase): m.value for m in metrics}
    names = dict.fromkeys(m.name for m in sorted(metrics, key=lambda m: m.phase))
    return [(name, values.get((name, "head")), values.get((name, "candidate"))) for name in names]


def remarks(changeset: Changeset) -> dict[str, str]:
    """What is to be told beside the gates that decide: those that only warn, were not measured, or fail for no known fault."""
    told = (WARNING, NOT_MEASURED, UNDECIDED, NOTHING)
    return {name: value for name, value in sorted(changeset.provenance.items()) if name.startswith(told)}


def inputs(changeset: Changeset) -> dict[str, str]:
    """What a changeset was made of: its provenance without what is told elsewhere."""
    elsewhere = remarks(changeset)
    named = sorted(changeset.provenance.items())
    return {name: value for name, value in named if name not in elsewhere and not name.startswith(LEFT_OUT)}


def name_of(view: ChangesetView, correction: str) -> str:
    """What a reader knows a correction by; of one that was erased, the first digits of its id."""
    names = (f"{c.subject}: {c.target_new}" for c in view.corrections if c.id == correction and not c.erased)
    return next(names, correction[:12])


def report(view: ChangesetView) -> str:
    """The page."""
    changeset = view.changeset
    parts = [
        f"# Changeset #{changeset.number}: {_plain(changeset.reason)}",
        _facts(view),
        "## Corrections" if view.corrections else "",
        _corrections(view),
        "## Gates",
        _table(
            ("metric", "value", "bound", "passed"),
            (
                (g.name, f"{g.value:.4g}", f"{g.op} {g.bound:g}", "yes" if g.passed else "**no**")
                for g in changeset.gates
            ),
        ),
        "\n".join(f"- {_plain(name)}: {_plain(value)}" for name, value in remarks(changeset).items()),
        *_faults(view),
        "## Metrics",
        _table(
            ("metric", "head", "candidate"),
            ((name, _number(old), _number(new)) for name, old, new in metric_pairs(changeset.metrics)),
        ),
        "## Provenance",
        _table(("input", "value"), ((name, f"`{value}`") for name, value in inputs(changeset).items())),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _faults(view: ChangesetView) -> list[str]:
    """Which cases made gates fail, and which corrections were left out because gates failed with them."""
    parts = []
    for told in explain(view.changeset):
        rows = [(case.prompt, case.expected, case.before or "", case.after) for case in told.cases]
        parts += [f"### {told.gate.name}: {told.total} cases", _table(("prompt", "expected", "before", "after"), rows)]
    if without := left_out(view.changeset):
        names = [(name_of(view, fault.correction_id), fault) for fault in without]
        failing = [(name, fault.correction_id[:12], fault.evidence) for name, fault in names]
        wrong = [(name, c.prompt, c.expected, c.generated) for name, fault in names for c in fault.cases_with_it]
        parts += ["## Left out", _table(("correction", "id", "the gates with it"), failing)]
        parts.append(_table(("with", "prompt", "expected", "answer"), wrong) if wrong else "")
    return parts


def _facts(view: ChangesetView) -> str:
    changeset = view.changeset
    lines = [
        f"- kind: {changeset.kind}; status: **{view.status}**",
        f"- planned by {_plain(changeset.planned_by)} at {changeset.planned_at}",
        f"- version `{changeset.parent_version[:12]}` -> `{changeset.candidate_version[:12]}`",
    ]
    if view.stands_for:
        deltas = ", ".join(f"`{one.sha256[:12]}` of #{one.changeset}" for one in view.stands_for)
        lines.append(f"- one delta that stands for {len(view.stands_for)}: {deltas}")
    lines += [f"- {d.verdict} by {_plain(d.reviewer)} at {d.decided_at}: {_plain(d.reason)}" for d in view.decisions]
    if view.applied is not None:
        lines.append(
            f"- applied by {_plain(view.applied.moved_by)} at {view.applied.moved_at} as v{view.applied.position}"
        )
    return "\n".join(lines)


def _corrections(view: ChangesetView) -> str:
    if view.changeset.kind == "revert":
        rows = [
            (c.subject, c.relation or c.prompt_template, c.target_new, c.target_true or "") for c in view.corrections
        ]
        return _table(("subject", "relation", "object", "before it"), rows) if rows else ""
    return _table(
        ("subject", "relation", "old", "new", "answer before", "answer after", "p(new)", "status"),
        (
            (b.subject, b.relation, b.old, b.new, b.before, b.after, f"{b.probability_after:.2f}", b.status)
            for b in beliefs(view)
        ),
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)


def _plain(text: str) -> str:
    """A text in one line that Markdown shows as it is: it ends no cell, links to nothing, loads nothing and is no HTML."""
    return re.sub(r"\\|\||\](?=[(\[])|<(?=[A-Za-z/!?])", r"\\\g<0>", " ".join(text.split()))
