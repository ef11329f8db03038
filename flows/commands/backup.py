"""The commands about copies of the ledger: backup, restore."""

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.output import JsonOption, WorkspaceOption, emit, say


def backup(
    file: Annotated[Path, typer.Argument(help="The new file.")],
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the ledger to a file, as it is at this moment; the ledger may be in use.

    The artifacts are not in it: they are in the DVC remote.
    """
    from flows.workspace import ledger_url, open_workspace
    from ledger.backup import backup as write

    rows = write(ledger_url(open_workspace(workspace).root), file)
    _tell(file, rows, as_json=as_json, done="backed up")


def restore(
    file: Annotated[Path, typer.Argument(help="What `nse backup` wrote.")],
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the ledger of this workspace from a backup; there must be none yet."""
    from flows.workspace import ledger_url, open_workspace
    from ledger.backup import restore as make

    rows = make(file, ledger_url(open_workspace(workspace).root))
    _tell(file, rows, as_json=as_json, done="restored")


def _tell(file: Path, rows: dict[str, int], *, as_json: bool, done: str) -> None:
    if as_json:
        emit({"file": str(file), "events": rows["log_event"], "rows": rows})
    else:
        say(f"{done}: {file}, {rows['log_event']} events of the log, {sum(rows.values())} rows, counted and checked")
