"""The command `revert`: what it entails is shown first, then a changeset is planned that undoes it."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.commands.changesets import ReasonOption, proposed
from flows.commands.output import ERR, OUT, ByOption, JsonOption, PrefectOption, WorkspaceOption, emit
from flows.errors import FlowError

if TYPE_CHECKING:
    from flows.dependencies import Dependencies, Mode
    from ledger.records import Correction


def revert(
    reference: Annotated[
        str | None, typer.Argument(help="A changeset (#3) or a correction (digits of its id).")
    ] = None,
    to: Annotated[str | None, typer.Option("--to", help="Or go back to this version.")] = None,
    source: Annotated[str | None, typer.Option("--source", help="Or all in force from this source.")] = None,
    submitter: Annotated[
        str | None, typer.Option("--submitter", help="Or all in force that this person filed.")
    ] = None,
    since: Annotated[str | None, typer.Option("--since", help="Or all filed on this date (UTC) or later.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="Or all filed by the end of this date (UTC).")] = None,
    mode: Annotated[
        str | None,
        typer.Option("--mode", help="drop (default): later rounds stay as they are; replay: they are solved again."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what it entails and costs.")] = False,
    reason: ReasonOption = "",
    by: ByOption = None,
    workspace: WorkspaceOption = None,
    prefect: PrefectOption = False,
    as_json: JsonOption = False,
) -> None:
    """Plan the revert of a correction, a set of them, a changeset, or all since a version. It needs approval like any change.

    --source, --submitter, --since and --until may be combined: what meets all of them goes.
    """
    from flows.revert import Query, Target, foresee, plan_revert
    from flows.workspace import open_workspace

    chosen = _mode(mode, to)
    target = Target(reference, to, Query(source, submitter, since, until)).checked()
    opened = open_workspace(workspace)
    if dry_run:
        from flows.session import Session

        entailed = foresee(Session(opened), target, chosen)
        emit(entailed.to_dict()) if as_json else print_entailed(entailed, OUT)
        return
    person = opened.person(by)
    if prefect:
        from flows.environment import prepare

        prepare(opened.root)
        from flows.deploy import revert_flow

        asked = {"source": source or "", "submitter": submitter or "", "since": since or "", "until": until or ""}
        named = (reference or "", to or "")
        number = revert_flow(str(opened.root), person, reason, *named, mode=chosen, **asked)["changeset"]
    else:
        from flows.progress import shown
        from flows.session import Session

        with shown(ERR) as progress:
            made = plan_revert(
                Session(opened),
                target,
                by=person,
                reason=reason,
                mode=chosen,
                tell=lambda entailed: print_entailed(entailed, ERR),
                progress=progress,
            )
        number = made.number
    proposed(opened, number, as_json=as_json)


def _mode(text: str | None, to: str | None) -> "Mode":
    if text is not None and to is not None:
        raise FlowError("--to brings a version back as it was: it has no --mode", "leave --mode out")
    if text == "replay":
        return "replay"
    if text not in (None, "drop"):
        raise FlowError(f"--mode {text} is none", "write drop or replay")
    return "drop"


def print_entailed(entailed: "Dependencies", console: Console) -> None:
    """Prints what a revert or a consolidation entails."""
    changes: list[tuple[Correction, str, str]]
    changes = [(c.correction, c.now, c.then) for c in (*entailed.goes_out, *entailed.comes_back, *entailed.others)]
    changes += [(correction, "active", "active, written again") for correction in entailed.again]
    if changes:
        header = ("id", "subject", "relation", "object", "now", "then")
        facts = ((c.id[:12], c.subject, c.relation or c.prompt_template, c.target_new, *of) for c, *of in changes)
        console.print(_table(f"what it entails{f' ({entailed.mode})' if entailed.mode else ''}", header, facts))
    if entailed.rounds:
        wrote = (f"#{found.changeset}" if found.changeset else "" for found in entailed.rounds)
        sizes = (str(found.corrections) for found in entailed.rounds)
        numbers = map(str, range(1, len(entailed.rounds) + 1))
        rows = zip(numbers, wrote, sizes, strict=True)
        console.print(_table("rounds to solve", ("round", "written first by", "corrections"), rows))
    for line in entailed.lines():
        console.print(line, markup=False, soft_wrap=True)


def _table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    shown = Table(*header, title=title, title_justify="left", title_style="bold")
    for row in rows:
        shown.add_row(*map(escape, row))
    return shown
