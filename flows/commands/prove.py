"""Commands of proof: prove, verify, ledger export and import."""

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.output import ERR, JsonOption, WorkspaceOption, emit, say, table

KeyOption = Annotated[
    Path | None, typer.Option("--key", help="Verifier keys of the log, one a line; default: checkpoints/log.pub.")
]


def verify(
    workspace: WorkspaceOption = None,
    weights: Annotated[bool, typer.Option(help="Compose the weights of every version again.")] = True,
    proof: Annotated[Path | None, typer.Option(help="Check this proof instead, offline; needs --key alone.")] = None,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every digest, rule, checkpoint, artifact and version, or one proof; exit 1 if anything is wrong."""
    if proof is not None:
        _verify_proof(proof, key, as_json=as_json)
        return
    from flows.audit import audit, remarks
    from flows.progress import shown
    from flows.session import Session
    from flows.workspace import open_workspace

    session = Session(open_workspace(workspace))
    with shown(ERR) as progress:
        findings = audit(session, weights=weights, key=key, progress=progress)
    if as_json:
        emit({"ok": not findings, "findings": [finding.to_dict() for finding in findings]})
    elif findings:
        table(f"{len(findings)} findings", ("where", "problem", "what to do"), [
            (finding.where, finding.problem, finding.advice) for finding in findings
        ])  # fmt: skip
    else:
        for remark in remarks(session):
            say(remark)
        say("all is well: ledger, artifacts and the weights of every version are what they say they are")
    if findings:
        raise typer.Exit(1)


def _verify_proof(proof: Path, key: Path | None, *, as_json: bool) -> None:
    from flows.checkpoints import read_key_file
    from flows.errors import FlowError
    from ledger.errors import LedgerError
    from ledger.proofs import check

    if key is None:
        raise FlowError("a proof is checked against the key of the log", "give --key FILE, e.g. checkpoints/log.pub")
    keys = read_key_file(key)
    try:
        lines, problem = check(proof.read_bytes().decode(errors="replace"), keys), ""
    except OSError as error:
        raise FlowError(f"cannot read {proof} ({error.strerror})", "name the file of a proof") from error
    except LedgerError as error:
        lines, problem = [], str(error)
    if as_json:
        emit({"ok": not problem, "proven": lines, "problem": problem})
    elif problem:
        say(f"not proven: {problem}")
    else:
        for line in lines:
            say(line)
    if problem:
        raise typer.Exit(1)


def prove(
    reference: Annotated[str | None, typer.Argument(help="A correction's id, or a changeset: #3, 3 or its id.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File for the proof; default: print it.")
    ] = None,
    consistency: Annotated[
        tuple[int, int] | None,
        typer.Option(help="Prove instead that the log of NEW events begins with that of OLD.", metavar="OLD NEW"),
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Write a proof that anybody can check offline with `nse verify --proof FILE --key checkpoints/log.pub`."""
    from flows.checkpoints import current
    from flows.errors import FlowError
    from flows.workspace import open_workspace
    from ledger import proofs

    if (reference is None) == (consistency is None):
        raise FlowError("prove one thing", "name a correction or a changeset, or give --consistency OLD NEW")
    opened = open_workspace(workspace)
    if reference is not None:
        checkpoint = current(opened)
        with opened.ledger().read() as work:
            made = proofs.prove(work, reference, checkpoint)
    else:
        assert consistency is not None  # one of the two is given
        with opened.ledger().read() as work:
            made = proofs.prove_consistency(work, *consistency)
    if output is None:
        typer.echo(made, nl=False)
        return
    try:
        output.write_text(made, encoding="utf-8")
    except OSError as error:
        raise FlowError(f"cannot write {output} ({error.strerror})", "choose another file") from error
    say(f"{output}: check it with nse verify --proof {output} --key checkpoints/log.pub")


def export_ledger(
    directory: Annotated[Path, typer.Argument(help="A new folder.")],
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the whole ledger as JSON lines, with a signed in-toto statement for each version."""
    from flows.checkpoints import kept, key_here, record
    from flows.progress import shown
    from flows.workspace import open_workspace
    from ledger.transfer import export_ledger as run

    opened = open_workspace(workspace)
    signer = key_here(opened)
    if signer is not None:
        record(opened, push=False)
    with shown(ERR) as progress, opened.ledger().read() as work:
        done = run(work, directory, signer=signer, keys=kept(opened).keys(), progress=progress)
    if as_json:
        emit(done.to_dict())
        return
    say(f"{directory}: {done.events} events, root {done.root}, {done.statements} statements")


def import_ledger(
    directory: Annotated[Path, typer.Argument(help="What `nse ledger export` wrote.")],
    url: Annotated[str, typer.Option(help="An empty ledger, or where to make one: sqlite:///path, postgresql://...")],
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read an exported ledger into an empty one, in any database; every event is checked."""
    from flows.checkpoints import read_key_file
    from flows.progress import shown
    from ledger.transfer import import_ledger as run
    from ledger.unit_of_work import open_ledger

    keys = read_key_file(key) if key else ()
    with shown(ERR) as progress:
        done = run(open_ledger(url, create=True), directory, keys=keys, progress=progress)
    if as_json:
        emit(done.to_dict())
        return
    say(f"{done.events} events, root {done.root}")
