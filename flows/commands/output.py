"""What all commands share: their common options, where they print, and how."""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

WorkspaceOption = Annotated[
    Path | None, typer.Option("--workspace", "-w", help="The workspace; default: the one the current folder is in.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")]
ByOption = Annotated[
    str | None, typer.Option("--by", help="Who does this, for the ledger; default: git's user.name and user.email.")
]
PrefectOption = Annotated[bool, typer.Option("--prefect", help="Run through Prefect, as a flow.")]

OUT = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
"""Tables keep their shape in a log file too."""
ERR = Console(stderr=True, highlight=False)


def emit(value: Any) -> None:
    """Prints a value as JSON on standard output."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True))


def say(text: str) -> None:
    """Prints a line for people on standard output, as it is."""
    OUT.print(text, markup=False, soft_wrap=True)


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table for people on standard output."""
    shown = Table(title=title, title_justify="left", title_style="bold")
    for name in header:
        shown.add_column(name, overflow="fold")
    for row in rows:
        shown.add_row(*(cell.replace("[", "\\[") for cell in row))
    OUT.print(shown)
