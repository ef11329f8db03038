"""Checkpoints leave the ledger, proofs convince offline, and a ledger moves to another database."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from flows import checkpoints
from flows.cli import exit_code
from flows.commands import prove as commands
from flows.errors import FlowError
from flows.workspace import Workspace
from ledger.checkpoints import log_key_name, stated
from ledger.errors import LedgerError
from ledger.keys import KeyRing

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs one of the commands of proof; gives its exit code and what it said."""
    app, group = typer.Typer(pretty_exceptions_enable=False), typer.Typer()
    app.command()(commands.verify)
    app.command()(commands.prove)
    group.command("export")(commands.export_ledger)
    group.command("import")(commands.import_ledger)
    app.add_typer(group, name="ledger")

    def call(*arguments: object) -> tuple[int, str]:
        capfd.readouterr()
        try:
            app(args=[str(argument) for argument in arguments])
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        except (FlowError, LedgerError) as error:
            return exit_code(error), str(error)
        return code, capfd.readouterr().out

    return call


@pytest.fixture
def filed(workspace: Workspace, corrections: Callable[..., Path], nse: Callable[..., object]) -> Workspace:
    """A workspace with a correction that waits."""
    nse("ingest", corrections(("Alba", "Paris", "Rome")))
    return workspace


def correction_id(workspace: Workspace) -> str:
    with workspace.ledger().read() as work:
        return work.corrections(workspace.model)[0].id


def test_a_checkpoint_is_signed_and_committed_once(filed: Workspace, git_log: Callable[[], list[str]]) -> None:
    made = checkpoints.record(filed, push=False)
    commits = git_log()
    assert commits[0] == f"Checkpoint of the ledger at {made.size} events"
    assert checkpoints.record(filed, push=False) == made
    assert git_log() == commits
    folder = checkpoints.kept(filed)
    assert folder.notes()[f"{made.size}.note"] == made.note
    assert stated(made.note, folder.keys()).origin == "nse/tiny"


def test_a_checkpoint_that_is_pushed_is_on_the_dvc_remote(filed: Workspace) -> None:
    checkpoints.record(filed, push=True)
    [tracked] = list((filed.root / checkpoints.ARTIFACTS).glob("*.note.dvc"))
    [remote] = [p for p in filed.root.parent.rglob("*") if p.is_file() and "remote" in str(p)]
    assert stated(remote.read_text(), checkpoints.kept(filed).keys()).size
    assert tracked.name.removesuffix(".dvc").endswith(".note")


def test_records_cut_off_the_end_are_found_through_the_checkpoints_of_the_workspace(filed: Workspace, run: Run) -> None:
    import sqlite3
    from contextlib import closing

    size = checkpoints.record(filed, push=False).size
    assert run("verify", "--no-weights") == (
        0,
        "all is well: ledger, artifacts and the weights of every version are what they say they are\n",
    )
    with closing(sqlite3.connect(filed.root / "ledger.db")) as database:
        kept = database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in kept:
            database.execute(f"DROP TRIGGER {name}")
        for table in ("correction_text", "waiting", "correction", "checkpoint"):
            database.execute(f"DELETE FROM {table}")
        database.execute("DELETE FROM log_event WHERE kind = 'correction'")
        for _, made in kept:
            database.execute(made)
        database.commit()
    code, said = run("verify", "--no-weights", "--json")
    findings = json.loads(said)["findings"]
    assert code == 1
    assert any(f"the log had {size} events then" in finding["problem"] for finding in findings)


def test_a_proof_is_checked_with_the_public_key_alone_far_from_the_workspace(
    filed: Workspace, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = run("prove", correction_id(filed)[:8], "--output", tmp_path / "proof.json")
    assert code == 0, said
    key = tmp_path / "log.pub"
    key.write_bytes((filed.root / "checkpoints" / "log.pub").read_bytes())
    monkeypatch.chdir("/")
    monkeypatch.setenv("NSE_LEDGER_URL", "sqlite:////nowhere")
    code, said = run("verify", "--proof", tmp_path / "proof.json", "--key", key)
    assert code == 0
    assert "Alba, capital: Rome -> Paris" in said
    assert "filed by Sue" in said
    (tmp_path / "proof.json").write_text((tmp_path / "proof.json").read_text().replace("Paris", "Padua"))
    code, said = run("verify", "--proof", tmp_path / "proof.json", "--key", key)
    assert (code, said.startswith("not proven: the text is not that of correction")) == (1, True)
    code, said = run("verify", "--proof", tmp_path / "proof.json")
    assert (code, "give --key FILE" in said) == (2, True)


def test_consistency_is_proven_between_checkpoints(
    filed: Workspace, run: Run, corrections: Callable[..., Path], nse: Callable[..., object], tmp_path: Path
) -> None:
    old = checkpoints.record(filed, push=False).size
    nse("ingest", corrections(("Borea", "Tokyo", "Oslo"), name="more.csv"))
    new = checkpoints.record(filed, push=False).size
    code, said = run("prove", "--consistency", old, new, "--output", tmp_path / "proof.json")
    assert code == 0, said
    code, said = run("verify", "--proof", tmp_path / "proof.json", "--key", filed.root / "checkpoints" / "log.pub")
    assert (code, f"begins with the log of {old} events" in said) == (0, True)
    assert run("prove")[0] == 2


def test_a_ledger_is_exported_and_imported_with_the_same_root(filed: Workspace, run: Run, tmp_path: Path) -> None:
    code, said = run("ledger", "export", tmp_path / "out", "--json")
    assert code == 0, said
    url = f"sqlite:///{tmp_path / 'other.db'}"
    assert run("ledger", "import", tmp_path / "out", "--url", url, "--json") == (0, said)
    code, refused = run("ledger", "import", tmp_path / "out", "--url", url)
    assert (code, "is not empty" in refused) == (2, True)


def test_who_has_no_key_of_the_log_proves_with_the_last_checkpoint_and_makes_none(
    filed: Workspace, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.record(filed, push=False)
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=filed.root, capture_output=True, text=True, check=True
    )
    monkeypatch.setenv("NSE_KEYS", str(tmp_path / "another machine"))
    assert run("prove", correction_id(filed))[0] == 0
    assert not (tmp_path / "another machine").exists()
    after = subprocess.run(["git", "status", "--porcelain"], cwd=filed.root, capture_output=True, text=True, check=True)
    assert after.stdout == status.stdout


def test_a_checkpoint_that_cannot_be_signed_now_is_a_warning_and_the_next_one_covers_it(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NSE_KEYS", str(tmp_path / "locked"))
    KeyRing(tmp_path / "locked").create(log_key_name(workspace.model), passphrase="secret")
    assert checkpoints.keep_checkpoint(workspace) is None
    assert "needs its passphrase" in caplog.text
    monkeypatch.setenv("NSE_KEY_PASSPHRASE", "secret")
    size = checkpoints.keep_checkpoint(workspace)
    with workspace.ledger().read() as work:
        assert size == work.log.size()


@pytest.mark.slow
def test_the_proof_of_a_correction_in_force_names_its_changeset_its_approval_and_its_version(
    edited: Workspace, run: Run, tmp_path: Path
) -> None:
    assert run("prove", correction_id(edited), "--output", tmp_path / "proof.json")[0] == 0
    code, said = run("verify", "--proof", tmp_path / "proof.json", "--key", edited.root / "checkpoints" / "log.pub")
    assert code == 0
    for words in ("edited by changeset #1", "approved by Rex", "in force from", "as v1 ("):
        assert words in said
    assert run("verify")[0] == 0
