"""The command `nse reconcile`."""

import typer

from flows.commands.output import ByOption, JsonOption, WorkspaceOption, emit, say


def reconcile(workspace: WorkspaceOption = None, by: ByOption = None, as_json: JsonOption = False) -> None:
    """Finish or undo what a run that died left half done; restore artifacts that are missing. Exit 1 if something stays undone.

    Every plan, apply and revert begins with it, so it is needed only to see what it does, or when nothing is to be run.
    """
    from flows.lock import writer
    from flows.reconcile import repairs
    from flows.workspace import open_workspace

    opened = open_workspace(workspace)
    with writer(opened, "reconcile", opened.person(by)):
        found = repairs(opened, thorough=True)
    if as_json:
        done, undone = ([r.text for r in found if r.done is wanted] for wanted in (True, False))
        emit({"done": done, "not_done": undone})
    else:
        for repair in found:
            say(str(repair))
        if not found:
            say("nothing is half done")
    if not all(repair.done for repair in found):
        raise typer.Exit(1)
