"""Commands that take a version out of the workspace: export lora, export merged."""

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.models import Dtype
from flows.commands.output import JsonOption, WorkspaceOption, emit, say

OutputArgument = Annotated[Path, typer.Argument(help="Folder to make; it must be new or empty.")]
AtOption = Annotated[str, typer.Option(help="head, base, v3, #5, a date, or digits of a version's digest.")]


def lora(
    output: OutputArgument,
    at: AtOption = "head",
    rank: Annotated[
        int | None, typer.Option(help="Most directions per weight; default: all of them, which is exact.", min=1)
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a version as a LoRA adapter on the base model, loaded back with PEFT and compared."""
    from flows.export import lora_at
    from flows.session import Session
    from flows.workspace import open_workspace

    found = lora_at(Session(open_workspace(workspace)), at, output, rank=rank)
    if as_json:
        emit(found)
        return
    say(f"adapter of v{found['position']} ({found['version'][:12]}), rank {found['rank']}, is in {output}")
    say(f"logits differ from the version's by at most {found['largest_logit_difference']:.1e} ({found['dtype']})")
    if cut := max(found["relative_error"].values()):
        say(f"cut to rank {rank}: up to {cut:.1%} of a weight's update is left out")


def merged(
    output: OutputArgument,
    at: AtOption = "head",
    max_shard_size: Annotated[str, typer.Option(help="Most bytes per file, e.g. 500MB or 2GB.")] = "5GB",
    dtype: Annotated[
        Dtype | None, typer.Option(help="Type of the saved weights; default: the workspace's, which is exact.")
    ] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a version as a whole model that transformers loads with from_pretrained."""
    import torch

    from flows.export import merged_at
    from flows.session import Session
    from flows.workspace import open_workspace

    wanted = None if dtype is None else getattr(torch, dtype.value)
    found = merged_at(Session(open_workspace(workspace)), at, output, max_shard_size=max_shard_size, dtype=wanted)
    if as_json:
        emit(found)
        return
    say(f"model of v{found['position']} ({found['version'][:12]}) in {found['saved_dtype']} is in {output}")
