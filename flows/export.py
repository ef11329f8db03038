"""Exporting any version of a workspace's model: resolves and composes it, and says where in the ledger it comes from."""

from pathlib import Path
from typing import Any

import torch

from flows.errors import FlowError
from flows.session import Session, request_of
from ledger.records import ActiveDelta, HeadMove
from ledger.status import ModelState, read_state
from ledger.views import resolve_version
from nse.export import PROMPTS, export_lora, export_merged
from nse.files import check_free
from nse.gguf_export import Asked, export_gguf
from nse.patch import compose

COMPARED = 8
"""Prompts of corrections in force at which an adapter is compared with the weights."""


def lora_at(session: Session, at: str, folder: Path, *, rank: int | None = None) -> dict[str, Any]:
    """Writes the adapter of the version that `at` names (head, base, v3, #5, a date, a digest).

    Raises:
        FlowError: If that is the base model.
        LedgerError: If `at` names no version.
        NseError: If the folder is taken or the adapter cannot be made.
    """
    check_free(folder)  # before a model is loaded
    head, active, state = _resolved(session, at)
    deltas = session.deltas(active)
    if not any(delta.case_ids for delta in deltas):
        raise FlowError(
            f"v{head.position} ({head.version[:12]}) is the base model, there is no edit to export",
            "name another version with --at, or use `nse export merged`",
        )
    held = state.in_force(active)
    prompts = [request_of(correction).prompt for identity, correction in state.corrections.items() if identity in held]
    origin = _origin(session, head, active)
    return export_lora(
        session.editable, deltas, folder, rank=rank, prompts=prompts[:COMPARED] or PROMPTS, record=origin
    )


def merged_at(
    session: Session, at: str, folder: Path, *, max_shard_size: str, dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """Writes the whole model of the version that `at` names.

    Raises:
        LedgerError: If `at` names no version.
        NseError: If the folder is taken.
    """
    check_free(folder)
    head, active, _ = _resolved(session, at)
    weights = compose(session.editable, session.deltas(active))
    origin = _origin(session, head, active)
    return export_merged(session.editable, weights, folder, max_shard_size=max_shard_size, dtype=dtype, record=origin)


def gguf_at(
    session: Session, at: str, file: Path, *, original: Path, edited_type: str | None = None, ask: int
) -> dict[str, Any]:
    """Writes the version that `at` names into a copy of the GGUF file that the base was imported from.

    Args:
        session: The workspace's model.
        at: head, base, v3, #5, a date, a digest.
        file: The GGUF file to make.
        original: The file that the base was imported from.
        edited_type: Type of the edited tensors; each one's own if not given.
        ask: Most corrections in force that are asked of both, spread evenly over all of them.

    Raises:
        LedgerError: If `at` names no version.
        NseError: If the file is there already, the version is the base, or `original` is another model's file.
    """
    check_free(file)  # before a model is loaded
    head, active, state = _resolved(session, at)
    weights = compose(session.editable, session.deltas(active))
    held = state.in_force(active)
    corrections = [correction for identity, correction in state.corrections.items() if identity in held]
    chosen = corrections[:: max(1, -(-len(corrections) // ask))]
    asked = [Asked(request_of(correction).prompt, correction.target_new) for correction in chosen]
    origin = _origin(session, head, active)
    return export_gguf(
        session.editable, weights, file, original=original, asked=asked, edited_type=edited_type, record=origin
    )


def _resolved(session: Session, at: str) -> tuple[HeadMove, tuple[ActiveDelta, ...], ModelState]:
    workspace = session.workspace
    with workspace.ledger().read() as work:
        head = resolve_version(work, workspace.model, at)
        state = read_state(work, workspace.model)
    return head, state.active(head), state


def _origin(session: Session, head: HeadMove, active: tuple[ActiveDelta, ...]) -> dict[str, Any]:
    """Where in the ledger a version is, and what it is made of."""
    return {
        "model": session.workspace.model,
        "position": head.position,
        "ledger_version": head.version,
        "deltas": [{"sha256": delta.sha256, "dropped": list(delta.dropped)} for delta in active],
    }
