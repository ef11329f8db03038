"""Commands that take a version out of the workspace: export lora, export merged, export gguf."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.models import Dtype
from flows.commands.output import ERR, JsonOption, WorkspaceOption, emit, say

OutputArgument = Annotated[Path, typer.Argument(help="Folder to make; it must be new or empty.")]
AtOption = Annotated[str, typer.Option(help="head, base, v3, #5, a date, or digits of a version's digest.")]


class EditedType(StrEnum):
    """Types into which edited tensors of a GGUF file can be packed."""

    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"
    Q8_0 = "Q8_0"
    Q5_1 = "Q5_1"
    Q5_0 = "Q5_0"
    Q4_1 = "Q4_1"
    Q4_0 = "Q4_0"


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


def gguf(
    output: Annotated[Path, typer.Argument(help="GGUF file to make; a record is written beside it.")],
    original: Annotated[Path, typer.Option("--from", help="The GGUF file that the base was imported from.")],
    at: AtOption = "head",
    edited_type: Annotated[
        EditedType | None, typer.Option(help="Type of the edited tensors; default: the one each has in the original.")
    ] = None,
    ask: Annotated[int, typer.Option(help="Most corrections in force that are asked of both.", min=1)] = 200,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a version into a copy of the base's GGUF file, loaded back with transformers and asked the corrections."""
    from flows.export import gguf_at
    from flows.session import Session
    from flows.workspace import open_workspace

    kind = None if edited_type is None else edited_type.value
    session = Session(open_workspace(workspace))
    found = gguf_at(session, at, output, original=original, edited_type=kind, ask=ask)
    if as_json:
        emit(found)
        return
    say(f"v{found['position']} ({found['version'][:12]}) is in {output}: {len(found['edited'])} tensors replaced")
    lost = found["update_lost"]
    kinds = ", ".join(sorted(set(found["edited"].values())))
    say(f"packed as {kinds}: rounding is {min(lost.values()):.1%} to {max(lost.values()):.1%} of the update's length")
    if found["asked"]:
        right = found["right"]
        say(
            f"of {found['asked']} corrections asked: right {right['version']:.1%} as weights, {right['file']:.1%} from the file; "
            f"answers the same {found['same_answers']:.1%}; logits differ by at most {found['largest_logit_difference']:.2g}"
        )
    if not found["same_tokenizer"]:
        ERR.print("note: the file's own tokenizer is not the base model's", markup=False)
