"""Commands about a workspace as a whole: init, status, verify, serve, demo."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.commands.output import ERR, ByOption, JsonOption, WorkspaceOption, emit, say, table


def init(
    directory: Annotated[Path, typer.Argument(help="Folder of the new workspace.")],
    model: Annotated[Path | None, typer.Option(help="Folder of the base model (transformers, safetensors).")] = None,
    name: Annotated[str | None, typer.Option(help="Its name in the ledger.")] = None,
    hparams: Annotated[
        Path | None,
        typer.Option(help="Hyper-parameters, JSON or YAML; default: proposed by the model's family and size."),
    ] = None,
    suite: Annotated[Path | None, typer.Option(help="Regression suite; the files it names are copied along.")] = None,
    corpus: Annotated[Path | None, typer.Option(help="Text for the second moments, one text a line.")] = None,
    contexts: Annotated[Path | None, typer.Option(help="Context templates; default: sampled from the model.")] = None,
    dtype: Annotated[Literal["float32", "float16", "bfloat16"], typer.Option(help="Type of the weights.")] = "float32",
    remote: Annotated[str | None, typer.Option(help="URL of the DVC remote; default: a folder beside.")] = None,
    copy_model: Annotated[bool, typer.Option(help="Copy the model in and track it with DVC.")] = False,
    user: Annotated[str | None, typer.Option(help='"Name <email>" for git, in this workspace only.')] = None,
    architecture: Annotated[
        Path | None, typer.Option(help="YAML that describes a family this program does not know.")
    ] = None,
    device_map: Annotated[Literal["auto"] | None, typer.Option(help="auto: use all devices; needs accelerate.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a workspace: a Git and DVC repository with params.yaml and a ledger. Run twice, it changes nothing.

    With a directory alone, one that has its params.yaml already (a fresh clone, say) gets what it lacks: its ledger.
    """
    from flows.errors import FlowError
    from flows.init import Setup, complete
    from flows.init import init as make

    if (model, name, hparams, suite, corpus) == (None,) * 5:
        workspace = complete(directory)
    elif model is None or name is None or suite is None or corpus is None:
        raise FlowError("a new workspace needs --model, --name, --suite and --corpus", "give all four")
    else:
        files = (model, name, hparams, suite, corpus, contexts)
        workspace = make(directory, Setup(*files, dtype, remote, copy_model, user, architecture, device_map))
    if as_json:
        emit({"root": str(workspace.root), "model": workspace.model, "base": workspace.params.model.digest})
        return
    say(f"workspace {workspace.root}: model {workspace.model}, base {workspace.params.model.digest[:12]}")
    if model is not None and hparams is None:
        path = workspace.root / workspace.params.method.hparams
        say(path.read_text(encoding="utf-8").splitlines()[0].strip("# "))
    if not workspace.second_moment.is_file():
        say(f"next: cd {directory} && dvc repro")


def status(workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """Show the head, the changesets that wait, and how many corrections have which status."""
    from flows.status import read_status
    from flows.workspace import open_workspace

    found = read_status(open_workspace(workspace))
    if as_json:
        emit(found.to_dict())
        return
    say(f"{found.head.model}: head v{found.head.position} ({found.head.version[:12]}) since {found.head.moved_at}")
    say(f"corrections: {', '.join(f'{n} {status}' for status, n in found.corrections.items()) or 'none'}")
    if found.waiting:
        rows = [(f"#{c.number}", c.kind, state, c.reason) for c, state in found.waiting]
        table("changesets that wait", ("no.", "kind", "status", "reason"), rows)


def serve(workspace: WorkspaceOption = None, by: ByOption = None) -> None:
    """Run the nightly round on the schedule of params.yaml, through Prefect, until stopped."""
    from flows.environment import server
    from flows.workspace import open_workspace

    opened = open_workspace(workspace)
    schedule = opened.params.schedule
    with server(opened.root) as url:
        from flows.deploy import serve as run

        ERR.print(f"nightly round of {opened.model}: {schedule.cron} {schedule.timezone}", markup=False)
        ERR.print(f"Prefect: {url.removesuffix('/api')}; stop with Ctrl-C", markup=False)
        run(opened, by=by or "nse serve")


def demo(
    directory: Annotated[
        Path | None,
        typer.Argument(help="Where to make the demo workspace; default: build/demo, or with the model's name."),
    ] = None,
    model: Annotated[
        Literal["demo", "smollm2"],
        typer.Option(help="The small model that is shipped, or a real one, which is fetched."),
    ] = "demo",
    folder: Annotated[
        Path | None, typer.Option("--from", help="Folder of the model, if it is not to be fetched.")
    ] = None,
    corpus: Annotated[Path | None, typer.Option(help="Text for the second moments; default: the demo's own.")] = None,
) -> None:
    """Show the whole pipeline on the demo world, or on a pretrained model."""
    from flows.demo import run_demo
    from flows.stories import STORIES

    default = Path("build") / ("demo" if model == "demo" else f"demo-{model}")
    run_demo(directory or default, STORIES[model], model=folder, corpus=corpus)
