"""Commands about changesets: plan, show, approve, reject, withdraw, apply."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.commands.output import ERR, ByOption, JsonOption, PrefectOption, WorkspaceOption, emit, remark, say, table

if TYPE_CHECKING:
    from flows.bisect import LeftOut
    from flows.explain import Explanation, FailingCase
    from flows.report import Belief
    from flows.workspace import Workspace
    from ledger.views import ChangesetView

ReasonOption = Annotated[str, typer.Option("--reason", "-m", help="Why.")]


def plan(
    workspace: WorkspaceOption = None,
    by: ByOption = None,
    reason: ReasonOption = "",
    prefect: PrefectOption = False,
    as_json: JsonOption = False,
) -> None:
    """Plan a round: edit, evaluate, store and propose a changeset. Exit 1 if its gates fail.

    Where `round.consolidate_every` in params.yaml makes one due, it plans a consolidation instead.
    """
    from flows.workspace import open_workspace

    opened = open_workspace(workspace)
    person = opened.person(by)
    if prefect:
        from flows.environment import prepare

        prepare(opened.root)
        from flows.deploy import nightly_flow

        outcome = nightly_flow(str(opened.root), person, reason)
        number, repeated = outcome["changeset"], outcome["repeated"]
    else:
        from flows.consolidate import run_night
        from flows.progress import shown
        from flows.session import Session

        with shown(ERR) as progress:
            session = Session(opened)
            planned = run_night(session, by=person, progress=progress, reason=reason, foretell=remark)
        number, repeated = (planned.changeset.number if planned.changeset else None), planned.repeated
    if number is None:
        emit({"changeset": None}) if as_json else say("nothing pending")
        return
    proposed(opened, number, repeated=repeated, as_json=as_json)


def show(
    reference: Annotated[str, typer.Argument(help="A changeset: 3, #3, or digits of its id.")],
    workspace: WorkspaceOption = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the report as Markdown.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show a changeset with its evidence."""
    from flows.report import report
    from flows.workspace import open_workspace

    view = _view(open_workspace(workspace), reference)
    if markdown and not as_json:
        say(report(view))
        return
    _print(view, as_json=as_json)


