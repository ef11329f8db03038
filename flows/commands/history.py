"""Commands that ask about the past: log, blame, diff, approvals, pending, edited, touched, ask."""

from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.output import (
    ERR,
    Cell,
    CsvOption,
    JsonOption,
    WorkspaceOption,
    listing,
    say,
    to_programs,
)

if TYPE_CHECKING:
    from ledger.queries import Decided
    from ledger.records import Correction
    from ledger.views import Blame

SinceOption = Annotated[str | None, typer.Option("--since", help="Not what was before this date or time (UTC).")]
LastOption = Annotated[int, typer.Option("--last", "-n", help="How many at most; 0: all.", min=0)]
VERSION = "head, base, v3, #5, a date, or digits of a version's digest"
CORRECTION = ("correction", "subject", "relation", "object", "source", "submitter", "filed_at")


def log(
    workspace: WorkspaceOption = None,
    last: LastOption = 200,
    since: SinceOption = None,
    kind: Annotated[
        list[str] | None,
        typer.Option("--kind", help="Only this: filed, planned, decided, applied ... May be repeated."),
    ] = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Show what happened, oldest first: the newest events, or those since a date."""
    from flows.workspace import open_workspace
    from ledger import queries

    opened = open_workspace(workspace)
    with opened.ledger().read() as work:
        events = queries.log(work, opened.model, last=last or None, since=_begin(since), kinds=kind or ())
    header = ("sequence", "at", "kind", "by", "ref", "text")
    rows = [(e.sequence, e.at, e.kind, e.by, e.ref, e.text) for e in events]
    if to_programs([event.to_dict() for event in events], header, rows, as_json=as_json, as_csv=as_csv):
        return
    for e in events:
        say(f"{e.at}  {e.kind:<11}  {e.ref[:12]:<12}  {e.by + ': ' if e.by else ''}{e.text}")
    if last and len(events) == last:
        ERR.print(f"the newest {last} only: --last {10 * last} shows more, --last 0 all", markup=False)


def blame(
    subject: Annotated[str, typer.Argument(help="The subject, in any letter case.")],
    relation: Annotated[str | None, typer.Argument(help="Only this relation.")] = None,
    at: Annotated[str | None, typer.Option(help=f"Only what was in force then: {VERSION}.")] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Show who changed what about a subject, when, why, on whose word, and whether it is in force."""
    from flows.workspace import open_workspace
    from ledger import views

    opened = open_workspace(workspace)
    with opened.ledger().read() as work:
        head = views.resolve_version(work, opened.model, at) if at else None
        found = views.blame(work, opened.model, subject, relation, at=head)
    header = (
        *CORRECTION,
        "reason",
        "status",
        "in_force",
        "changeset",
        "approved_by",
        "version",
        "applied_at",
        "reverted_by",
    )
    rows = [_blame_row(entry) for entry in found]
    if to_programs([entry.to_dict() for entry in found], header, rows, as_json=as_json, as_csv=as_csv):
        return
    if not found:
        then = f" in force at {at}" if at else ""
        say(f"no correction{then} is about {subject!r}" + (f", {relation}" if relation else ""))
    for entry in found:
        _print_blame(entry)


def _blame_row(entry: "Blame") -> tuple[Cell, ...]:
    approved = "; ".join(decision.reviewer for decision in entry.decisions if decision.verdict == "approve")
    move = entry.applied
    where: tuple[Cell, Cell] = (f"v{move.position}", move.moved_at) if move else (None, None)
    last = None if entry.reverted_by is None else f"#{entry.reverted_by}"
    first = None if entry.changeset is None else f"#{entry.changeset}"
    c = entry.correction
    return (*_correction_row(c), c.reason, entry.status, entry.in_force, first, approved, *where, last)


def _correction_row(c: "Correction") -> tuple[Cell, ...]:
    return (c.id, c.subject, c.relation or c.prompt_template, c.target_new, c.source, c.submitter, c.filed_at)


def _print_blame(entry: "Blame") -> None:
    c = entry.correction
    say(f"{c.id[:12]}  {c.subject}, {c.relation or c.prompt_template}: {c.target_true or '?'} -> {c.target_new}")
    effective = f", effective {c.effective_date}" if c.effective_date else ""
    say(f"  filed by {c.submitter} at {c.filed_at} ({c.file_name} line {c.line})")
    say(f"  source: {c.source or 'none'}{effective}")
    if c.reason:
        say(f"  reason: {c.reason}")
    if entry.changeset is not None:
        said = "; ".join(f"{d.verdict} by {d.reviewer} at {d.decided_at}: {d.reason}" for d in entry.decisions)
        say(f"  changeset #{entry.changeset}: {said or 'not decided'}")
    if entry.applied is not None:
        say(f"  in force from v{entry.applied.position} ({entry.applied.version[:12]}) at {entry.applied.moved_at}")
    if entry.reverted_by is not None:
        say(f"  reverted by #{entry.reverted_by}")
    say(f"  now: {entry.status}{', in force' if entry.status == 'active' else ''}")


def diff(
    a: Annotated[str, typer.Argument(help=f"A version: {VERSION}; or two: A..B.")],
    b: Annotated[str | None, typer.Argument(help="Another; default: head.")] = None,
    weights: Annotated[bool, typer.Option("--weights", help="Also how far each rewritten weight moved.")] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Show which corrections came in force and went out of force between two versions. With --weights, CSV is of weights."""
    from flows.workspace import open_workspace
    from ledger import views

    opened = open_workspace(workspace)
    if b is None and ".." in a:
        a, b = a.split("..", 1)
    with opened.ledger().read() as work:
        found = views.diff(work, opened.model, a or "base", b or "head")
    header = ("change", *CORRECTION)
    marked = [("+", c) for c in found.came_in_force] + [("-", c) for c in found.went_out_of_force]
    rows: list[tuple[Cell, ...]] = [(sign, *_correction_row(c)) for sign, c in marked]
    title = f"v{found.a.position} to v{found.b.position}"
    if not weights:
        listing(title, found.to_dict(), header, rows, as_json=as_json, as_csv=as_csv)
        return
    from flows.progress import shown
    from flows.session import Session
    from flows.weights import weight_diffs

    with shown(ERR) as progress:
        moved = weight_diffs(Session(opened), found.a, found.b, progress=progress)
    names = ("weight", "layer", "relative")
    weight_rows = [(m.name, m.layer, m.relative) for m in moved]
    value = {**found.to_dict(), "weights": [m.to_dict() for m in moved]}
    if not to_programs(value, names, weight_rows, as_json=as_json, as_csv=as_csv):
        listing(title, value, header, rows, as_json=False, as_csv=False)
        listing("||W_b - W_a|| / ||W_base||", value, names, weight_rows, as_json=False, as_csv=False)


def approvals(
    ref: Annotated[
        str | None, typer.Argument(help="A changeset (#3), a correction (digits of its id) or a subject; default: all.")
    ] = None,
    by: Annotated[str | None, typer.Option("--by", help="Only decisions of this person.")] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Show who approved or rejected what, when and why."""
    from flows.workspace import open_workspace
    from ledger import queries

    opened = open_workspace(workspace)
    with opened.ledger().read() as work:
        found = queries.approvals(work, opened.model, ref, by=by)
    header = ("changeset", "kind", "planned_by", "verdict", "reviewer", "decided_at", "reason", "key", "in_force_as")
    rows = [_decided_row(entry) for entry in found]
    listing("decisions", [e.to_dict() for e in found], header, rows, as_json=as_json, as_csv=as_csv)


def _decided_row(entry: "Decided") -> tuple[Cell, ...]:
    d = entry.decision
    what = (f"#{entry.changeset}", entry.kind, entry.planned_by)
    applied = None if entry.applied is None else f"v{entry.applied}"
    return (*what, d.verdict, d.reviewer, d.decided_at, d.reason, d.key_id, applied)


def pending(
    since: SinceOption = None,
    last: Annotated[int, typer.Option("--limit", "-n", help="How many at most; 0: all.", min=0)] = 100,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Show which corrections wait, for what and since when, the oldest first."""
    from flows.workspace import open_workspace
    from ledger import queries

    opened = open_workspace(workspace)
    with opened.ledger().read() as work:
        found = queries.pending(work, opened.model, since=_begin(since), limit=last or None)
    rows = [(*_correction_row(entry.correction), entry.status) for entry in found.entries]
    title = f"{len(rows)} of {found.total} corrections that wait"
    listing(title, found.to_dict(), (*CORRECTION, "status"), rows, as_json=as_json, as_csv=as_csv)


def edited(
    method: Annotated[str, typer.Option("--method", help="The method, as params.yaml names it.")],
    since: SinceOption = None,
    last: LastOption = 100,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Show which corrections a method wrote into the weights, the newest first."""
    from flows.workspace import open_workspace
    from ledger import queries

    opened = open_workspace(workspace)
    with opened.ledger().read() as work:
        found = queries.edited(work, opened.model, method, since=_begin(since), limit=last or None)
    rows = [
        (*_correction_row(e.correction), f"#{e.changeset}", e.status, f"v{e.position}", e.at) for e in found.entries
    ]
    header = (*CORRECTION, "changeset", "written", "version", "applied_at")
    title = f"{len(rows)} of {found.total} corrections written by {method}"
    listing(title, found.to_dict(), header, rows, as_json=as_json, as_csv=as_csv)


def touched(
    layer: Annotated[int, typer.Option("--layer", help="Number of the layer.")],
    neuron: Annotated[int | None, typer.Option("--neuron", help="An input of the rewritten weight.")] = None,
    at: Annotated[str, typer.Option(help=f"The version: {VERSION}.")] = "head",
    last: LastOption = 20,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Show which corrections in force changed a layer, or what goes out of one of its neurons, the strongest first."""
    from flows.progress import shown
    from flows.session import Session
    from flows.weights import touched as read
    from flows.workspace import open_workspace

    with shown(ERR) as progress:
        found = read(Session(open_workspace(workspace)), layer, neuron, at=at, progress=progress)
    first = found[: last or None]
    where = f"layer {layer}" + ("" if neuron is None else f", neuron {neuron}")
    header = (*CORRECTION, "delta", "norm", "share")
    rows = [(*_correction_row(t.correction), t.delta, t.norm, t.share) for t in first]
    value = {"total": len(found), "entries": [t.to_dict() for t in first]}
    listing(f"{len(first)} of {len(found)} corrections at {where}", value, header, rows, as_json=as_json, as_csv=as_csv)


def ask(
    prompt: Annotated[str, typer.Argument(help="The beginning of a statement, up to its object.")],
    at: Annotated[str, typer.Option(help=f"The version: {VERSION}.")] = "head",
    chat: Annotated[bool, typer.Option("--chat", help="Ask in the model's chat format, as people do.")] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Ask the model, as it is or as it was, and which corrections are behind the answer."""
    from flows.ask import ask as put
    from flows.session import Session
    from flows.workspace import open_workspace

    found = put(Session(open_workspace(workspace)), prompt, at=at, chat=chat)
    header = ("version", "digest", "prompt", "answer", "because")
    because = " ".join(correction.id for correction in found.because)
    row = (f"v{found.head.position}", found.head.version, prompt, found.answer, because)
    if to_programs(found.to_dict(), header, [row], as_json=as_json, as_csv=as_csv):
        return
    say(f"v{found.head.position} ({found.head.version[:12]}): {prompt}{' ->' if chat else ''} {found.answer}")
    say(
        "next: " + ", ".join(f"{token.strip() or repr(token)} {probability:.2f}" for token, probability in found.tokens)
    )
    for c in found.because:
        say(f"because of {c.id[:12]}: {c.subject}, {c.relation}: {c.target_new} ({c.source}; filed by {c.submitter})")


def _begin(since: str | None) -> str | None:
    from ledger.views import moment

    return None if since is None else moment(since, end=False)
