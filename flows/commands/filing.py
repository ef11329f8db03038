"""Commands about corrections on their way in: ingest, values."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.output import ERR, JsonOption, PrefectOption, WorkspaceOption, emit, remark, say, table

if TYPE_CHECKING:
    from flows.rows import Source


def ingest(
    path: Annotated[str, typer.Argument(help="CSV, JSONL, CounterFact or zsRE JSON, a folder of those, or - .")],
    submitter: Annotated[
        str | None, typer.Option(help="Who answers for rows that name nobody; default: git's user.")
    ] = None,
    workspace: WorkspaceOption = None,
    prefect: PrefectOption = False,
    as_json: JsonOption = False,
) -> None:
    """File corrections. Bad rows are quarantined with line, field and reason; the good ones go on."""
    from flows.git import identity
    from flows.workspace import open_workspace

    opened = open_workspace(workspace)
    person = submitter or identity(opened.root)
    if prefect:
        from flows.environment import prepare

        prepare(opened.root)
        from flows.deploy import ingest_flow

        found = ingest_flow(str(opened.root), str(Path(path).resolve()), person)
    else:
        from flows.ingest import ingest as file_rows
        from flows.session import Session

        sources = _sources(path)
        found = file_rows(opened, sources, tokenizer=Session(opened).tokenizer, submitter=person).to_dict()
    emit(found) if as_json else _print_report(found)


def _sources(path: str) -> "list[Source]":
    from flows.rows import parse, read_sources

    return [parse("stdin", sys.stdin.buffer.read())] if path == "-" else read_sources(Path(path))


def _print_report(found: dict[str, Any]) -> None:
    say(
        f"{len(found['filed'])} filed, {found['already_known']} already known, {len(found['duplicates'])} duplicates,"
        f" {len(found['conflicts'])} in conflict, {len(found['quarantined'])} quarantined"
    )
    waiting = [c for c in found["filed"] if c["id"] in found["conflicts"]]
    if waiting:
        rows = [(c["id"][:12], c["subject"], c["relation"] or "", c["target_new"], c["submitter"]) for c in waiting]
        table(
            "in conflict: supersede one by the other, both wait", ("id", "subject", "relation", "target", "who"), rows
        )
    if found["quarantined"]:
        bad = [(q["file_name"], str(q["line"]), q["field"], q["reason"]) for q in found["quarantined"]]
        table("quarantined", ("file", "line", "field", "reason"), bad)
    if dull := [c for c in found["filed"] if c["id"] in found["unheard"]]:
        first = dull[0]["prompt_template"].replace("{}", dull[0]["subject"])
        remark(
            f"note: {len(dull)} prompts begin with a subject of one token. Many models do not see the first token of a text, so "
            f"these prompts may be answered as before: put words in front of the subject (first: {first!r})"
        )
    for column in found["ignored_columns"]:
        ERR.print(f"note: {column}: this column is not read", markup=False)


def values(workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """Compute the target states z of pending corrections ahead of the night."""
    from flows.progress import shown
    from flows.session import Session
    from flows.values import compute_pending_values
    from flows.workspace import open_workspace

    opened = open_workspace(workspace)
    with shown(ERR) as progress:
        count = compute_pending_values(Session(opened), progress=progress)
    emit({"values": count}) if as_json else say(f"{count} pending corrections have their values")
