"""The command line `nse`. Exit codes: 0 good, 1 the answer is "no", 2 bad usage or input with a reason in one line."""

import os
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from flows.commands import (
    backup,
    bench,
    calibrate,
    changesets,
    consolidate,
    erase,
    evaluate,
    export,
    filing,
    history,
    keys,
    models,
    place,
    policy,
    prove,
    reconcile,
    report,
    revert,
    tools,
    train,
)
from flows.commands.output import ERR
from flows.errors import FlowError
from flows.threads import prepare
from ledger.errors import DecisionRefused, ErasureRefused, HeadMoved, LedgerError
from nse.errors import NseError

app = typer.Typer(
    name="nse",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
COMMANDS = (
    *(place.init, filing.ingest, filing.values),
    *(changesets.plan, changesets.show, changesets.approve, changesets.reject, changesets.withdraw, changesets.apply),
    *(revert.revert, consolidate.consolidate, erase.erase),
    *(history.log, history.blame, history.diff, history.ask, place.status),
    *(report.report, history.approvals, history.pending, history.edited, history.touched),
    *(prove.prove, prove.verify, reconcile.reconcile, backup.backup, backup.restore),
    *(evaluate.evaluate, tools.edit, tools.stats, train.train, calibrate.calibrate, bench.bench),
    *(place.serve, place.demo),
)
for command in COMMANDS:
    app.command()(command)
app.command("import")(models.import_model)
GROUPS: dict[str, tuple[str, dict[str, Callable[..., None]]]] = {
    "export": (
        "Take a version out of the workspace.",
        {"lora": export.lora, "merged": export.merged, "gguf": export.gguf},
    ),
    "keys": ("Signing keys of people.", {"create": keys.create, "list": keys.list_keys, "revoke": keys.revoke}),
    "policy": ("How many people must approve what.", {"adopt": policy.adopt, "show": policy.show}),
    "ledger": ("The history as files.", {"export": prove.export_ledger, "import": prove.import_ledger}),
}
for name, (about, members) in GROUPS.items():
    group = typer.Typer(help=about, no_args_is_help=True)
    for member, run in members.items():
        group.command(member)(run)
    app.add_typer(group, name=name)


@app.callback()
def before(
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            envvar="NSE_THREADS",
            help="Threads that compute; default: OMP_NUM_THREADS, or as many processors as this process may use.",
        ),
    ] = None,
) -> None:
    """Keeps a language model's facts correct: corrections in, edits judged, approved, recorded, undone."""
    prepare(threads)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `nse` with `arguments` (those of the process if None) and exits."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # transformers' reader of GGUF draws a bar of its own
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a model is a folder here; nothing is fetched
    try:
        app(args=arguments)
    except (NseError, LedgerError, FlowError) as error:
        ERR.print(f"error: {' '.join(str(error).split())}", markup=False, soft_wrap=True)
        raise SystemExit(exit_code(error)) from error
    except OSError as error:  # no room, no right to write: the machine's fault, not the program's
        ERR.print(f"error: {error}", markup=False, soft_wrap=True)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        ERR.print("stopped")
        raise SystemExit(130) from None


def exit_code(error: NseError | LedgerError | FlowError) -> int:
    """1 if the question was fine and the answer is no, 2 if the question or its input was not."""
    if isinstance(error, FlowError):
        return error.exit_code
    return 1 if isinstance(error, DecisionRefused | ErasureRefused | HeadMoved) else 2


if __name__ == "__main__":
    main()