def approve(
    reference: Annotated[str | None, typer.Argument(help="A changeset; default: the one that waits.")] = None,
    reason: ReasonOption = "",
    by: ByOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Approve a proposed changeset, by name and with a reason."""
    _decide(reference, "approve", reason, by, workspace=workspace, as_json=as_json)


def reject(
    reference: Annotated[str | None, typer.Argument(help="A changeset; default: the one that waits.")] = None,
    reason: ReasonOption = "",
    by: ByOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Reject a proposed changeset, by name and with a reason; its corrections are not planned again."""
    _decide(reference, "reject", reason, by, workspace=workspace, as_json=as_json)


def withdraw(
    reference: Annotated[str | None, typer.Argument(help="A changeset; default: the one that you approved.")] = None,
    reason: ReasonOption = "",
    by: ByOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take back your approval of a changeset that is not applied yet, with a reason."""
    _decide(reference, "withdraw", reason, by, workspace=workspace, as_json=as_json)


def apply(
    reference: Annotated[str | None, typer.Argument(help="A changeset; default: the one that is approved.")] = None,
    by: ByOption = None,
    workspace: WorkspaceOption = None,
    prefect: PrefectOption = False,
    as_json: JsonOption = False,
) -> None:
    """Put an approved changeset in force, after checking again all that it rests on."""
    from flows.workspace import open_workspace

    opened = open_workspace(workspace)
    person = opened.person(by)
    if prefect:
        from flows.environment import prepare

        prepare(opened.root)
        from flows.deploy import apply_flow

        outcome = apply_flow(str(opened.root), reference or "", person)
        number, already = outcome["changeset"], bool(outcome["already"])
    else:
        from flows.apply import apply as put_in_force
        from flows.session import Session

        applied = put_in_force(Session(opened), reference, by=person)
        number, already = applied.changeset.number, applied.already
    view = _view(opened, f"#{number}")
    if as_json:
        emit({"changeset": number, "already": already, "applied": view.applied and view.applied.to_dict()})
    elif view.applied is not None:
        when = f"at {view.applied.moved_at} by {view.applied.moved_by}"
        done = f"was applied {when}, as v{view.applied.position}: nothing to do" if already else "is in force"
        say(f"changeset #{number} {done}: v{view.applied.position} ({view.applied.version[:12]})")


def _decide(
    reference: str | None,
    verdict: Literal["approve", "reject", "withdraw"],
    reason: str,
    by: str | None,
    *,
    workspace: Path | None,
    as_json: bool,
) -> None:
    from flows.decide import decide
    from flows.workspace import open_workspace

    opened = open_workspace(workspace)
    made = decide(opened, reference, verdict, reviewer=opened.person(by), reason=reason)
    for note in made.notes:
        remark(f"note: {note}")
    number, standing = made.changeset.number, made.standing
    if as_json:
        emit({"changeset": number, "decision": made.decision.to_dict(), "approved": standing.approved})
        return
    say(f"changeset #{number}: {verdict} by {made.decision.reviewer}")
    if standing.approved:
        say(f"next: nse apply {number}")
    elif made.missing:
        say(f"changeset #{number} {made.missing}")


def _view(opened: "Workspace", reference: str) -> "ChangesetView":
    from ledger import views

    with opened.ledger().read() as work:
        return views.show(work, reference)


def proposed(opened: "Workspace", number: int | None, *, repeated: bool = False, as_json: bool) -> None:
    """Prints a new proposal, or the same that failed before (`repeated`); exits with 1 if its gates failed."""
    if repeated:
        remark(f"note: nothing has changed since #{number} failed its gates: reject it, or change what fails")
    view = _view(opened, f"#{number}")
    _print(view, as_json=as_json)
    if not view.changeset.gate_passed:
        raise typer.Exit(1)
    if not as_json:
        say(f"next: another person runs `nse approve {number} --reason TEXT`, then `nse apply {number}`")


def _print(view: "ChangesetView", *, as_json: bool) -> None:
    from flows.bisect import left_out
    from flows.explain import explain
    from flows.report import beliefs, metric_pairs

    changeset = view.changeset
    failing, without = explain(changeset), left_out(changeset)
    if as_json:
        shown: dict[str, Sequence[Belief | Explanation | LeftOut]]
        shown = {"beliefs": beliefs(view), "failing": failing, "left_out": without}
        emit({**view.to_dict(), **{name: [one.to_dict() for one in found] for name, found in shown.items()}})
        return
    say(f"changeset #{changeset.number} ({changeset.kind}, {view.status}): {changeset.reason}")
    say(f"planned by {changeset.planned_by} at {changeset.planned_at}, on {changeset.parent_version[:12]}")
    for decision in view.decisions:
        by = decision.reviewer if decision.policy_id is None else "the policy, without a person"
        say(f"{decision.verdict} by {by} at {decision.decided_at}: {decision.reason}")
    if view.stands_for:
        deltas = ", ".join(f"{one.sha256[:12]} (#{one.changeset})" for one in view.stands_for)
        say(f"stands for {len(view.stands_for)} deltas: {deltas}")
    if found := beliefs(view):
        header = ("subject", "relation", "old", "new", "before", "after", "p(new)", "status")
        table("beliefs", header, [_belief_row(belief) for belief in found])
    elif view.corrections:
        out = [(c.id[:12], c.subject, c.relation or c.prompt_template, c.target_new) for c in view.corrections]
        table("goes out of or comes back in force", ("id", "subject", "relation", "object"), out)
    rows = [(name, _number(old), _number(new)) for name, old, new in metric_pairs(changeset.metrics)]
    table("metrics", ("metric", "head", "candidate"), rows)
    gates = [(g.name, _number(g.value), f"{g.op} {g.bound:g}", "yes" if g.passed else "NO") for g in changeset.gates]
    table("gates", ("metric", "value", "bound", "passed"), gates)
    _print_faults(view, failing, without)


def _print_faults(view: "ChangesetView", failing: "list[Explanation]", without: "list[LeftOut]") -> None:
    """Prints why gates failed, which corrections were left out for it, and what else is to be told."""
    from flows.report import name_of, remarks

    for name, value in remarks(view.changeset).items():
        say(f"{name}: {value}")
    for told in failing:
        cases = [(c.prompt, c.expected, c.before or "", c.after, _change(c)) for c in told.cases]
        more = f" ({len(cases)} of {told.total})" if told.total > len(cases) else ""
        if cases:
            table(f"why {told.gate.name} failed{more}", ("prompt", "expected", "before", "after", "p(expected)"), cases)
    for fault in without:
        say(f"left out: {fault.correction_id[:12]} ({name_of(view, fault.correction_id)}): {fault.evidence}")
        rows = [(c.kind.partition(" with ")[0], c.prompt, c.expected, c.generated) for c in fault.cases_with_it]
        if rows:
            table("with it", ("kind", "prompt", "expected", "answer"), rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _change(case: "FailingCase") -> str:
    before = "" if case.probability_before is None else f"{case.probability_before:.2f} -> "
    return f"{before}{case.probability_after:.2f}"


def _belief_row(belief: "Belief") -> tuple[str, ...]:
    p = f"{belief.probability_before:.2f} -> {belief.probability_after:.2f}"
    told = (belief.old, belief.new, belief.before, belief.after)
    return (belief.subject, belief.relation, *told, p, belief.status)
