"""Commands that need no ledger: edit, stats."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from flows.commands.output import ERR, JsonOption, WorkspaceOption, emit, say, table
from flows.errors import FlowError

Dtype = Literal["float32", "float16", "bfloat16"]


def edit(
    model: Annotated[Path, typer.Option(help="Folder of the model.")],
    requests: Annotated[Path, typer.Option(help="CounterFact, zsRE, JSONL or CSV.")],
    hparams: Annotated[Path, typer.Option(help="Hyper-parameters: JSON, YAML, or a preset's name.")],
    output: Annotated[Path, typer.Option(help="Folder for delta, values and report.")],
    method: Annotated[str, typer.Option(help="Name of the method.")] = "nse",
    second_moment: Annotated[Path | None, typer.Option(help="Second-moment file, see `nse stats`.")] = None,
    contexts: Annotated[Path | None, typer.Option(help="Context templates; default: sampled from the model.")] = None,
    hold: Annotated[
        Path | None, typer.Option(help="Known facts (target_true) that edits of their subjects leave in place.")
    ] = None,
    trained: Annotated[Path | None, typer.Option(help="What `nse train` made, for methods that train first.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Requests per round; default: all in one.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of the sampled contexts, and of what the method draws.")] = 0,
    memory: Annotated[
        int | None, typer.Option(help="Most MiB of activations at a time; default: by the device.", min=1)
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Type of the model's weights.")] = "float32",
    device_map: Annotated[str | None, typer.Option(help='e.g. "auto": needs accelerate.')] = None,
    architecture: Annotated[
        Path | None, typer.Option(help="YAML that describes a family this program does not know.")
    ] = None,
    save_model: Annotated[Path | None, typer.Option(help="Folder for the edited model.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Edit a stream of batches with no ledger."""
    import torch

    from flows.progress import shown
    from nse.command import EditFiles, StreamOptions, edit_stream

    files = EditFiles(model, requests, hparams, method, second_moment, contexts, hold, architecture, trained)
    options = StreamOptions(batch_size, seed, memory and memory * 2**20, getattr(torch, dtype), device_map)
    with shown(ERR) as progress:
        report = edit_stream(files, output=output, options=options, save_model=save_model, progress=progress)
    if as_json:
        emit(report)
        return
    for told in report["differences"]:
        ERR.print(f"note: {told}", markup=False, soft_wrap=True)
    for told in report["warnings"]:
        ERR.print(f"warning: {told}", markup=False, soft_wrap=True)
    statuses = [case["status"] for case in report["requests"]]
    counts = ", ".join(f"{statuses.count(name)} {name}" for name in dict.fromkeys(statuses))
    say(f"{counts}; delta, values and report are in {output}")


def stats(
    output: Annotated[Path, typer.Option(help="The second-moment file to write.")],
    model: Annotated[Path | None, typer.Option(help="Folder of the model; default: the workspace's.")] = None,
    corpus: Annotated[
        Path | None,
        typer.Option(
            help="Text, one a line; .jsonl; .json; a folder of those; a dataset on disk; default: the workspace's."
        ),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="e.g. 1,2,3 or 3-8; default: those of the hyper-parameters.")
    ] = None,
    hparams: Annotated[Path | None, typer.Option(help="Take the layers from here: a file, or a preset's name.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Budget in tokens; default: 25 per neuron.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Decides which passages of the corpus are read.")] = 0,
    window: Annotated[
        int, typer.Option(help="Tokens that are read at a time, at most the model's positions.", min=2)
    ] = 512,
    dtype: Annotated[
        Dtype | None,
        typer.Option(help="Type in which the model computes; default: the workspace's, or float32 with --model."),
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate the second moments C0 of a model over a text. An interrupted run goes on where it was."""
    import torch

    from flows.progress import shown
    from flows.session import described_architecture
    from flows.workspace import open_workspace
    from nse.command import collect
    from nse.hyperparameters import read_hyperparameters
    from nse.statistics import Sample

    described = None
    if model is None or corpus is None or (layers is None and hparams is None):
        opened = open_workspace(workspace)
        if model is None:
            dtype, described = dtype or opened.params.model.dtype, described_architecture(opened.params.model)
        model, corpus = model or opened.model_path, corpus or opened.path(opened.params.corpus)
        hparams = hparams or opened.path(opened.params.method.hparams)
    chosen = _layers(layers) if layers is not None or hparams is None else read_hyperparameters(hparams).settings.layers
    kind: torch.dtype = getattr(torch, dtype or "float32")
    with shown(ERR) as progress:
        found = collect(
            model=model,
            corpus=corpus,
            layers=chosen,
            output=output,
            sample=Sample(tokens, window, seed),
            dtype=kind,
            architecture=described,
            progress=progress,
        )
    if as_json:
        emit(found)
        return
    _show_convergence(found)
    for warning in found["warnings"]:
        ERR.print(f"warning: {warning}", markup=False, soft_wrap=True)
    say(f"second moments of layers {', '.join(map(str, chosen))} over {found['tokens']} tokens are in {output}")


def _show_convergence(found: dict[str, Any]) -> None:
    """How far C0 still moved as the tokens grew, a row per comparison, and what it holds; a column per module."""
    modules = found["modules"]
    rows = [
        (str(step["from"]), str(step["tokens"]), *(f"{step['change'][name]:.2%}" for name in modules))
        for step in found["convergence"]
    ]
    rank = ("", "effective rank", *(f"{found['effective_rank'][name]:.1f}" for name in modules))
    weights = (found["fresh_weight"].get(name) for name in modules)
    fresh = ("", "weight of fresh text", *("-" if weight is None else f"{weight:.2f}" for weight in weights))
    table("change of C0 as the tokens double", ("from tokens", "to tokens", *modules), [*rows, rank, fresh])


def _layers(text: str | None) -> tuple[int, ...]:
    found: list[int] = []
    for part in (text or "").split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None:
            raise FlowError(f"--layers {text!r} names no layers", "write e.g. 1,2,3 or 3-8")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return tuple(found)
