"""`nse demo`: the whole life of corrections on a model, as a script of the commands that a user would type.

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
from flows.stories import DEMO, Question, Story
from flows.workspace import Workspace, open_workspace
from ledger.keys import KEYS
from ledger.records import Changeset
from ledger.status import read_state

PLANNER = "Nightly Job <nightly@example.org>"
REVIEWER = "Maya Chen <maya.chen@example.org>"


class Script:
    """Runs commands of `nse` one after another in a workspace and shows them as they would be typed."""

    def __init__(self, directory: Path, console: Console, *, prefect: bool) -> None:
        """Commands run in `directory`; those that are flows through Prefect if `prefect` says so."""
        self.directory, self.console, self.begun = directory, console, time.monotonic()
        self.prefect = ("--prefect",) if prefect else ()
        self.steps: list[tuple[str, float]] = []

    def title(self, text: str, step: str = "") -> None:
        """Says what comes now; `step` is its name in the list of times, if it is more than a part of the step before."""
        if step:
            self.steps.append((step, time.monotonic()))
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

    def times(self) -> str:
        """How long each step took, the last one up to now."""
        ends = [*(begun for _, begun in self.steps[1:]), time.monotonic()]
        pairs = zip(self.steps, ends, strict=True)
        return ", ".join(f"{step} {end - begun:.0f} s" for (step, begun), end in pairs)

    def _show(self, program: str, arguments: Sequence[str]) -> None:
        words = (f"'{a}'" if " " in a else a for a in arguments)
        self.console.print(f"$ {program} {' '.join(words)}", style="bold cyan", markup=False, soft_wrap=True)


def run_demo(directory: Path, story: Story, *, model: Path | None = None, corpus: Path | None = None) -> None:
    """Makes a new workspace in `directory` and leads through a night, an approval, perhaps a second night, and two reverts.

    Args:
        directory: The workspace.
        story: What is shown.
        model: Folder of the model, if it is not to be the story's.
        corpus: Text for second moments, if it is not to be the story's.

    Raises:
        FlowError: If `directory` holds something that is no demo workspace, or a step does not end as it should.
    """
    root = directory.resolve()
    _clear(root)
    script = Script(root, OUT, prefect=story.prefect)
    if not os.environ.get(KEYS):
        os.environ[KEYS] = str(_keys(root))  # of people who do not exist: not among the reader's own
    _make(script, root, story, model or story.model(), corpus)
    here = Path.cwd()
    os.chdir(root)
    try:
        workspace = open_workspace(root)
        _first_night(script, story)
        _ask_the_past(script, story)
        if story.second_night:
            _second_night(script, story.files / story.second_night)
        if story.original is not None:
            _export(script, story.original())
        single, whole = _revert(script, workspace, story.undone)
        script.title("Is everything what the ledger says it is?", "verify and prove")
        script.nse("verify")
        script.title("Proof for somebody who has neither the ledger nor the model")
        script.nse("prove", "1", "--output", "proof.json")
        script.nse("verify", "--proof", "proof.json", "--key", "checkpoints/log.pub")
        _what_next(script, root, story.asked)
        _summary(script, workspace, story, single, whole)
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


def _make(script: Script, root: Path, story: Story, model: Path, corpus: Path | None) -> None:
    script.title("A workspace: a Git and DVC repository with a local remote and a SQLite ledger", "workspace")
    inputs = {
        "--model": model,
        "--hparams": story.files / "hparams.yaml",
        "--contexts": story.files / "contexts.json",
        "--suite": story.files / "suite.yaml",
        "--corpus": corpus or story.corpus(model, root.parent / f"{root.name}-corpus.txt"),
    }
    options = [text for option, path in inputs.items() for text in (option, os.path.relpath(path))]
    script.nse("init", os.path.relpath(root), "--name", story.name, *options, "--user", PLANNER)
    script.dvc("repro", "second_moment")


def _first_night(script: Script, story: Story) -> None:
    script.title("Corrections come in; what cannot be filed is quarantined, with the reason", "corrections")
    script.nse("ingest", str(story.files / "corrections.csv"), *script.prefect)
    script.title("The nightly round: edit, evaluate, gate, store, propose", "round")
    script.nse("plan", "--by", PLANNER, *script.prefect)
    script.title("Approval, by someone who is not a submitter", "approval")
    script.refused("approve", "1", "--by", "ines.rolf", "--reason", "They are my own corrections.")
    _decide(script, 1, "Checked against the sources.")


def _decide(script: Script, number: int, reason: str) -> None:
    """The reviewer approves a changeset, and it is applied."""
    script.nse("approve", str(number), "--by", REVIEWER, "--reason", reason)
    script.nse("apply", str(number), "--by", PLANNER, *script.prefect)


def _ask_the_past(script: Script, story: Story) -> None:
    script.title("The past can be asked about", "questions")
    script.nse("log", "--last", "6")
    script.nse("blame", story.asked.subject)
    for form in ((), ("--chat",)) if story.chat else ((),):
        for version in ("base", "head"):
            script.nse("ask", story.asked.prompt, "--at", version, *form)


def _second_night(script: Script, corrections: Path) -> None:
    script.title(
        "A second night: one of its corrections is false, a canary dies; it is found and left out, the others go on",
        "second night",
    )
    script.nse("ingest", str(corrections), *script.prefect)
    script.nse("plan", "--by", PLANNER, *script.prefect)
    _decide(script, 2, "Right. The capital of France has not moved.")


def _export(script: Script, original: Path) -> None:
    script.title("The version in force, in a form in which it can be served", "export")
    if original.is_file():
        script.nse("export", "gguf", "exports/corrected.gguf", "--from", str(original))
    else:  # the model was not fetched, but given
        script.nse("export", "lora", "exports/adapter")


def _revert(script: Script, workspace: Workspace, undone: Question) -> tuple[Changeset, Changeset]:
    """Reverts one correction, then everything; returns the two changesets."""
    with workspace.ledger().read() as work:
        correction = next(c for c in work.corrections(workspace.model) if c.subject == undone.subject)
        number = len(read_state(work, workspace.model).changesets) + 1
    script.title("Undo a single correction: its column is left out, the others stay", "one reverted")
    script.nse("revert", correction.id[:12], "--reason", "To show it.", "--by", PLANNER, *script.prefect)
    _decide(script, number, "Agreed.")
    script.nse("ask", undone.prompt)
    script.title("Undo everything: the weights are those of the base model again, to the bit", "all reverted")
    script.nse("revert", "--to", "base", "--reason", "To show it.", "--by", PLANNER, *script.prefect)
    _decide(script, number + 1, "Agreed.")
    script.nse("diff", "v1", "head")
    with workspace.ledger().read() as work:
        return work.changeset(f"#{number}"), work.changeset(f"#{number + 1}")


def _what_next(script: Script, root: Path, asked: Question) -> None:
    script.title("What to try next")
    where = os.path.relpath(root, DEMO.parent)
    for line in (
        f"cd {where}                                   # all commands work inside the workspace",
        f"export {KEYS}=$PWD/../{root.name}-keys             # the keys of the people of the demo",
        "nse show 1                                      # the evidence of the first round",
        "nse revert --to v1 --reason 'Bring it back.'    # a revert can be reverted",
        f"nse ask '{asked.prompt}' --at v1    # any version, by number, date or digest",
        "nse serve                                       # run the round every night, through Prefect",
    ):
        script.console.print(f"  {line}", markup=False, soft_wrap=True)


def _summary(script: Script, workspace: Workspace, story: Story, single: Changeset, whole: Changeset) -> None:
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
    late = "" if seconds <= story.seconds else f" (slower than the promised {story.seconds:.0f} s)"
    false = "the false correction was left out; " if story.second_night else ""
    script.console.print()
    script.console.print(f"Times: {script.times()}.", soft_wrap=True)
    script.console.print(
        f"Summary: {len(first.results)} corrections in one round, by free generation: {shares}; perplexity x"
        f"{value['perplexity_ratio']:.3f}; {false}after one revert {100 * kept:.0f}% of the "
        f"others held; after reverting everything the model {same}; {seconds:.0f} s{late}.",
        style="bold",
        soft_wrap=True,
    )
