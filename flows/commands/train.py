"""The command that makes what some methods need before they edit."""

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.output import ERR, JsonOption, emit, say
from flows.commands.tools import Dtype


def train(
    model: Annotated[Path, typer.Option(help="Folder of the model.")],
    method: Annotated[str, typer.Option(help="mend or serac.")],
    dataset: Annotated[
        Path,
        typer.Option(help="Edits to learn from, other than those to be made: CounterFact layout, with all prompts."),
    ],
    hparams: Annotated[Path, typer.Option(help="Hyper-parameters, with a section per method; or a preset's name.")],
    output: Annotated[Path, typer.Option(help="The file to write.")],
    steps: Annotated[int | None, typer.Option(help="Training steps; default: the settings'.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    dtype: Annotated[
        Dtype, typer.Option(help="Type of the model's weights; edits may use a narrower one.")
    ] = "float32",
    architecture: Annotated[
        Path | None, typer.Option(help="YAML that describes a family this program does not know.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train what a method needs before it edits; `nse edit --trained` takes the file."""
    import torch

    from flows.progress import shown
    from nse.training.run import TrainFiles
    from nse.training.run import train as run

    files = TrainFiles(model, dataset, hparams, method, architecture)
    with shown(ERR) as progress:
        made = run(files, output=output, steps=steps, seed=seed, dtype=getattr(torch, dtype), progress=progress)
    if as_json:
        emit(made)
        return
    first, last = made["losses"][0], made["losses"][-1]
    say(
        f"{method}: {made['steps']} steps on {made['requests']} edits, loss {first:.3g} to {last:.3g}; it is in {output}"
    )
