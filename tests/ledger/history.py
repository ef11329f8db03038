"""A ledger with a history in which everything happens: rows in every table, every column filled, signed and approved.

Made with fixed keys, salts and times, so that it is the same in every run.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import count
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ledger import checkpoints
from ledger.active import changes_between
from ledger.adoption import adopt
from ledger.checkpoints import SignedCheckpoint, log_key_name, origin_of
from ledger.database import connect
from ledger.decisions import approve, auto_approve, check_applicable, reject
from ledger.notes import VerifierKey, key_name
from ledger.persons import Signer, register, revoke
from ledger.policy import POLICY, Auto, Policy
from ledger.records import (
    ActiveDelta,
    CaseResult,
    CaseRow,
    Changeset,
    Correction,
    Erasure,
    Gate,
    Metric,
    Quarantined,
)
from ledger.unit_of_work import Ledger

MODEL = "world"
BASE = "ba5e" * 16
FILLED = 240


def signer(name: str) -> Signer:
    """Return the key of a person or a log that is always the same."""
    private = Ed25519PrivateKey.from_private_bytes(sha256(name.encode()).digest())
    return Signer(VerifierKey(key_name(name), private.public_key().public_bytes_raw()), private)


LOG = signer(log_key_name(MODEL))
ORIGIN = origin_of(MODEL)


def salts() -> Callable[[], str]:
    """Return salts that are the same in every run."""
    numbers = count()
    return lambda: sha256(f"salt {next(numbers)}".encode()).hexdigest()[:32]


@dataclass
class History:
    """Short words for what happens in a ledger."""

    ledger: Ledger
    seconds: Iterator[int] = field(default_factory=count)
    numbers: Iterator[int] = field(default_factory=count)

    def now(self) -> str:
        passed = next(self.seconds)
        return f"2026-11-{21 + passed // 86400:02}T{passed // 3600 % 24:02}:{passed // 60 % 60:02}:{passed % 60:02}Z"

    def start(self) -> None:
        with self.ledger.begin() as work:
            work.start(MODEL, BASE, self.now(), "nse init")
            for person in ("Ann Ölz", "Rex"):
                self.register(work, person)
            adopt(work, MODEL, Policy(), by="Rex", at=self.now(), signer=signer("Rex"))

    def register(self, work: Any, person: str) -> None:
        register(work, signer(person).key, person=person, by=person, reason="first use", at=self.now())

    def file(self, subject: str = "Croatia", target: str = "euro", **changes: Any) -> Correction:
        with self.ledger.begin() as work:
            filed = work.add_correction(self.correction(subject, target, **changes)).record
        assert isinstance(filed, Correction)
        return filed

    def correction(self, subject: str, target: str, **changes: Any) -> Correction:
        values: dict[str, Any] = {
            "model": MODEL,
            "subject": subject,
            "relation": "currency",
            "prompt_template": "The currency of {} is the",
            "target_new": target,
            "target_true": "kuna",
            "source": "gazette 7",
            "submitter": "Sub",
            "reason": 'it "changed", 100 %',
            "effective_date": "2023-01-01",
            "filed_at": self.now(),
            "file_name": "corrections.csv",
            "line": 2,
        }
        return Correction(**{**values, **changes})

    def changeset(self, work: Any, *corrections: Correction, **changes: Any) -> Changeset:
        """Plan one new delta on top of the head, with evidence of every kind; or, with `active`, what that says."""
        head = work.head(MODEL)
        active = work.active(MODEL, head.position)
        number = next(self.numbers)
        digest = sha256(f"delta {number}".encode()).hexdigest()
        delta = ActiveDelta(digest, f"artifacts/deltas/{digest[:16]}.safetensors")
        after = changes.pop("active", (*active, delta))
        values: dict[str, Any] = {
            "model": MODEL,
            "kind": "edit",
            "parent": head.changeset_id,
            "parent_version": head.version,
            "candidate_version": sha256(f"version {number}".encode()).hexdigest(),
            "base_digest": BASE,
            "plan_digest": sha256(f"plan {number}".encode()).hexdigest(),
            "changes": changes_between(active, after),
            "results": tuple(CaseResult(c.id, "edited", 9.5, 0.25, digest) for c in corrections),
            "metrics": (Metric("efficacy", "head", 0.0), Metric("fluency", "candidate", float("nan"))),
            "gates": (Gate("efficacy", ">=", 0.9, 1.0, True),),
            "cases": tuple(
                CaseRow("efficacy", "candidate", c.id, c.prompt_template, c.target_new, 0.9, "euro.", True)
                for c in corrections
            ),
            "provenance": {"seed": "1", "hyperparameters": '{"lr": 0.5}'},
            "reason": "nightly",
            "planned_by": "nse plan",
            "planned_at": self.now(),
        }
        return Changeset(**{**values, **changes})

    def propose(self, *corrections: Correction, **changes: Any) -> Changeset:
        with self.ledger.begin() as work:
            return work.add_changeset(self.changeset(work, *corrections, **changes))

    def approve(self, changeset: Changeset, reviewer: str = "Rex") -> None:
        with self.ledger.begin() as work:
            approve(work, changeset, reviewer=reviewer, reason="checked", at=self.now(), signer=signer(reviewer))

    def reject(self, changeset: Changeset, reviewer: str = "Ann Ölz") -> None:
        with self.ledger.begin() as work:
            reject(work, changeset, reviewer=reviewer, reason="no", at=self.now(), signer=signer(reviewer))

    def apply(self, changeset: Changeset) -> None:
        with self.ledger.begin() as work:
            at = self.now()
            check_applicable(work, changeset, at=at)
            self.move(work, changeset, at)

    def move(self, work: Any, changeset: Changeset, at: str) -> None:
        head, version = work.head(MODEL), changeset.candidate_version
        work.move_head(MODEL, expected=head, version=version, changeset_id=changeset.id, at=at, by="nse apply")

    def write(self, *corrections: Correction, **changes: Any) -> Changeset:
        """Propose, approve and apply."""
        changeset = self.propose(*corrections, **changes)
        self.approve(changeset)
        self.apply(changeset)
        return changeset

    def revert(self, correction: Correction) -> Changeset:
        """Write a changeset that drops a correction's columns."""
        with self.ledger.read() as work:
            active = work.active(MODEL, work.head(MODEL).position)
        kept = tuple(ActiveDelta(d.sha256, d.path, (*d.dropped, correction.id)) for d in active)
        return self.write(kind="revert", mode="drop", active=kept, reverted=(correction.id,))

    def quarantine(self, line: int = 3) -> Quarantined:
        row = Quarantined(
            file_name="corrections.csv",
            file_digest="f1" * 32,
            line=line,
            field="subject",
            reason="is empty: write one",
            row_text=f"{line},currency,€",
            quarantined_at=self.now(),
        )
        with self.ledger.begin() as work:
            kept = work.add_quarantined(row).record
        assert isinstance(kept, Quarantined)
        return kept

    def erase(self, ref: str) -> None:
        with self.ledger.begin() as work:
            work.erase(Erasure(ref=ref, reason="article 17", erased_by="Dora", erased_at=self.now()))

    def by_policy(self, correction: Correction) -> Changeset:
        """Let a policy approve a changeset, and apply it."""
        with self.ledger.begin() as work:
            register(work, LOG.key, person=POLICY, by="nse", reason="the key of the log", at=self.now())
            adopt(work, MODEL, Policy(auto=Auto(max_corrections=1)), by="Rex", at=self.now(), signer=signer("Rex"))
        changeset = self.propose(correction)
        with self.ledger.begin() as work:
            assert auto_approve(work, changeset, at=self.now(), signer=LOG)
        self.apply(changeset)
        return changeset

    def checkpoint(self) -> SignedCheckpoint:
        with self.ledger.begin() as work:
            return checkpoints.checkpoint(work, LOG, origin=ORIGIN)

    def revoke(self, person: str) -> None:
        with self.ledger.begin() as work:
            revoke(work, signer(person).id, by=person, reason="lost", at=self.now())


def open_history(url: str) -> History:
    """Return an empty history in the ledger at `url`."""
    return History(Ledger(connect(url, create=True), new_salt=salts()))


def full_history(url: str, *, filled: int = FILLED) -> History:
    """Make a ledger in which everything has happened, and `filled` and two corrections still wait."""
    history = open_history(url)
    history.start()
    first = history.file()
    history.write(first)
    history.quarantine()
    second = history.file("Croatia", "Euro", supersedes=first.id)
    history.checkpoint()
    history.write(second, history.file("Bulgaria", "euro"))
    history.revert(second)
    history.reject(history.propose(history.file("Latvia", "lat", relation=None, target_true=None)))
    secret = history.file("Secret Person", "somewhere")
    history.write(secret)
    history.revert(secret)
    history.erase(secret.id)
    history.erase(history.quarantine(line=4).id)
    history.revoke("Ann Ölz")
    history.by_policy(history.file("Cyprus", "euro"))
    with history.ledger.begin() as work:  # so many that the log has a node
        work.file([history.correction(f"Country {number}", "euro") for number in range(filled)])
    history.checkpoint()
    history.file("Estonia", "euro", effective_date=None)
    history.file("Malta", "euro")
    return history
