"""The command that runs suites on a version: evaluate."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.output import ERR, JsonOption, WorkspaceOption, emit, table

if TYPE_CHECKING:
    from flows.ask import Judgement


def evaluate(
    at: Annotated[str, typer.Option(help="head, base, v3, #5, a date, or digits of a version's digest.")] = "head",
    suite: Annotated[
        list[Path] | None, typer.Option(help="A suite to run; may be repeated; default: the workspace's.")
    ] = None,
    gate: Annotated[bool, typer.Option("--gate", help="Exit 1 if a gate that blocks fails.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json-file", help="Write the metrics there too.")] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run suites on a version. Gates against the head are compared with the version in force."""
    from flows.ask import evaluate_at
    from flows.progress import shown
    from flows.session import Session
    from flows.workspace import open_workspace

    opened = open_workspace(workspace)
    with shown(ERR) as progress:
        head, found = evaluate_at(Session(opened), at, suite or (), progress=progress)
    metrics: dict[str, Any] = {str(one.suite): one.metrics for one in found} if len(found) > 1 else found[0].metrics
    result = {"version": head.version, "metrics": metrics}
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if as_json:
        emit({**result, "position": head.position, "suites": [one.to_dict() for one in found]})
    else:
        for one in found:
            _print(f"v{head.position} ({head.version[:12]}) by {one.suite.name}", one)
    if gate and not all(one.passed for one in found):
        raise typer.Exit(1)


def _print(title: str, found: "Judgement") -> None:
    """A row for each metric, or for each of its gates, and for each gate that was not measured."""
    rows = []
    for name, value in found.metrics.items():
        gates = [gate for gate in found.gates if gate.name == name]
        said = [(f"{gate.op} {gate.bound:g}", _verdict(gate.passed, gate.severity)) for gate in gates] or [("", "")]
        rows += [(name, f"{value:.4g}", *told) for told in said]
    for gate in found.not_measured:
        rows.append((gate.name, "not measured", str(gate).removeprefix(f"{gate.name} "), ""))
    table(title, ("metric", "value", "gate", "passed"), rows)


def _verdict(passed: bool, severity: str) -> str:
    return "yes" if passed else "NO" if severity == "block" else "no (warns)"
