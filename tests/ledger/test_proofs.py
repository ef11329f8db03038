"""A proof convinces who holds nothing but the log's public key, and a changed byte of it convinces nobody."""

import json
import re
from pathlib import Path

import pytest
from sqlalchemy import func, select

from ledger import tables
from ledger.checkpoints import SignedCheckpoint, at_size, latest
from ledger.errors import LedgerError
from ledger.merkle import ProofError
from ledger.notes import Checkpoint, NoteError, sign_checkpoint
from ledger.proofs import check, prove, prove_consistency
from ledger.records import Correction
from ledger.repository import select_records
from ledger.unit_of_work import Ledger
from tests.ledger.history import LOG, History, full_history, open_history, signer


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """A full ledger; nothing is written to it."""
    return full_history(f"sqlite:///{tmp_path_factory.mktemp('proofs') / 'ledger.db'}").ledger


def proof_of(ledger: Ledger, reference: str) -> str:
    with ledger.read() as work:
        checkpoint = latest(work)
        assert checkpoint is not None
        return prove(work, reference, checkpoint)


def correction(ledger: Ledger, place: int) -> Correction:
    with ledger.read() as work:
        return select_records(work.connection, Correction)[place]


def test_the_proof_of_a_correction_tells_its_whole_story(ledger: Ledger) -> None:
    lines = check(proof_of(ledger, correction(ledger, 1).id[:10]), [LOG.key])
    said = "\n".join(lines)
    assert re.search(r"correction [0-9a-f]{12}: Croatia, currency: kuna -> Euro \(source: gazette 7; reason: ", said)
    assert "filed by Sub at 2026-11-21T" in said
    assert "edited by changeset #2: changeset #2 (edit) planned by nse plan" in said
    assert re.search(r"gate efficacy: 1.0 >= 0.9, passed\n  approved by Rex at .*signed with a key registered as", said)
    assert re.search(r"in force from 2026-11-21T00:00:\d\dZ as v2 ", said)
    assert "taken out by changeset #3: changeset #3 (revert)" in said
    assert re.search(r"in the log nse/world of \d+ events, root [0-9a-f]{64}, signed$", said)


def test_the_proof_of_an_erased_correction_holds_no_text_and_still_proves(ledger: Ledger) -> None:
    with ledger.read() as work:
        erased = next(c for c in select_records(work.connection, Correction) if c.erased)
    proof = proof_of(ledger, erased.id)
    assert "Secret" not in proof
    assert check(proof, [LOG.key])[0] == f"correction {erased.id[:12]}, its text not shown"


def test_a_correction_that_waits_is_proven_to_be_filed(ledger: Ledger) -> None:
    lines = check(proof_of(ledger, correction(ledger, 10).id), [LOG.key])
    assert "by this proof no changeset put it in force" in lines


def test_the_proof_of_a_changeset_is_found_by_number_or_id(ledger: Ledger) -> None:
    proof = proof_of(ledger, "#1")
    assert json.loads(proof)["text"] is None
    assert check(proof, [LOG.key])[0].startswith("changeset #1 (edit) planned by nse plan")
    identity = next(iter(json.loads(proof)["parts"]))
    assert proof_of(ledger, "1") == proof_of(ledger, identity[:9]) == proof


def test_an_approval_by_policy_is_proven_with_the_policy(ledger: Ledger) -> None:
    proof = json.loads(proof_of(ledger, "#7"))
    assert {json.loads(event["leaf"])["event"] for event in proof["events"]} >= {"policy", "key_event", "decision"}
    assert any("approved by policy" in line for line in check(proof_of(ledger, "#7"), [LOG.key]))


def test_any_changed_byte_of_a_proof_is_refused(ledger: Ledger) -> None:
    for proof in (proof_of(ledger, correction(ledger, 0).id), consistency(ledger)):
        for place in range(0, len(proof), 11 if len(proof) > 5000 else 1):
            spoilt = proof[:place] + chr(ord(proof[place]) ^ 1) + proof[place + 1 :]
            with pytest.raises(LedgerError):
                check(spoilt, [LOG.key])


def first_size(ledger: Ledger) -> int:
    with ledger.read() as work:
        return int(work.connection.scalar(select(func.min(tables.checkpoint.c.size))) or 0)


def consistency(ledger: Ledger) -> str:
    with ledger.read() as work:
        checkpoint = latest(work)
        assert checkpoint is not None
        return prove_consistency(work, first_size(ledger), checkpoint.size)


