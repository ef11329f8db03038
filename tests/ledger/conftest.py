"""A small cast for the tests of the ledger: a scenario that files, plans, decides and applies; stores; a workspace."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ledger import decisions, persons
from ledger.active import changes_between
from ledger.artifacts import StoredArtifact
from ledger.notes import VerifierKey, key_name
from ledger.persons import Signer
from ledger.records import (
    ActiveDelta,
    CaseResult,
    CaseRow,
    Changeset,
    Correction,
    Decision,
    Gate,
    HeadMove,
    Metric,
    Quarantined,
)
from ledger.status import correction_status
from ledger.unit_of_work import Ledger, open_ledger

MODEL = "demo"


def pytest_configure(config: pytest.Config) -> None:
    """Let DVC 3.67 use a property of pygtrie that is to change: it is not ours to mend."""
    config.addinivalue_line("filterwarnings", "ignore:_NoneStep.value will soon:DeprecationWarning")


class FakeStore:
    """An artifact store that holds what it is told to hold."""

    def __init__(self) -> None:
        self.problems: dict[str, list[str]] = {}
        self.checked: list[str] = []

    def put(self, source: Path, folder: str, *, suffix: str = ".safetensors") -> StoredArtifact:
        sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
        return StoredArtifact(f"{folder}/{sha256[:16]}{suffix}", sha256)

    def fetch(self, path: str, sha256: str) -> Path:
        return Path(path)

    def check(self, path: str, sha256: str) -> list[str]:
        self.checked.append(path)
        return self.problems.get(path, [])


@dataclass
class Scenario:
    """A ledger and short words for what happens in one."""

    ledger: Ledger
    path: Path
    seconds: int = 0
    deltas: int = field(default=0)
    signers: dict[str, Signer] = field(default_factory=dict)

    def now(self) -> str:
        self.seconds += 1
        return f"2026-11-21T{self.seconds // 3600:02}:{self.seconds // 60 % 60:02}:{self.seconds % 60:02}Z"

    def file(self, subject: str = "Croatia", target: str = "euro", **changes: Any) -> Correction:
        correction = self.correction(subject, target, **changes)
        with self.ledger.begin() as work:
            filed = work.add_correction(correction).record
        assert isinstance(filed, Correction)
        return filed

    def correction(self, subject: str = "Croatia", target: str = "euro", **changes: Any) -> Correction:
        values: dict[str, Any] = {
            "model": MODEL,
            "subject": subject,
            "relation": "currency",
            "prompt_template": "The currency of {} is the",
            "target_new": target,
            "source": "eurostat",
            "submitter": "ana",
            "reason": "law",
            "filed_at": self.now(),
            "file_name": "corrections.csv",
            "line": 2,
        }
        return Correction(**{**values, **changes})

    def changeset(self, *corrections: Correction, **changes: Any) -> Changeset:
        """Build what the planner would: one new delta on top of the head, with evidence of every kind."""
        with self.ledger.read() as work:
            head = work.head(MODEL)
            active = work.active(MODEL, head.position)
        self.deltas += 1
        sha256 = hashlib.sha256(f"delta {self.deltas}".encode()).hexdigest()
        delta = ActiveDelta(sha256, f"artifacts/deltas/{sha256[:16]}.safetensors")
        values: dict[str, Any] = {
            "model": MODEL,
            "kind": "edit",
            "parent": head.changeset_id,
            "parent_version": head.version,
            "candidate_version": hashlib.sha256(f"version {self.deltas}".encode()).hexdigest(),
            "base_digest": "ba5e" * 16,
            "plan_digest": hashlib.sha256(f"plan {self.deltas}".encode()).hexdigest(),
            "results": tuple(CaseResult(c.id, "edited", 9.5, 0.25, sha256) for c in corrections),
            "metrics": (Metric("efficacy", "head", 0.0), Metric("efficacy", "candidate", 1.0)),
            "gates": (Gate("efficacy", ">=", 0.9, 1.0, True),),
            "cases": tuple(
                CaseRow("efficacy", "candidate", c.id, c.prompt_template, c.target_new, 0.9, "euro.", True)
                for c in corrections
            ),
            "provenance": {"seed": "1", "hyperparameters": "{}"},
            "reason": "nightly",
            "planned_by": "nse plan",
            "planned_at": self.now(),
        }
        after = changes.pop("active", (*active, delta))  # what shall be in force; by default what is, and a new delta
        return Changeset(**{**values, "changes": changes_between(active, after), **changes})

    def propose(self, *corrections: Correction, **changes: Any) -> Changeset:
        changeset = self.changeset(*corrections, **changes)
        with self.ledger.begin() as work:
            return work.add_changeset(changeset)

    def signer_of(self, person: str) -> Signer:
        """The person's key, in memory; made and registered when it is first asked for."""
        if person not in self.signers:
            private = Ed25519PrivateKey.generate()
            key = VerifierKey(key_name(person or "nobody"), private.public_key().public_bytes_raw())
            self.signers[person] = Signer(key, private)
            if person.strip():
                with self.ledger.begin() as work:
                    persons.register(work, key, person=person, by=person, reason="first use", at=self.now())
        return self.signers[person]

    def approve(self, changeset: Changeset, reviewer: str = "bruno", reason: str = "checked") -> Decision:
        signer = self.signer_of(reviewer)
        with self.ledger.begin() as work:
            return decisions.approve(work, changeset, reviewer=reviewer, reason=reason, at=self.now(), signer=signer)

    def reject(self, changeset: Changeset, reviewer: str = "bruno", reason: str = "wrong") -> Decision:
        signer = self.signer_of(reviewer)
        with self.ledger.begin() as work:
            return decisions.reject(work, changeset, reviewer=reviewer, reason=reason, at=self.now(), signer=signer)

    def apply(self, changeset: Changeset) -> HeadMove:
        with self.ledger.begin() as work:
            return work.move_head(
                MODEL,
                expected=work.head(MODEL),
                version=changeset.candidate_version,
                changeset_id=changeset.id,
                at=self.now(),
                by="nse apply",
            )

    def write(self, *corrections: Correction, **changes: Any) -> Changeset:
        """Propose, approve and apply."""
        changeset = self.propose(*corrections, **changes)
        self.approve(changeset)
        self.apply(changeset)
        return changeset

    def revert(self, *corrections: Correction) -> Changeset:
        """Write a changeset that drops corrections' columns and changes nothing else."""
        with self.ledger.read() as work:
            active = work.active(MODEL, work.head(MODEL).position)
        gone = tuple(correction.id for correction in corrections)
        kept = tuple(ActiveDelta(d.sha256, d.path, (*d.dropped, *gone)) for d in active)
        return self.write(kind="revert", active=kept, reverted=gone)

    def status(self, correction: Correction) -> str:
        with self.ledger.read() as work:
            return correction_status(work, MODEL)[correction.id]

    def quarantine(self) -> Quarantined:
        row = Quarantined(
            file_name="corrections.csv",
            file_digest="f1" * 32,
            line=3,
            field="subject",
            reason="is empty: write one",
            row_text=",currency,€",
            quarantined_at=self.now(),
        )
        with self.ledger.begin() as work:
            kept = work.add_quarantined(row).record
        assert isinstance(kept, Quarantined)
        return kept


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    """A new ledger whose one model is at its base."""
    return start(tmp_path)


