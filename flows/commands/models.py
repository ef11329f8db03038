"""Commands that bring models in: import."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.output import ERR, JsonOption, emit, say


class Dtype(StrEnum):
    """Types in which weights can be saved."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def import_model(
    model: Annotated[
        Path, typer.Argument(help="A .gguf file, a transformers folder, or a folder of the Hugging Face cache.")
    ],
    output: Annotated[Path, typer.Option(help="Folder to make; it must be new or empty.")],
    dtype: Annotated[Dtype, typer.Option(help="Type of the saved weights.")] = Dtype.FLOAT32,
    as_json: JsonOption = False,
) -> None:
    """Make a model that other people made into a folder that `nse init` and `nse edit` take, checked by loading it again."""
    import torch

    from nse.importing import import_model as run

    found = run(model, output, dtype=getattr(torch, dtype.value))
    if as_json:
        emit(found)
        return
    say(
        f"{found['model_type']} of {found['layers']} layers, {found['parameters']:,} numbers in {found['dtype']}, is in {output}"
    )
    say(
        f"base {found['base'][:12]}; loaded again, it is the same and continues {found['prompts_compared']} prompts alike"
    )
    if licence := found["source"].get("licence"):
        say(f"licence, as the file names it: {licence}")
    if not found["known"]:
        ERR.print(
            f"note: {found['model_type']} has no row in the table of families: describe it (docs/operations.md)",
            markup=False,
            soft_wrap=True,
        )
