"""The command about a person's right to have text erased: nse erase."""

from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.output import ERR, ByOption, JsonOption, WorkspaceOption, emit, say, table

if TYPE_CHECKING:
    from flows.erase import Erased


def erase(
    reference: Annotated[str, typer.Argument(help="A correction or a quarantined row: digits of its id.")],
    reason: Annotated[str, typer.Option("--reason", "-m", help="Why; it stays in the ledger for good.")] = "",
    by: ByOption = None,
    purge: Annotated[
        bool, typer.Option("--purge", help="Also delete the artifacts that reveal it, and that nothing in force needs.")
    ] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Erase the text of a correction that is not in force; the ledger still verifies. Exit 1 if --purge has to wait.

    Erased is what the ledger and the working files say. Not erased are the files that were ingested, with their history in
    Git, and backups. Artifacts of the correction reveal it too: they are listed, and deleted with --purge.
    """
    from flows.erase import erase as erase_text
    from flows.workspace import open_workspace

    opened = open_workspace(workspace)
    done = erase_text(opened, reference, reason=reason, by=opened.person(by), purge=purge)
    waits = [artifact for artifact in done.artifacts if not artifact.purged]
    emit(done.to_dict()) if as_json else _print(done, purge=purge)
    if purge and waits:
        raise typer.Exit(1)


def _print(done: "Erased", *, purge: bool) -> None:
    said = f"{done.rows} texts erased from the ledger" if done.rows else "its text was erased before"
    say(f"{done.ref[:12]}: {said}")
    for folder, count in done.working_files.items():
        say(f"deleted {count} from .nse/{folder}; what is needed of them is computed again")
    if done.artifacts:
        rows = [
            (
                artifact.path,
                ", ".join(f"v{s.start}" + ("" if s.end is None else f"-v{s.end - 1}") for s in artifact.versions),
                "purged" if artifact.purged else "needed" if artifact.in_use else "--purge deletes it",
            )
            for artifact in done.artifacts
        ]
        table("artifacts that reveal it", ("path", "in the weights of", "state"), rows)
    if any(artifact.purged for artifact in done.artifacts):
        ERR.print("note: versions with a purged artifact cannot be composed any more", markup=False)
    if purge and any(artifact.in_use for artifact in done.artifacts):
        ERR.print(
            "note: what the weights in force need stays: `nse revert --mode replay` writes the rest of such a round again",
            markup=False,
        )
    ERR.print(
        "note: the files that were ingested, their history in Git, and backups still have the text; ingesting such a file"
        " again files it again",
        markup=False,
    )
