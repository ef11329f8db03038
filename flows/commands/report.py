"""The command `nse report`."""

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.output import JsonOption, WorkspaceOption, emit, say


def report(
    reference: Annotated[str, typer.Argument(help="A changeset: 3, #3, or digits of its id.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File for the page; default: changeset-NUMBER.html, here.")
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a changeset with its evidence as one HTML file that loads nothing: to read, print, mail or keep."""
    from flows.errors import FlowError
    from flows.page import page
    from flows.workspace import open_workspace

    opened = open_workspace(workspace)
    with opened.ledger().read() as work:
        changeset = work.changeset(reference)
        made = page(work, changeset.id, at=opened.now())
    path = output or Path(f"changeset-{changeset.number}.html")
    try:
        path.write_text(made, encoding="utf-8")
    except OSError as error:
        raise FlowError(f"cannot write {path} ({error.strerror})", "choose another file") from error
    if as_json:
        emit({"changeset": changeset.number, "path": str(path), "bytes": len(made.encode())})
    else:
        say(f"{path}: changeset #{changeset.number}, {len(made.encode()) / 1000:.0f} kB; open it in a browser")
