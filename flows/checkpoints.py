"""Checkpoints of a workspace's ledger: signed with the log's key, in Git, and after an apply on the DVC remote."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from flows.errors import FlowError
from flows.git import commit
from flows.keys import PASSPHRASE, ring
from flows.workspace import Workspace
from ledger.checkpoints import (
    FOLDER,
    CheckpointFolder,
    SignedCheckpoint,
    checkpoint,
    latest,
    log_key_name,
    origin_of,
    read_keys,
)
from ledger.errors import LedgerError
from ledger.notes import VerifierKey
from ledger.persons import Signer

LOG = logging.getLogger(__name__)
ARTIFACTS = "artifacts/checkpoints"
"""Where checkpoints are that DVC keeps."""


def record(workspace: Workspace, *, push: bool) -> SignedCheckpoint:
    """Signs the log as it is, and puts that outside the ledger; again without news, it changes nothing.

    Args:
        workspace: Whose ledger.
        push: Whether to put it on the DVC remote too.

    Raises:
        LedgerError: If the log's key cannot be used, or another checkpoint of this size is there.
        FlowError: If Git refuses.
    """
    signer = log_key(workspace)
    with workspace.ledger().begin() as work:
        made = checkpoint(work, signer, origin=origin_of(workspace.model))
    folder = kept(workspace)
    folder.keep(made, signer.key)
    commit(workspace.root, f"Checkpoint of the ledger at {made.size} events", FOLDER)
    if push:
        workspace.store().put(folder.path(made.size), ARTIFACTS, suffix=".note")
    return made


def keep_checkpoint(workspace: Workspace, *, push: bool = False) -> int | None:
    """Records a checkpoint after something was written; returns its size, None if that has to wait.

    What was written is in the ledger already, so a checkpoint that cannot be made, for want of the log's key or of a remote, is
    a warning: the next one covers it too.
    """
    try:
        if kept(workspace).keys() and key_here(workspace) is None:
            LOG.warning("no checkpoint was made: the log's key is not on this machine (see NSE_KEYS)")
            return None
        return record(workspace, push=push).size
    except (LedgerError, FlowError) as error:
        LOG.warning("no checkpoint was kept, the next one covers it: %s", error)
        return None


def current(workspace: Workspace) -> SignedCheckpoint:
    """The checkpoint of the log as it is, or where its key is not on this machine, the last that was made.

    Raises:
        FlowError: If there is none.
    """
    if key_here(workspace):
        return record(workspace, push=False)
    with workspace.ledger().read() as work:
        found = latest(work)
    if found is None:
        raise FlowError("no checkpoint was made of this ledger", "run a command that writes, where the log's key is")
    return found


def key_here(workspace: Workspace) -> Signer | None:
    """The key that signs the checkpoints of a workspace's ledger, if it is on this machine."""
    return log_key(workspace) if ring().has(log_key_name(workspace.model)) else None


def log_key(workspace: Workspace) -> Signer:
    """The key that signs the checkpoints of a workspace's ledger, made if there is none on this machine.

    Raises:
        LedgerError: If its file cannot be used, e.g. for want of its passphrase.
    """
    here, name, passphrase = ring(), log_key_name(workspace.model), os.environ.get(PASSPHRASE)
    key = here.public(name) if here.has(name) else here.create(name, passphrase=passphrase)
    return Signer(key, here.private(key, passphrase))


def kept(workspace: Workspace) -> CheckpointFolder:
    """The checkpoints that are outside the ledger."""
    return CheckpointFolder(workspace.root / FOLDER)


def keys_of(workspace: Workspace, file: Path | None) -> Sequence[VerifierKey]:
    """The keys that checkpoints count with: those in `file`, or those that the workspace names."""
    return read_key_file(file) if file else kept(workspace).keys()


def read_key_file(file: Path) -> Sequence[VerifierKey]:
    """The verifier keys in a file, one a line.

    Raises:
        FlowError: If it cannot be read.
        LedgerError: If a line holds no key.
    """
    try:
        return read_keys(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise FlowError(f"cannot read the keys in {file} ({error})", "name a file like checkpoints/log.pub") from error
