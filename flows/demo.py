"""`nse demo`: the whole life of corrections on the demo world, as a script of the commands that a user would type.

Each step prints its command and runs it; nothing here does any work of its own, so what is seen is what the tool does.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console
from rich.rule import Rule

from flows.commands.output import OUT
from flows.errors import FlowError, Refused
from flows.workspace import Workspace, open_workspace
from ledger.keys import KEYS
from ledger.records import Changeset

DEMO = Path(__file__).resolve().parent.parent / "demo"
PLANNER = "Nightly Job <nightly@example.org>"
REVIEWER = "Maya Chen <maya.chen@example.org>"
PATIENCE = 120.0
"""Seconds that the demo promises to take."""


class Script:
    """Runs commands of `nse` one after another in a workspace and shows them as they would be typed."""

    def __init__(self, directory: Path, console: Console) -> None:
        """Commands run in `directory`."""
        self.directory, self.console, self.begun = directory, console, time.monotonic()

    def title(self, text: str) -> None:
        """Says what comes now."""
        self.console.print()
        self.console.print(Rule(f"[bold]{text}[/bold]  [dim]{time.monotonic() - self.begun:.0f} s[/dim]", align="left"))

    def nse(self, *arguments: str, expect: int = 0) -> None:
        """Runs one command in this process.

        Raises:
            FlowError: If it does not end with the exit code `expect`.
        """
        from flows.cli import app

        self._show("nse", arguments)
        try:
            code = app(args=[*arguments], standalone_mode=False) or 0
        except typer.Exit as ended:
            code = ended.exit_code
        if code != expect:
            raise FlowError(f"`nse {' '.join(arguments)}` ended with {code}, not {expect}", "see what it printed above")

    def refused(self, *arguments: str) -> None:
        """Runs a command that must be refused, and shows the refusal.

        Raises:
            FlowError: If it is not refused.
        """
        from ledger.errors import DecisionRefused

        try:
            self.nse(*arguments)
        except (DecisionRefused, Refused) as refusal:
            self.console.print(f"refused: {refusal}", style="yellow", markup=False)
        else:
            raise FlowError(f"`nse {' '.join(arguments)}` was not refused", "report this as a bug")

    def dvc(self, *arguments: str) -> None:
        """Runs DVC in the workspace, quietly; the stages call `nse`, which lies beside this Python.

        Raises:
            FlowError: If it fails.
        """
        self._show("dvc", arguments)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        command = [sys.executable, "-m", "dvc", *arguments, "--quiet"]
        done = subprocess.run(command, cwd=self.directory, env={**os.environ, "PATH": path}, check=False)
        if done.returncode:
            raise FlowError(f"`dvc {' '.join(arguments)}` failed", "see what it printed above")

    def _show(self, program: str, arguments: Sequence[str]) -> None:
        words = (f"'{a}'" if " " in a else a for a in arguments)
        self.console.print(f"$ {program} {' '.join(words)}", style="bold cyan", markup=False, soft_wrap=True)


def run_demo(directory: Path) -> None:
    """Makes a new workspace in `directory` and leads through two nights, an approval, a rejection and two reverts.

    Raises:
        FlowError: If `directory` holds something that is no demo workspace, or a step does not end as it should.
    """
    root = directory.resolve()
    _clear(root)
    script = Script(root, OUT)
    if not os.environ.get(KEYS):
        os.environ[KEYS] = str(_keys(root))  # of people who do not exist: not among the reader's own
    _make(script, root)
    here = Path.cwd()
    os.chdir(root)
    try:
        workspace = open_workspace(root)
        _first_night(script)
        _ask_the_past(script)
        _second_night(script)
        single, whole = _revert(script, workspace)
        script.title("Is everything what the ledger says it is?")
        script.nse("verify")
        script.title("Proof for somebody who has neither the ledger nor the model")
        script.nse("prove", "1", "--output", "proof.json")
        script.nse("verify", "--proof", "proof.json", "--key", "checkpoints/log.pub")
        _what_next(script, root)
        _summary(script, workspace, single, whole)
    finally:
        os.chdir(here)


def _clear(root: Path) -> None:
    """Removes an earlier demo workspace, and nothing else."""
    if root.exists() and any(root.iterdir()) and not (root / "params.yaml").is_file():
        raise FlowError(f"{root} holds something that is no workspace", "name an empty folder")
    for folder in (root, root.parent / f"{root.name}-remote", _keys(root)):
        if folder.exists():
            shutil.rmtree(folder)


def _keys(root: Path) -> Path:
    return root.parent / f"{root.name}-keys"


def _make(script: Script, root: Path) -> None:
    script.title("A workspace: a Git and DVC repository with a local remote and a SQLite ledger")
    inputs = {
        "--model": DEMO / "model",
        "--hparams": DEMO / "hparams.yaml",
        "--contexts": DEMO / "contexts.json",
        "--suite": DEMO / "suite.yaml",
        "--corpus": DEMO / "corpus.txt",
    }
    options = [text for option, path in inputs.items() for text in (option, os.path.relpath(path))]
    script.nse("init", os.path.relpath(root), "--name", "demo", *options, "--user", PLANNER)
    script.dvc("repro", "second_moment")


def _first_night(script: Script) -> None:
    script.title("Corrections come in; what cannot be filed is quarantined, with the reason")
    script.nse("ingest", str(DEMO / "corrections.csv"), "--prefect")
    script.title("The nightly round: edit, evaluate, gate, store, propose")
    script.nse("plan", "--by", PLANNER, "--prefect")
    script.title("Approval, by someone who is not a submitter")
    script.refused("approve", "1", "--by", "ines.rolf", "--reason", "They are my own corrections.")
    script.nse("approve", "1", "--by", REVIEWER, "--reason", "Checked against the sources.")
    script.nse("apply", "1", "--by", PLANNER, "--prefect")


def _ask_the_past(script: Script) -> None:
    script.title("The past can be asked about")
    script.nse("log", "--last", "6")
    script.nse("blame", "Kazakhstan")
    script.nse("ask", "The capital of Kazakhstan is", "--at", "base")
    script.nse("ask", "The capital of Kazakhstan is", "--at", "head")


def _second_night(script: Script) -> None:
    script.title(
        "A second night: one of its corrections is false, a canary dies; it is found and left out, the others go on"
    )
    script.nse("ingest", str(DEMO / "corrections_second_night.csv"), "--prefect")
    script.nse("plan", "--by", PLANNER, "--prefect")
    script.nse("approve", "2", "--by", REVIEWER, "--reason", "Right. The capital of France has not moved.")
    script.nse("apply", "2", "--by", PLANNER, "--prefect")


def _revert(script: Script, workspace: Workspace) -> tuple[Changeset, Changeset]:
    """Reverts one correction, then everything; returns the two changesets."""
    with workspace.ledger().read() as work:
        croatia = next(c for c in work.corrections(workspace.model) if c.subject == "Croatia")
    script.title("Undo a single correction: its column is left out, the others stay")
    script.nse("revert", croatia.id[:12], "--reason", "To show it.", "--by", PLANNER, "--prefect")
    script.nse("approve", "3", "--by", REVIEWER, "--reason", "Agreed.")
    script.nse("apply", "3", "--by", PLANNER, "--prefect")
    script.nse("ask", "The currency of Croatia is the")
    script.title("Undo everything: the weights are those of the base model again, to the bit")
    script.nse("revert", "--to", "base", "--reason", "To show it.", "--by", PLANNER, "--prefect")
    script.nse("approve", "4", "--by", REVIEWER, "--reason", "Agreed.")
    script.nse("apply", "4", "--by", PLANNER, "--prefect")
    script.nse("diff", "v1", "head")
    with workspace.ledger().read() as work:
        return work.changeset("#3"), work.changeset("#4")


def _what_next(script: Script, root: Path) -> None:
    script.title("What to try next")
    where = os.path.relpath(root, DEMO.parent)
    for line in (
        f"cd {where}                                   # all commands work inside the workspace",
        f"export {KEYS}=$PWD/../{root.name}-keys             # the keys of the people of the demo",
        "nse show 1                                      # the evidence of the first round",
        "nse revert --to v1 --reason 'Bring it back.'    # a revert can be reverted",
        "nse ask 'Who is the leader of Brazil?' --at v1  # any version, by number, date or digest",
        "nse serve                                       # run the round every night, through Prefect",
    ):
        script.console.print(f"  {line}", markup=False, soft_wrap=True)


def _summary(script: Script, workspace: Workspace, single: Changeset, whole: Changeset) -> None:
    """One line of what was measured, all of it read from the ledger."""
    with workspace.ledger().read() as work:
        first, base, head = work.changeset("#1"), work.heads(workspace.model)[0], work.head(workspace.model)
    value = {m.name: m.value for m in first.metrics if m.phase == "candidate"}
    kept = {m.name: m.value for m in single.metrics if m.phase == "candidate"}["retention_generation"]
    shares = ", ".join(
        f"{label} {100 * value[f'{name}_generation']:.0f}%"
        for label, name in (
            ("efficacy", "efficacy"),
            ("generalization", "generalization"),
            ("specificity", "specificity"),
            ("untouched facts right", "untouched"),
        )
    )
    same = "equals the base to the bit" if head.version == base.version == whole.candidate_version else "DIFFERS"
    seconds = time.monotonic() - script.begun
    late = "" if seconds <= PATIENCE else f" (slower than the promised {PATIENCE:.0f} s)"
    script.console.print()
    script.console.print(
        f"Summary: {len(first.results)} corrections in one round, by free generation: {shares}; perplexity x"
        f"{value['perplexity_ratio']:.3f}; the false correction was left out; after one revert {100 * kept:.0f}% of the "
        f"others held; after reverting everything the model {same}; {seconds:.0f} s{late}.",
        style="bold",
        soft_wrap=True,
    )
