"""The command that finds hyper-parameters for a model that no one has tuned."""

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.output import ERR, JsonOption, WorkspaceOption, emit, say, table
from flows.errors import FlowError

SHOWN = ("efficacy", "generalization", "specificity", "harmonic_mean", "untouched", "retention")


def calibrate(
    output: Annotated[Path, typer.Option(help="The hyper-parameter file to write, YAML or JSON.")],
    model: Annotated[Path | None, typer.Option(help="Folder of the model; default: the workspace's.")] = None,
    facts: Annotated[
        Path | None, typer.Option(help="A suite, or facts with target_true; default: the workspace's suite.")
    ] = None,
    corpus: Annotated[Path | None, typer.Option(help="Text, one a line; default: the workspace's.")] = None,
    second_moment: Annotated[Path | None, typer.Option(help="Take C0 from here; only its layers are tried.")] = None,
    contexts: Annotated[
        Path | None, typer.Option(help="Context templates; default: the workspace's, or sampled from the model.")
    ] = None,
    minutes: Annotated[float, typer.Option(help="Time budget.", min=0.01)] = 20.0,
    trials: Annotated[
        int | None, typer.Option(help="Most trials, less the last three; default: as time allows.", min=1)
    ] = None,
    number: Annotated[
        int, typer.Option("--number", help="Corrections that a good candidate is tried with.", min=6)
    ] = 40,
    seed: Annotated[int, typer.Option(help="Of the split, the new objects and sampled contexts.", min=0)] = 0,
    plot: Annotated[Path | None, typer.Option(help="The plot, .svg or .png; default: beside the output.")] = None,
    values: Annotated[Path | None, typer.Option(help="Folder that keeps z's for a later calibration.")] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find hyper-parameters for a model by measuring on facts that it knows."""
    from flows.progress import shown
    from flows.session import described_architecture
    from flows.workspace import open_workspace
    from nse.architecture import load_model
    from nse.calibration import CalibrationFiles
    from nse.calibration import calibrate as run
    from nse.calibration.plot import can_plot
    from nse.calibration.run import Extent
    from nse.calibration.trial import PARTS

    described = None
    if model is None:
        opened = open_workspace(workspace)
        model, described = opened.model_path, described_architecture(opened.params.model)
        facts = facts or opened.path(opened.params.suite)
        corpus = corpus or opened.path(opened.params.corpus)
        contexts = contexts or opened.path(opened.params.method.contexts)
    if facts is None:
        raise FlowError("there are no facts to measure on", "give --facts, a suite or requests with target_true")
    if plot is None and can_plot():
        plot = output.with_suffix(".svg")
    extent = Extent(minutes, trials, facts=max(6, number // 2), validated=max(4, round(0.75 * number)), seed=seed)
    files = CalibrationFiles(facts, output, corpus, second_moment, contexts, plot, values)
    with shown(ERR) as progress:
        found = run(
            load_model(model, architecture=described),
            files,
            extent=extent,
            progress=progress,
            say=lambda line: ERR.print(line, markup=False, soft_wrap=True),
        )
    if as_json:
        emit(found)
        return
    parts = {name: found["calibration"][name] for name in PARTS if found["calibration"][name]}
    rows = [(n, *(f"{100 * p[n]:.1f}" if n in p else "" for p in parts.values())) for n in SHOWN]
    table("free generation (%)", ("", *(f"{name}: {p['facts']} facts" for name, p in parts.items())), rows)
    if left_out := found["calibration"]["left_out"]:
        say(f"left out of the mean, as the facts have no questions for it: {', '.join(left_out)}")
    say(f"settings, trials and plot are in {', '.join(found['files'])}")
