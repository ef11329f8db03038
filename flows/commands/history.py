"""Commands that ask about the past: log, blame, diff, ask."""

from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.output import JsonOption, WorkspaceOption, emit, say, table

if TYPE_CHECKING:
    from ledger.views import Blame


def log(
    workspace: WorkspaceOption = None,
    last: Annotated[int | None, typer.Option(help="Only the last N events.", min=1)] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what happened, oldest first."""
    from flows.workspace import open_workspace
    from ledger import views

    opened = open_workspace(workspace)
    with opened.ledger().read() as work:
        events = views.log(work, opened.model)
    events = events[-last:] if last else events
    if as_json:
        emit([event.to_dict() for event in events])
        return
    for e in events:
        say(f"{e.at}  {e.kind:<11}  {e.ref[:12]:<12}  {e.by + ': ' if e.by else ''}{e.text}")


def blame(
    subject: Annotated[str, typer.Argument(help="The subject, in any letter case.")],
    relation: Annotated[str | None, typer.Argument(help="Only this relation.")] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show who changed what about a subject, when, why, and whether it is in force."""
    from flows.workspace import open_workspace
    from ledger import views

    opened = open_workspace(workspace)
    with opened.ledger().read() as work:
        found = views.blame(work, opened.model, subject, relation)
    if as_json:
        emit([entry.to_dict() for entry in found])
        return
    if not found:
        say(f"no correction is about {subject!r}" + (f", {relation}" if relation else ""))
        return
    for entry in found:
        _print_blame(entry)


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
    say(f"  now: {entry.status}{', in force' if entry.in_force else ''}")


def diff(
    a: Annotated[str, typer.Argument(help="A version: head, base, v3, #5, a date, or digits of its digest.")],
    b: Annotated[str, typer.Argument(help="Another.")] = "head",
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which corrections came in force and went out of force between two versions."""
    from flows.workspace import open_workspace
    from ledger import views

    opened = open_workspace(workspace)
    with opened.ledger().read() as work:
        found = views.diff(work, opened.model, a, b)
    if as_json:
        emit(found.to_dict())
        return
    marked = [("+", c) for c in found.came_in_force] + [("-", c) for c in found.went_out_of_force]
    rows = [(sign, c.id[:12], c.subject, c.relation or c.prompt_template, c.target_new) for sign, c in marked]
    table(f"v{found.a.position} to v{found.b.position}", ("", "id", "subject", "relation", "object"), rows)


def ask(
    prompt: Annotated[str, typer.Argument(help="The beginning of a statement, up to its object.")],
    at: Annotated[str, typer.Option(help="head, base, v3, #5, a date, or digits of a version's digest.")] = "head",
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the model, as it is or as it was, and which corrections are behind the answer."""
    from flows.ask import ask as put
    from flows.session import Session
    from flows.workspace import open_workspace

    found = put(Session(open_workspace(workspace)), prompt, at=at)
    if as_json:
        emit(found.to_dict())
        return
    say(f"v{found.head.position} ({found.head.version[:12]}): {prompt} {found.answer}")
    say(
        "next: " + ", ".join(f"{token.strip() or repr(token)} {probability:.2f}" for token, probability in found.tokens)
    )
    for c in found.because:
        say(f"because of {c.id[:12]}: {c.subject}, {c.relation}: {c.target_new} ({c.source}; filed by {c.submitter})")
