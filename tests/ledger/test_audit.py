"""Verification finds what was recorded against the rules and artifacts that are not what they were, and says so."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from ledger import audit
from ledger.artifacts import DvcStore
from ledger.erasing import purge, revealing
from ledger.records import ActiveDelta, CaseResult, Changeset, Decision, Gate, HeadMove
from tests.ledger.conftest import FakeStore
from tests.ledger.history import LOG, MODEL, History, full_history, open_history, signer


@pytest.fixture
def history(tmp_path: Path) -> History:
    """A ledger at its base, with two people who may decide."""
    made = open_history(f"sqlite:///{tmp_path / 'ledger.db'}")
    made.start()
    return made


def found(history: History, store: Any = None) -> list[tuple[str, str]]:
    findings = audit.verify(history.ledger, store or FakeStore(), keys=[LOG.key])
    return [(" ".join(f.where.split()[:2]), f.problem) for f in findings]


def decide(history: History, changeset: Changeset, reviewer: str, *, signed_by: str | None = None) -> None:
    """Record a decision past the rules, as a defective program might."""
    key = signer(signed_by) if signed_by else None
    decision = Decision(
        changeset_id=changeset.id,
        verdict="approve",
        reviewer=reviewer,
        reason="mine",
        decided_at=history.now(),
        key_id=key.id if key else None,
    )
    if key:
        object.__setattr__(decision, "signature", key.sign(decision))
    with history.ledger.begin() as work:
        work.add_decision(decision)


def force(history: History, changeset: Changeset) -> None:
    """Move the head to a changeset past the rules."""
    with history.ledger.begin() as work:
        history.move(work, changeset, history.now())


def test_a_ledger_nobody_touched_has_no_findings_on_either_database(ledger_url: str) -> None:
    store = FakeStore()
    steps: list[tuple[str, int, int]] = []
    history = full_history(ledger_url)
    findings = audit.verify(history.ledger, store, keys=[LOG.key], progress=lambda *step: steps.append(step))
    assert findings == []
    assert len(store.checked) == len(set(store.checked)) == 5
    assert {stage for stage, _, _ in steps} == {"rows of the ledger", "decisions", "artifacts"}
    assert all(done <= total for _, done, total in steps)


def test_a_changeset_applied_without_approval_is_found(history: History) -> None:
    force(history, history.propose(history.file()))
    assert found(history) == [("changeset #1", "it was applied when it had 0 of 1 approvals")]


def test_a_failed_gate_and_the_approval_of_who_filed_it_are_found(history: History) -> None:
    with history.ledger.begin() as work:
        history.register(work, "Sub")
    changeset = history.propose(history.file(), gates=(Gate("specificity", ">=", 0.9, 0.5, False),))
    decide(history, changeset, "SUB", signed_by="Sub")
    force(history, changeset)
    problems = [problem for _, problem in found(history)]
    assert problems[0] == "a gate failed"
    assert problems[1] == "the approve by SUB: SUB filed one of its corrections"
    assert problems[2].startswith("it was applied when it had 0 of 1 approvals")


@pytest.mark.parametrize(
    ("signed_by", "problem"),
    [
        (None, "it is not signed"),
        ("Rex", "it is signed with the key of Rex"),
        ("Mallory", "was not registered before it"),
    ],
)
def test_a_decision_that_its_reviewer_did_not_sign_is_found_applied_or_not(
    history: History, signed_by: str | None, problem: str
) -> None:
    changeset = history.propose(history.file())
    decide(history, changeset, "Ann Ölz", signed_by=signed_by)
    [(where, said)] = found(history)
    assert where.startswith("decision ")
    assert problem in said
    force(history, changeset)
    assert any(problem in said for where, said in found(history) if where == "changeset #1")


def test_a_head_whose_changeset_was_planned_on_another_head_is_found(history: History) -> None:
    stale = history.propose(history.file())
    history.approve(stale)
    history.write(history.file("Bulgaria"))
    with history.ledger.begin() as work:
        head = work.head(MODEL)
        move = HeadMove(MODEL, head.position + 1, stale.candidate_version, stale.id, history.now(), "x")
        work._add(move, at=move.moved_at)
    where, problem = found(history)[-1]
    assert (where, problem) == ("head_move world", "changeset #1 was not planned on the head before")


def test_changesets_on_different_bases_or_on_no_head_are_found(history: History) -> None:
    history.propose(history.file())
    history.propose(history.file("Bulgaria"), base_digest="0" * 64)
    history.propose(history.file("Latvia"), parent_version="1" * 64)
    assert found(history) == [
        ("changeset #2", f"its base is {'0' * 12}, that of #1 is {'ba5e' * 3}"),
        ("changeset #3", "no head of the model was what it says it was planned on"),
    ]


def test_every_problem_of_every_artifact_is_reported_and_a_purged_one_is_none(history: History) -> None:
    correction = history.file()
    [change] = history.write(correction).changes
    store = FakeStore()
    store.problems = {change.path: ["is gone", "is not on the remote"]}
    assert found(history, store) == [(f"artifact {change.path}", problem) for problem in store.problems[change.path]]
    history.write(kind="revert", active=())
    with history.ledger.begin() as work:
        [artifact] = revealing(work, correction)
        purge(work, artifact, reason="article 17", by="Dora", at=history.now())
    assert found(history, store) == []


def test_a_delta_with_one_byte_changed_is_found_and_a_missing_one_is_pulled(
    history: History, workspace: Path, tmp_path: Path
) -> None:
    store = DvcStore(workspace)
    active = []
    for number in range(2):
        (tmp_path / "delta").write_bytes(b"factors %d" % number)
        stored = store.put(tmp_path / "delta", "artifacts/deltas")
        active.append(ActiveDelta(stored.sha256, stored.path))
    one, two = history.file(), history.file("Bulgaria")
    results = tuple(CaseResult(c.id, "edited", 9, 1, d.sha256) for c, d in zip((one, two), active, strict=True))
    history.write(active=tuple(active), results=results)
    (workspace / active[1].path).unlink()
    shutil.rmtree(workspace / ".dvc" / "cache")
    assert found(history, store) == []
    assert (workspace / active[1].path).exists()

    spoilt = workspace / active[0].path
    content = bytearray(spoilt.read_bytes())
    content[3] ^= 1
    spoilt.chmod(0o644)
    spoilt.write_bytes(content)
    [(where, problem)] = found(history, store)
    assert where == f"artifact {active[0].path}"
    assert "holds other bytes" in problem
