"""Proofs about single records that anybody can check offline, without the ledger, against a signed checkpoint.

A proof holds the leaves of the records it is about with their paths to the root of a checkpoint (RFC 6962), and what binds
them to one another: the parts of a changeset from which its id follows, the salted text of a correction, the public keys of
who decided. `check` believes nothing but the key that signed the checkpoint.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table, select

from ledger import keys as signatures
from ledger import merkle, repository, tables
from ledger.checkpoints import SignedCheckpoint, at_size, stated
from ledger.errors import LedgerError
from ledger.forms import leaf_form, part_form
from ledger.merkle import ProofError
from ledger.notes import Checkpoint, VerifierKey
from ledger.policy import same_person
from ledger.records import (
    PARTS,
    Changeset,
    Correction,
    Decision,
    Identified,
    digest_of,
    parts_digest,
    statement,
)
from ledger.unit_of_work import UnitOfWork

INCLUSION = "nse.proof/v1"
CONSISTENCY = "nse.consistency/v1"
_DISTRUST = "do not trust it; ask for the proof again"
_PARTS_SHOWN = frozenset({"changes", "results", "gates"})


# --- making


def prove(work: UnitOfWork, reference: str, checkpoint: SignedCheckpoint) -> str:
    """Return the proof of a correction, or of a changeset ('#3', '3' or by its id), with all that put it in force.

    Raises:
        LedgerError: Nothing or several things have that reference, or something is newer than the checkpoint.
    """
    correction, changesets = _subject(work, reference)
    rows: list[tuple[Table, Mapping[str, Any]]] = []
    if correction is not None:
        rows += _rows(work, tables.correction, tables.correction.c.id == correction.id)
    for changeset in changesets:
        rows += _story(work, changeset)
    unique = {row["sequence"]: (table, row) for table, row in rows}
    size = checkpoint.size
    text = None
    if correction is not None and not correction.erased:
        text = {name: getattr(correction, name) for name in ("salt", *correction.erasable)}
    return _written(
        {
            "format": INCLUSION,
            "checkpoint": checkpoint.note,
            "events": [_event(work, table, row, size) for table, row in unique.values()],
            "text": text,
            "parts": {changeset: _parts(work, changeset) for changeset in changesets},
        }
    )


def prove_consistency(work: UnitOfWork, old: int, new: int) -> str:
    """Return the proof that the log of `new` events begins with the log of `old` events.

    Raises:
        LedgerError: There is no checkpoint of the `new` size, or the log is shorter.
    """
    after, before = at_size(work, new), at_size(work, old)
    if after is None:
        raise LedgerError(f"there is no checkpoint of size {new}", 'see the folder "checkpoints" for those there are')
    path = merkle.consistency_proof(old, new, work.log.subtree)
    unsigned = Checkpoint(stated(after.note).origin, old, work.log.root(old)).text()
    return _written(
        {
            "format": CONSISTENCY,
            "old": before.note if before else unsigned,
            "new": after.note,
            "path": [node.hex() for node in path],
        }
    )


def _subject(work: UnitOfWork, reference: str) -> tuple[Correction | None, list[str]]:
    """The correction that is meant, if one is, and the changesets of the story, in order."""
    if reference.startswith("#") or (reference.isdecimal() and len(reference) < 6):
        return None, [work.changeset(reference).id]
    try:
        correction = work.correction(reference)
    except LedgerError as error:
        try:
            return None, [work.changeset(reference).id]
        except LedgerError:
            raise error from None
    return correction, _applied_about(work, correction.id)


def _applied_about(work: UnitOfWork, correction_id: str) -> list[str]:
    """The applied changesets that wrote a correction, or took its columns away again."""
    result, change, move = tables.changeset_result, tables.changeset_change, tables.head_move
    wrote = select(result.c.changeset_id, result.c.delta).where(result.c.correction_id == correction_id)
    written = work.connection.execute(wrote).all()
    changes = repository.in_chunks(
        work.connection, select(change), change.c.sha256, {row.delta for row in written if row.delta}
    )
    found = {row.changeset_id for row in written}
    found |= {r["changeset_id"] for r in changes if r["removed"] or correction_id in json.loads(r["dropped"])}
    moves = repository.in_chunks(work.connection, select(move), move.c.changeset_id, found)
    return [row["changeset_id"] for row in sorted(moves, key=lambda row: row["position"])]


def _story(work: UnitOfWork, changeset_id: str) -> list[tuple[Table, Mapping[str, Any]]]:
    """The rows of a changeset: it, who decided with which keys under which policy, the move of the head."""
    found = _rows(work, tables.changeset, tables.changeset.c.id == changeset_id)
    decided = _rows(work, tables.decision, tables.decision.c.changeset_id == changeset_id)
    key, policy = tables.key_event, tables.policy
    for _, decision in decided:
        found += _rows(work, key, key.c.key_id == decision["key_id"], key.c.action == "register")
        found += _rows(work, policy, policy.c.id == decision["policy_id"])
    return [*found, *decided, *_rows(work, tables.head_move, tables.head_move.c.changeset_id == changeset_id)]


def _rows(work: UnitOfWork, table: Table, *conditions: Any) -> list[tuple[Table, Mapping[str, Any]]]:
    return [(table, row) for row in repository.select_rows(work.connection, table, *conditions)]


def _event(work: UnitOfWork, table: Table, row: Mapping[str, Any], size: int) -> dict[str, Any]:
    index = row["sequence"] - 1
    if index >= size:
        problem = f"the checkpoint of {size} events was made before {tables.row_name(table, row)} was recorded"
        raise LedgerError(problem, "make another checkpoint: any command that writes does")
    path = merkle.inclusion_proof(index, size, work.log.subtree)
    leaf = leaf_form(table)([row[column.name] for column in table.columns])
    return {"index": index, "leaf": leaf, "path": [node.hex() for node in path]}


def _parts(work: UnitOfWork, changeset_id: str) -> dict[str, list[str]]:
    """Of each part its text or, where that tells nothing here, its digest."""
    found = {}
    for name, kind in PARTS.items():
        table = repository.PART_TABLE[kind]
        rows = repository.select_rows(work.connection, table, table.c.changeset_id == changeset_id)
        if name in _PARTS_SHOWN:
            form, columns = part_form(kind), table.columns
            found[name] = [form([row[column.name] for column in columns]) for row in rows]
        else:
            found[name] = [row["row_digest"] for row in rows]
    return found


def _written(proof: Mapping[str, Any]) -> str:
    return json.dumps(proof, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


# --- checking


def check(proof: str, keys: Iterable[VerifierKey]) -> list[str]:
    """Check a proof with nothing but the keys that sign the log's checkpoints; returns what it proves, for people.

    Raises:
        ProofError: It does not prove what it says, or is no proof.
        NoteError: Its checkpoint is not signed by one of the keys.
    """
    try:
        made = json.loads(proof)
        if not isinstance(made, dict) or _written(made) != proof:
            raise ValueError("it is not written as proofs are")
        known = tuple(keys)
        if not known:
            raise ProofError("there is no key to check the proof with", "name the public key of the log")
        if made.get("format") == INCLUSION:
            return _Checked(made, known).lines()
        if made.get("format") == CONSISTENCY:
            return _check_consistency(made, known)
        raise ValueError(f"its format is {made.get('format')!r:.40}")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ProofError(f"this is no proof ({' '.join(str(error).split())})", _DISTRUST) from error


def _check_consistency(proof: Mapping[str, Any], keys: Sequence[VerifierKey]) -> list[str]:
    _only(proof, "format", "old", "new", "path")
    new = stated(proof["new"], keys)
    signed = "\n\n" in proof["old"]
    old = stated(proof["old"], keys) if signed else Checkpoint.parse(proof["old"])
    if old.text() != proof["old"] and not signed:
        raise ValueError("the old checkpoint has other lines")
    if old.origin != new.origin:
        raise ProofError(f"the checkpoints are of two logs, {old.origin} and {new.origin}", _DISTRUST)
    merkle.verify_consistency(old.size, old.root, new.size, new.root, _hashes(proof["path"]))
    note = "signed" if signed else "not signed: compare the root with the one you hold"
    return [
        f"the log {new.origin} of {new.size} events (root {new.root.hex()}, signed)",
        f"begins with the log of {old.size} events (root {old.root.hex()}, {note})",
    ]


@dataclass(frozen=True, slots=True)
class _Shown:
    """An event that is in the log."""

    sequence: int
    kind: str
    leaf: dict[str, Any]


class _Checked:
    """A proof whose events are in the log of its checkpoint; `lines` checks what they say together."""

    def __init__(self, proof: Mapping[str, Any], keys: Sequence[VerifierKey]) -> None:
        _only(proof, "format", "checkpoint", "events", "text", "parts")
        self._checkpoint = stated(proof["checkpoint"], keys)
        self._events = [self._shown(event) for event in proof["events"]]
        self._text: dict[str, str | None] | None = proof["text"]
        self._parts: dict[str, dict[str, list[str]]] = proof["parts"]

    def _shown(self, event: Mapping[str, Any]) -> _Shown:
        _only(event, "index", "leaf", "path")
        data, index, at = event["leaf"].encode(), event["index"], self._checkpoint
        merkle.verify_inclusion(merkle.leaf_hash(data), index, at.size, _hashes(event["path"]), at.root)
        leaf = json.loads(event["leaf"])
        if leaf["sequence"] != index + 1:
            raise ProofError(f"leaf {index} says that it is event {leaf['sequence']}", _DISTRUST)
        return _Shown(leaf["sequence"], leaf["event"], leaf)

    def lines(self) -> list[str]:
        """Return what is proven."""
        subject = self._events[0]
        changesets = [event for event in self._events if event.kind == "changeset"]
        if subject.kind == "correction":
            found = self._correction(subject)
        elif subject.kind == "changeset" and changesets == [subject] and self._text is None:
            found = []
        else:
            raise ProofError("the proof is about neither a correction nor a changeset", _DISTRUST)
        if {event.leaf["id"] for event in changesets} != self._parts.keys():
            raise ProofError("the proof lacks a changeset, or the parts of one", _DISTRUST)
        self._check_kinds()
        for changeset in changesets:
            found += self._changeset(changeset, subject)
        if subject.kind == "correction" and not changesets:
            found.append("by this proof no changeset put it in force")
        at = self._checkpoint
        return [*found, f"in the log {at.origin} of {at.size} events, root {at.root.hex()}, signed"]

    def _check_kinds(self) -> None:
        """Refuse what is not a part of the story: it would stand there as if it were proven."""
        about = {event.leaf["id"] for event in self._events if event.kind == "changeset"}
        decided = [event.leaf for event in self._events if event.kind == "decision"]
        for event in self._events[1:]:
            belongs = {
                "changeset": True,
                "decision": event.leaf.get("changeset_id") in about,
                "head_move": event.leaf.get("changeset_id") in about,
                "key_event": event.leaf.get("key_id") in {leaf.get("key_id") for leaf in decided},
                "policy": event.leaf.get("id") in {leaf.get("policy_id") for leaf in decided},
            }
            if not belongs.get(event.kind, False):
                raise ProofError(f"event {event.sequence} has nothing to do with what is proven", _DISTRUST)

    def _correction(self, event: _Shown) -> list[str]:
        leaf = event.leaf
        if digest_of({"Correction": _content(Correction, leaf)}) != leaf["id"]:
            raise ProofError(f"correction {leaf['id'][:12]} does not have the id of its content", _DISTRUST)
        name = f"correction {leaf['id'][:12]}"
        filed = f"filed by {leaf['submitter']} at {leaf['filed_at']} for {leaf['model']} (event {event.sequence})"
        if self._text is None:
            return [f"{name}, its text not shown", filed]
        text = self._text
        if text.keys() != {"salt", *Correction.erasable} or digest_of({"Text": text}) != leaf["text_hash"]:
            raise ProofError(f"the text is not that of {name}", _DISTRUST)
        fact = f"{text['subject']}, {text['relation'] or text['prompt_template']}"
        said = f"{fact}: {text['target_true'] or '?'} -> {text['target_new']}"
        return [f"{name}: {said} (source: {text['source']}; reason: {text['reason']})", filed]

    def _changeset(self, event: _Shown, subject: _Shown) -> list[str]:
        leaf, parts = event.leaf, self._parts[event.leaf["id"]]
        digests = {name: parts_digest(map(_part_digest, parts[name])) for name in PARTS}
        if (
            parts.keys() != PARTS.keys()
            or digest_of({"Changeset": {**_content(Changeset, leaf), **digests}}) != leaf["id"]
        ):
            raise ProofError(f"changeset #{leaf['number']} does not have the id of its content", _DISTRUST)
        name = f"changeset #{leaf['number']}"
        found = [
            f"{name} ({leaf['kind']}) planned by {leaf['planned_by']} at {leaf['planned_at']} (event {event.sequence})"
        ]
        if subject.kind == "correction":
            found[0] = f"{self._part_in(subject.leaf['id'], parts, name)}: {found[0]}"
        gates = [json.loads(gate) for gate in parts["gates"]]
        found += [
            f"  gate {g}: {value} {op} {bound}, {'passed' if passed else 'failed'}"
            for _, g, op, bound, value, passed in gates
        ]
        for other in self._events:
            if other.leaf.get("changeset_id") != leaf["id"]:
                continue
            if other.kind == "decision":
                found.append(self._decision(other))
            else:
                moved = other.leaf
                if (moved["model"], moved["version"]) != (leaf["model"], leaf["candidate_version"]):
                    raise ProofError(f"{name} leads to another version than its head", _DISTRUST)
                version = f"v{moved['position']} ({moved['version']})"
                found.append(
                    f"  in force from {moved['moved_at']} as {version}, by {moved['moved_by']} (event {other.sequence})"
                )
        return found

    def _part_in(self, correction_id: str, parts: Mapping[str, list[str]], name: str) -> str:
        results = [json.loads(part) for part in parts["results"]]
        for _, identity, status, *_ in results:
            if identity == correction_id:
                return f"{status} by {name}"
        for _, _, _, dropped, removed in map(json.loads, parts["changes"]):
            if removed or correction_id in dropped:
                return f"taken out by {name}"
        raise ProofError(f"{name} has nothing to do with the correction", _DISTRUST)

    def _decision(self, event: _Shown) -> str:
        decision = _record(Decision, event.leaf)
        verdict = {"approve": "approved", "reject": "rejected", "withdraw": "approval withdrawn"}[decision.verdict]
        said = f"  {verdict} by {decision.reviewer} at {decision.decided_at}: {decision.reason} (event {event.sequence}"
        if decision.signature is None:
            return f"{said}, not signed)"
        for other in self._events:
            key = other.leaf
            if other.kind != "key_event" or key["key_id"] != decision.key_id or other.sequence > event.sequence:
                continue
            vkey = VerifierKey.parse(key["public_key"])
            signed = signatures.check(statement(decision), decision.signature, vkey)
            if not signed or signatures.key_id(vkey) != decision.key_id:
                raise ProofError(f"the signature of {decision.reviewer} does not fit the decision", _DISTRUST)
            if same_person(key["person"]) != same_person(decision.reviewer):
                raise ProofError(
                    f"the decision of {decision.reviewer} is signed with the key of {key['person']}", _DISTRUST
                )
            return f"{said}, signed with a key registered as event {other.sequence})"
        raise ProofError(f"the proof lacks the key of {decision.reviewer}", _DISTRUST)


def _record(kind: type[Decision], leaf: Mapping[str, Any]) -> Decision:
    record = kind(**{name: value for name, value in leaf.items() if name not in ("event", "sequence")})
    if record.digest() != leaf["id"]:
        raise ProofError(f"{leaf['event']} {leaf['id'][:12]} does not have the id of its content", _DISTRUST)
    return record


def _content(kind: type[Identified], leaf: Mapping[str, Any]) -> dict[str, Any]:
    """What of a leaf a record's identity covers, less the parts of a changeset."""
    return {name: value for name, value in leaf.items() if name not in {"event", "sequence"} | kind.beside_identity}


def _part_digest(part: str) -> str:
    """The digest of a part that is shown as its text, or as its digest."""
    return hashlib.sha256(part.encode()).hexdigest() if part.startswith("[") else part


def _hashes(path: Sequence[str]) -> list[bytes]:
    found = [bytes.fromhex(node) for node in path]
    if [node.hex() for node in found] != list(path):
        raise ValueError("a hash is not written in lower-case hexadecimal")
    return found


def _only(value: Mapping[str, Any], *names: str) -> None:
    if value.keys() != {*names}:
        raise ValueError(f"it has {', '.join(sorted(value))}, not {', '.join(sorted(names))}")
