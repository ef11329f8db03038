"""What all commands share: their common options, where they print, and how."""

import csv
import json
import re
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
CsvOption = Annotated[
    bool, typer.Option("--csv", help="Print CSV with a header on standard output, nothing else there.")
]
ByOption = Annotated[
    str | None, typer.Option("--by", help="Who does this, for the ledger; default: git's user.name and user.email.")
]
PrefectOption = Annotated[bool, typer.Option("--prefect", help="Run through Prefect, as a flow.")]

OUT = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
"""Tables keep their shape in a log file too."""
ERR = Console(stderr=True, highlight=False)

Cell = str | int | float | bool | None
_DIGEST = re.compile(r"[0-9a-f]{64}")


def emit(value: Any) -> None:
    """Prints a value as JSON on standard output."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True))


def say(text: str) -> None:
    """Prints a line for people on standard output, as it is."""
    OUT.print(text, markup=False, soft_wrap=True)


def remark(text: str) -> None:
    """Prints a line for people on standard error, as it is."""
    ERR.print(text, markup=False, soft_wrap=True)


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table for people on standard output."""
    shown = Table(title=title, title_justify="left", title_style="bold")
    for name in header:
        shown.add_column(name, overflow="fold")
    for row in rows:
        shown.add_row(*(cell.replace("[", "\\[") for cell in row))
    OUT.print(shown)


def to_programs(
    value: Any, header: Sequence[str], rows: Iterable[Sequence[Cell]], *, as_json: bool, as_csv: bool
) -> bool:
    """Prints `value` as JSON or `rows` as CSV if that was asked for, and says whether it was."""
    if as_json and as_csv:
        raise typer.BadParameter("give --json or --csv, not both")
    if as_json:
        emit(value)
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([_plain(cell) for cell in row] for row in rows)
    return as_json or as_csv


def listing(
    title: str, value: Any, header: Sequence[str], rows: Iterable[Sequence[Cell]], *, as_json: bool, as_csv: bool
) -> None:
    """Prints rows as a table, with digests cut short and numbers rounded, or as `to_programs` does."""
    kept = list(rows)
    if not to_programs(value, header, kept, as_json=as_json, as_csv=as_csv):
        table(title, [name.replace("_", " ") for name in header], [[_short(cell) for cell in row] for row in kept])


def _plain(cell: Cell) -> str:
    return "" if cell is None else str(int(cell)) if isinstance(cell, bool) else str(cell)


def _short(cell: Cell) -> str:
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return f"{cell:.4g}"
    text = _plain(cell)
    return text[:12] if _DIGEST.fullmatch(text) else text
