"""The command that measures methods of editing against each other, on one stream, by the same questions."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from flows.commands.output import ERR, OUT, say
from flows.commands.tools import Dtype
from flows.errors import FlowError, Refused


def bench(
    model: Annotated[Path, typer.Option(help="Folder of the model.")],
    dataset: Annotated[Path, typer.Option(help="CounterFact, zsRE, JSONL, CSV, or a suite: its facts are corrected.")],
    method: Annotated[
        str,
        typer.Option(
            help='Names of methods, with commas between; "all": those that need no training, or have it. NAME+consolidate: '
            "all edits so far in one shot at each checkpoint."
        ),
    ],
    hparams: Annotated[Path, typer.Option(help="Hyper-parameters, with a section per method; or a preset's name.")],
    json_file: Annotated[
        Path, typer.Option("--json", help="The record to write; finished parts are kept in a folder beside it.")
    ],
    edits: Annotated[int, typer.Option(help="Cases that are edited: the first usable ones.", min=1)] = 100,
    batch_size: Annotated[int, typer.Option(help="Cases in a round.", min=1)] = 100,
    orders: Annotated[int, typer.Option(help="Permutations of the stream.", min=1)] = 3,
    checkpoints: Annotated[int, typer.Option(help="How often all is tested, the end included.", min=1)] = 5,
    seed: Annotated[int, typer.Option(help="Of orders, of what methods draw, of sampled contexts.")] = 0,
    second_moment: Annotated[Path | None, typer.Option(help="Second-moment file; default: made of the corpus.")] = None,
    corpus: Annotated[Path | None, typer.Option(help="Text: second moments, perplexity, consistency.")] = None,
    contexts: Annotated[Path | None, typer.Option(help="Context templates; default: sampled from the model.")] = None,
    suite: Annotated[Path | None, typer.Option(help="Known facts to ask about besides, and what misleads.")] = None,
    hold: Annotated[bool, typer.Option("--hold", help="Give methods known facts, to be left in place.")] = False,
    asked: Annotated[
        int,
        typer.Option(
            help="Most questions of a kind about a case; 0: all. `misleading` ones: the suite's per_kind.", min=0
        ),
    ] = 0,
    prose: Annotated[int, typer.Option(help="Most cases to write texts about: fluency, consistency.", min=0)] = 20,
    tasks: Annotated[
        list[Path] | None, typer.Option(help="Task file for capability: pairs or right and wrong texts; repeat it.")
    ] = None,
    task_questions: Annotated[int, typer.Option(help="Most questions of a task file; 0: all.", min=0)] = 200,
    chat: Annotated[bool, typer.Option("--chat", help="Ask everything in the model's chat format as well.")] = False,
    trained: Annotated[list[str] | None, typer.Option(help="METHOD=FILE, what `nse train` made; repeat it.")] = None,
    plot: Annotated[Path | None, typer.Option(help="The plot, .svg or .png.")] = None,
    in_process: Annotated[bool, typer.Option("--in-process", help="Run all in this process: less to start.")] = False,
    dtype: Annotated[Dtype, typer.Option(help="Type of the model's weights.")] = "float32",
    device_map: Annotated[str | None, typer.Option(help='e.g. "auto": needs accelerate.')] = None,
    architecture: Annotated[
        Path | None, typer.Option(help="YAML that describes a family this program does not know.")
    ] = None,
    memory: Annotated[int | None, typer.Option(help="Most MiB of activations at a time.", min=1)] = None,
) -> None:
    """Run methods on the same stream, ask everything after it, and compare. An interrupted run goes on where it was."""
    from flows.progress import shown
    from nse.bench import BenchFiles, BenchOptions
    from nse.bench import bench as run
    from nse.bench.summary import failures
    from nse.editors import EDITORS

    made = trained_files(trained or [])
    ready = [name for name, editor in EDITORS.items() if name in made or "trained" not in editor.needs]
    files = BenchFiles(
        *(model, dataset, hparams, json_file),
        second_moment=second_moment,
        corpus=corpus,
        contexts=contexts,
        suite=suite,
        architecture=architecture,
        plot=plot,
        trained=made,
        tasks=tuple(tasks or ()),
    )
    options = BenchOptions(
        tuple(ready) if method == "all" else tuple(name.strip() for name in method.split(",")),
        edits=edits,
        batch_size=batch_size,
        orders=orders,
        checkpoints=checkpoints,
        seed=seed,
        hold=hold,
        asked=asked,
        prose=prose,
        task_questions=task_questions,
        chat=chat,
        isolated=not in_process,
        dtype=dtype,
        device_map=device_map,
        memory=memory and memory * 2**20,
    )
    with shown(ERR) as progress:
        record = run(files, options, progress=progress, say=lambda line: ERR.print(line, markup=False, soft_wrap=True))
    show(record)
    say(f"the record is in {json_file}")
    if failed := failures(record):
        raise Refused(f"{len(failed)} parts failed, {failed[0]}", "the same command runs those again, and only those")


def trained_files(pairs: list[str]) -> dict[str, Path]:
    """The files of METHOD=FILE pairs by method."""
    found = {}
    for pair in pairs:
        name, sign, path = pair.partition("=")
        if not (name and sign and path):
            raise FlowError(f"--trained {pair!r} names no method and file", "write e.g. mend=mend.safetensors")
        found[name] = Path(path)
    return found


def show(record: dict[str, Any]) -> None:
    """Prints the tables: a row per method, the best of a column in bold; and what a reader has to know of them."""
    from nse.bench.summary import notes, tables

    stream = record["stream"]
    OUT.print(
        f"{stream['edits']} edits of {stream['dataset']} in rounds of {stream['batch_size']}, orders: {stream['orders']};"
        " mean (lowest-highest); all asked after the end",
        markup=False,
    )
    for title, (header, rows) in tables(record).items():
        table = Table(title=title, title_justify="left", title_style="bold")
        for number, name in enumerate(header):
            table.add_column(name, justify="right" if number else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell.text, style="bold" if cell.best else "") for cell in row))
        OUT.print(table)
    for line in notes(record):
        OUT.print(line, markup=False)