def test_a_proof_is_refused_without_the_key_of_the_log(ledger: Ledger) -> None:
    proof = proof_of(ledger, "#1")
    with pytest.raises(NoteError, match="not signed by a known key"):
        check(proof, [signer("Mallory").key])
    with pytest.raises(ProofError, match="there is no key"):
        check(proof, [])


@pytest.mark.parametrize("text", ["", "[]", "{}\n", "null\n", '{\n "format": "nse.proof/v1"\n}\n', "[" * 100_000])
def test_what_is_no_proof_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ProofError, match="this is no proof"):
        check(text, [LOG.key])


def rewritten(proof: str, change) -> str:
    made = json.loads(proof)
    change(made)
    return json.dumps(made, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def drop(kind: str):
    def change(made) -> None:
        made["events"] = [event for event in made["events"] if json.loads(event["leaf"])["event"] != kind]

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (drop("key_event"), "lacks the key of Rex"),
        (drop("changeset"), "lacks a changeset, or the parts"),
        (lambda made: made["parts"].clear(), "lacks a changeset, or the parts"),
        (lambda made: made["events"].reverse(), "about neither a correction nor a changeset"),
        (lambda made: made["text"].update(target_new="kuna"), "the text is not that of correction"),
        (lambda made: next(iter(made["parts"].values()))["gates"].clear(), "does not have the id of its content"),
        (lambda made: made["events"][0].update(index=3), "is not in the tree"),
        (lambda made: made["events"][0]["path"].pop(), "too short"),
        (lambda made: made.update(more=1), "it has checkpoint"),
    ],
)
def test_a_proof_with_something_left_out_or_put_in_is_refused(ledger: Ledger, change, problem: str) -> None:
    proof = proof_of(ledger, correction(ledger, 0).id)
    with pytest.raises(ProofError, match=problem):
        check(rewritten(proof, change), [LOG.key])


def test_events_of_another_changeset_cannot_be_smuggled_in(ledger: Ledger) -> None:
    proof, other = proof_of(ledger, "#1"), json.loads(proof_of(ledger, "#2"))
    for stranger in other["events"][1:]:
        if json.loads(stranger["leaf"])["event"] in ("decision", "head_move"):
            with pytest.raises(ProofError, match="has nothing to do with what is proven"):
                check(rewritten(proof, lambda made, s=stranger: made["events"].append(s)), [LOG.key])


def test_what_is_newer_than_the_checkpoint_is_not_proven(ledger: Ledger) -> None:
    with ledger.read() as work:
        first = at_size(work, first_size(ledger))
        assert first is not None
        with pytest.raises(LedgerError, match=rf"the checkpoint of {first.size} events was made before"):
            prove(work, correction(ledger, -1).id, first)


def test_a_reference_to_nothing_is_refused(ledger: Ledger) -> None:
    for reference in ("#99", "0000000", "Croatia"):
        with pytest.raises(LedgerError):
            proof_of(ledger, reference)


def test_consistency_is_proven_between_a_signed_checkpoint_and_any_earlier_size(ledger: Ledger) -> None:
    assert check(consistency(ledger), [LOG.key])[1].endswith(", signed)")
    with ledger.read() as work:
        checkpoint = latest(work)
        assert checkpoint is not None
        proof = prove_consistency(work, 5, checkpoint.size)
        assert "not signed: compare the root" in check(proof, [LOG.key])[1]
        with pytest.raises(LedgerError, match="no checkpoint of size 7"):
            prove_consistency(work, 5, 7)


def small(folder: Path, events: int) -> History:
    history = open_history(f"sqlite:///{folder / 'small.db'}")
    history.start()
    with history.ledger.begin() as work:
        work.file([history.correction(f"Country {n}", "euro") for n in range(events - work.log.size())])
    return history


def test_every_correction_and_every_pair_of_sizes_up_to_64_events_can_be_proven(tmp_path: Path) -> None:
    history = small(tmp_path, 64)
    with history.ledger.read() as work:
        corrections = select_records(work.connection, Correction)
        first = 64 - len(corrections)
        notes = {}
        for size in range(first + 1, 65):
            stated = Checkpoint("nse/world", size, work.log.root(size))
            notes[size] = SignedCheckpoint(size, sign_checkpoint(stated, LOG.key.name, LOG.private))
        for size, note in notes.items():
            for place in (0, (size - first) // 2, size - first - 1):
                assert len(check(prove(work, corrections[place].id, note), [LOG.key])) == 4
        for place, correction in enumerate(corrections):
            assert f"event {first + place + 1})" in check(prove(work, correction.id, notes[64]), [LOG.key])[1]
