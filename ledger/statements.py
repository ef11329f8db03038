"""Attestations that other tools can read: an in-toto Statement for each changeset in force, in a DSSE envelope.

A statement says of the weights of a version by which changeset they came about, on what evidence and on whose word. It names
corrections by id, without their text.

References:
    in-toto attestation framework, Statement v1; DSSE, protocol v1 (the signature is over its PAE).
"""

import base64
import json
from collections.abc import Iterable
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ledger import repository, tables
from ledger.errors import LedgerError
from ledger.keys import key_id
from ledger.notes import VerifierKey, from_base64
from ledger.persons import Signer
from ledger.records import HeadMove
from ledger.unit_of_work import UnitOfWork

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:nse:changeset:v1"
PAYLOAD = "application/vnd.in-toto+json"


class StatementError(LedgerError):
    """An envelope is malformed, or not signed by a known key."""


def statement_of(work: UnitOfWork, move: HeadMove) -> dict[str, Any]:
    """Return the statement about the version that a move put in force; the move must be one by a changeset."""
    assert move.changeset_id is not None, "the base model is nobody's changeset"
    changeset = work.changeset(move.changeset_id)
    return {
        "_type": STATEMENT,
        "subject": [{"name": f"{move.model}@v{move.position}", "digest": {"sha256": move.version}}],
        "predicateType": PREDICATE,
        "predicate": {
            "changeset": {
                "id": changeset.id,
                "number": changeset.number,
                "kind": changeset.kind,
                "mode": changeset.mode,
                "method": changeset.method,
                "reason": changeset.reason,
                "plannedBy": changeset.planned_by,
                "plannedAt": changeset.planned_at,
            },
            "parent": {"changeset": changeset.parent, "sha256": changeset.parent_version},
            "base": {"sha256": changeset.base_digest},
            "deltas": [change.to_dict() for change in changeset.changes],
            "corrections": [result.to_dict() for result in changeset.results],
            "reverted": list(changeset.reverted),
            "metrics": [metric.to_dict() for metric in changeset.metrics],
            "gates": [gate.to_dict() for gate in changeset.gates],
            "decisions": [
                {name: value for name, value in decision.to_dict().items() if name != "changeset_id"}
                for decision in work.decisions(changeset.id)
            ],
            "provenance": changeset.provenance,
            "inForce": {"model": move.model, "position": move.position, "from": move.moved_at, "by": move.moved_by},
        },
    }


def moves_by_changeset(work: UnitOfWork) -> list[HeadMove]:
    """Return every move of a head by a changeset, in the order of the log."""
    return repository.select_records(work.connection, HeadMove, tables.head_move.c.changeset_id.is_not(None))


def sealed(statement: dict[str, Any], signer: Signer | None) -> str:
    """Return a statement in its envelope, one line of JSON, signed if there is a key."""
    payload = _written(statement).encode()
    signatures = []
    if signer is not None:
        signature = signer.private.sign(_authenticated(payload))
        signatures.append({"keyid": signer.id, "sig": base64.b64encode(signature).decode()})
    envelope = {"payload": base64.b64encode(payload).decode(), "payloadType": PAYLOAD, "signatures": signatures}
    return _written(envelope)


def opened(envelope: str, keys: Iterable[VerifierKey]) -> dict[str, Any]:
    """Return the statement in an envelope that one of the keys signed.

    Raises:
        StatementError: It is malformed, or none of them did.
    """
    known = {key_id(key): key for key in keys}
    try:
        outer = json.loads(envelope)
        payload = from_base64(outer["payload"])
        if payload is None or outer["payloadType"] != PAYLOAD or _written(outer) != envelope:
            raise ValueError("it is no envelope of a statement")
        for entry in outer["signatures"]:
            if entry["keyid"] in known:
                public = Ed25519PublicKey.from_public_bytes(known[entry["keyid"]].public)
                public.verify(from_base64(entry["sig"]) or b"", _authenticated(payload))
                found = json.loads(payload)
                if not isinstance(found, dict):
                    raise ValueError("its payload is no statement")
                return found
    except InvalidSignature as error:
        raise StatementError("the signature on the statement is wrong", "do not trust it") from error
    except (ValueError, TypeError, LookupError) as error:
        raise StatementError(f"this is no signed statement ({error})", "ask for it again") from error
    raise StatementError("the statement is not signed by a known key", "do not trust it, or name the key of its log")


def _authenticated(payload: bytes) -> bytes:
    """The pre-authentication encoding: what is signed."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD), PAYLOAD.encode(), len(payload), payload)


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
