"""A scenario whose people have keys: every decision is signed, by a key that is registered when it is first used."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ledger import adoption, decisions, persons
from ledger.notes import VerifierKey, key_name
from ledger.persons import Signer
from ledger.policy import POLICY, Policy
from ledger.records import Changeset, Decision, HeadMove, PolicyAdopted
from ledger.unit_of_work import UnitOfWork, open_ledger
from tests.ledger.conftest import MODEL, Scenario


def new_signer(person: str) -> Signer:
    """A key of a person that nobody has registered."""
    private = Ed25519PrivateKey.generate()
    return Signer(VerifierKey(key_name(person), private.public_key().public_bytes_raw()), private)


@dataclass
class Cast(Scenario):
    """A scenario with keys, in memory; `of` registers one for who has none."""

    signers: dict[str, Signer] = field(default_factory=dict)

    def of(self, person: str) -> Signer:
        if person not in self.signers:
            self.enrol(person)
        return self.signers[person]

    def enrol(self, person: str) -> Signer:
        self.signers[person] = new_signer(person)
        with self.ledger.begin() as work:
            self.register(work, self.signers[person], person)
        return self.signers[person]

    def register(self, work: UnitOfWork, signer: Signer, person: str) -> None:
        persons.register(work, signer.key, person=person, by=person, reason="first use", at=self.now())

    def revoke(self, person: str) -> None:
        with self.ledger.begin() as work:
            persons.revoke(work, self.signers[person].id, by="ana", reason="lost", at=self.now())

    def adopt(self, policy: Policy, by: str = "ann") -> PolicyAdopted | None:
        signer = self.of(by)
        if policy.auto:
            self.of(POLICY)
        with self.ledger.begin() as work:
            return adoption.adopt(work, MODEL, policy, by=by, at=self.now(), signer=signer)

    def approve(self, changeset: Changeset, reviewer: str = "bruno", reason: str = "checked", **more: str) -> Decision:
        return self._decide("approve", changeset, reviewer, reason, **more)

    def reject(self, changeset: Changeset, reviewer: str = "bruno", reason: str = "wrong", **more: str) -> Decision:
        return self._decide("reject", changeset, reviewer, reason, **more)

    def withdraw(self, changeset: Changeset, reviewer: str = "bruno", reason: str = "a slip", **more: str) -> Decision:
        return self._decide("withdraw", changeset, reviewer, reason, **more)

    def auto_approve(self, changeset: Changeset) -> Decision | None:
        with self.ledger.begin() as work:
            return decisions.auto_approve(work, changeset, at=self.now(), signer=self.signers[POLICY])

    def apply(self, changeset: Changeset, at: str | None = None) -> HeadMove:
        when = at or self.now()
        with self.ledger.begin() as work:
            decisions.check_applicable(work, changeset, at=when)
            to = changeset.candidate_version
            head = work.head(MODEL)
            return work.move_head(MODEL, expected=head, version=to, changeset_id=changeset.id, at=when, by="nse apply")

    def _decide(
        self, verdict: str, changeset: Changeset, reviewer: str, reason: str, *, at: str = "", key_of: str = ""
    ) -> Decision:
        rule = getattr(decisions, verdict)
        signer = self.of(key_of or reviewer) if (key_of or reviewer).strip() else new_signer("nobody")
        when = at or self.now()
        with self.ledger.begin() as work:
            made = rule(work, changeset, reviewer=reviewer, reason=reason, at=when, signer=signer)
        assert isinstance(made, Decision)
        return made

    def insert(self, decision: Decision, signer: Signer | None = None) -> Decision:
        """Write a decision past the rules, as somebody with SQL access can."""
        if signer is not None:
            decision = replace(decision, id="", key_id=signer.id)
            decision = replace(decision, signature=signer.sign(decision))
        with self.ledger.begin() as work:
            work.add_decision(decision)
        return decision


def new_cast(url: str, path: Path) -> Cast:
    """A ledger at `url` with the base model in force."""
    made = Cast(open_ledger(url), path)
    with made.ledger.begin() as work:
        work.start(MODEL, "ba5e" * 16, made.now(), "nse init")
    return made


@pytest.fixture
def cast(ledger_url: str, tmp_path: Path) -> Cast:
    """A ledger with the base model in force, on SQLite and on PostgreSQL."""
    return new_cast(ledger_url, tmp_path / "ledger.db")