def start(folder: Path) -> Scenario:
    path = folder / "ledger.db"
    made = Scenario(open_ledger(f"sqlite:///{path}", create=True), path)
    with made.ledger.begin() as work:
        work.start(MODEL, "ba5e" * 16, made.now(), "nse init")
    return made


@pytest.fixture(scope="session")
def full_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with a row in every table, and every column filled, made once."""
    scenario = start(tmp_path_factory.mktemp("full"))
    first = scenario.file(target_true="kuna", effective_date="2023-01-01", relation="currency")
    scenario.quarantine()
    scenario.write(
        first,
        active=(ActiveDelta("d1" * 32, "artifacts/deltas/one.safetensors", ()),),
        results=(CaseResult(first.id, "edited", 9.5, 0.25, "d1" * 32),),
    )
    scenario.write(scenario.file(target="Euro", supersedes=first.id))
    return scenario.path


@pytest.fixture
def full(full_template: Path, tmp_path: Path) -> Scenario:
    """A ledger of its own with a row in every table, and every column filled."""
    path = tmp_path / "full.db"
    shutil.copyfile(full_template, path)  # no process has it open, so nothing is left in a WAL
    return Scenario(open_ledger(f"sqlite:///{path}"), path, seconds=1000, deltas=1000)


@pytest.fixture
def fake_store() -> FakeStore:
    """An artifact store in which all is well."""
    return FakeStore()


@pytest.fixture(scope="session")
def workspace_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Git + DVC repository with a local remote beside it, made once."""
    from dvc.repo import Repo

    folder = tmp_path_factory.mktemp("template")
    os.environ["DVC_SITE_CACHE_DIR"] = str(folder / "site")
    os.environ["DVC_NO_ANALYTICS"] = "1"
    root = folder / "workspace"
    (root / "artifacts").mkdir(parents=True)
    (folder / "remote").mkdir()
    for arguments in (["init", "-q"], ["config", "user.name", "test"], ["config", "user.email", "test@example.org"]):
        subprocess.run(["git", "-C", str(root), *arguments], check=True)
    Repo.init(str(root)).close()
    (root / ".dvc" / "config").write_text(
        "[core]\n    analytics = false\n    remote = near\n['remote \"near\"']\n    url = ../../remote\n"
    )
    (root / ".gitignore").write_text(".nse/\n*.db*\n")
    subprocess.run(["git", "-C", str(root), "add", "-A"], check=True)
    subprocess.run(["git", "-C", str(root), "commit", "-q", "-m", "workspace"], check=True)
    return folder


@pytest.fixture
def workspace(workspace_template: Path, tmp_path: Path) -> Path:
    """A workspace of its own; its remote is `../remote`."""
    shutil.copytree(workspace_template / "workspace", tmp_path / "workspace")
    (tmp_path / "remote").mkdir()
    return tmp_path / "workspace"


@pytest.fixture
def run_script(workspace_template: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start Python scripts in processes of their own; whatever still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(script: str, *arguments: str) -> "subprocess.Popen[str]":
        import sys

        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-c", script, *arguments]
        started.append(
            subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()
