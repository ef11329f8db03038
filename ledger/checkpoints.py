"""Signed checkpoints of the log: made, kept in the ledger, and put where a change of the ledger does not reach.

A checkpoint says what root the log had at what size. Against one that is out of reach `verify` finds what no digest within
the ledger can show: records cut off the end, or a history that was rewritten whole. The format is that of `notes`.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sqlalchemy import insert, select

from ledger import tables
from ledger.errors import LedgerError
from ledger.notes import Checkpoint, VerifierKey, key_name, open_checkpoint, sign_checkpoint
from ledger.persons import Signer
from ledger.unit_of_work import UnitOfWork

FOLDER = "checkpoints"
PUBLIC_KEYS = "log.pub"
"""The verifier keys of the log, one a line."""


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A checkpoint and the note that states it."""

    size: int
    note: str


class Place(Protocol):
    """Somewhere that a checkpoint can be kept outside the ledger."""

    def keep(self, checkpoint: SignedCheckpoint, key: VerifierKey) -> None:
        """Put a checkpoint there, and the key that it is signed with; the same one again is no change."""


def origin_of(name: str) -> str:
    """Return the origin of the log of a model or ledger: the first line of its checkpoints."""
    return f"nse/{name}"


def log_key_name(name: str) -> str:
    """Return the name of the key that signs the checkpoints of a model's or ledger's log."""
    return key_name(origin_of(name))


def checkpoint(work: UnitOfWork, signer: Signer, *, origin: str) -> SignedCheckpoint:
    """Sign the log as it is and keep that; the checkpoint of this size that was made before, if there is one.

    Raises:
        LedgerError: The log is empty.
    """
    size = work.log.size()
    if not size:
        raise LedgerError("the log is empty", "record something first")
    made = at_size(work, size)
    if made is None:
        stated = Checkpoint(origin, size, work.log.root(size))
        made = SignedCheckpoint(size, sign_checkpoint(stated, signer.key.name, signer.private))
        work.connection.execute(insert(tables.checkpoint), {"size": size, "note": made.note})
    return made


def at_size(work: UnitOfWork, size: int) -> SignedCheckpoint | None:
    """Return the checkpoint of this size."""
    table = tables.checkpoint
    row = work.connection.execute(select(table).where(table.c.size == size)).first()
    return None if row is None else SignedCheckpoint(row.size, row.note)


def latest(work: UnitOfWork) -> SignedCheckpoint | None:
    """Return the checkpoint of the greatest size."""
    table = tables.checkpoint
    row = work.connection.execute(select(table).order_by(table.c.size.desc()).limit(1)).first()
    return None if row is None else SignedCheckpoint(row.size, row.note)


def stated(note: str, keys: Iterable[VerifierKey] = ()) -> Checkpoint:
    """Return what a checkpoint's note states; with keys, after checking that one of them signed it.

    Raises:
        NoteError: It is malformed, or not signed by one of the keys.
    """
    known = tuple(keys)
    if known:
        return open_checkpoint(note, known)[0]
    return Checkpoint.parse(note.rpartition("\n\n")[0] + "\n")


@dataclass(frozen=True, slots=True)
class CheckpointFolder:
    """Checkpoints as files: `<size>.note` each, and `log.pub`, the keys they are signed with."""

    folder: Path

    def keep(self, checkpoint: SignedCheckpoint, key: VerifierKey) -> None:
        """Write the files that are not there yet.

        Raises:
            LedgerError: There is another checkpoint of this size, or the folder cannot be written.
        """
        path, keys = self.path(checkpoint.size), self.folder / PUBLIC_KEYS
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                _write(path, checkpoint.note)
            known = keys.read_text(encoding="utf-8") if keys.exists() else ""
            if f"{key}\n" not in known.splitlines(keepends=True):
                _write(keys, f"{known}{key}\n")
            there = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise LedgerError(f"cannot keep a checkpoint in {self.folder} ({error})", "see to the folder") from error
        if there != checkpoint.note:
            raise LedgerError(f"{path} holds another checkpoint than the ledger", 'run "nse verify"')

    def path(self, size: int) -> Path:
        """Return where the checkpoint of this size is."""
        return self.folder / f"{size}.note"

    def notes(self) -> dict[str, str]:
        """Return the notes by the name of their file, whatever they say; bytes that are no text are kept visible."""
        return {path.name: path.read_bytes().decode(errors="replace") for path in sorted(self.folder.glob("*.note"))}

    def keys(self) -> tuple[VerifierKey, ...]:
        """Return the keys that checkpoints are signed with, none if there is no such file.

        Raises:
            NoteError: A line holds none.
        """
        path = self.folder / PUBLIC_KEYS
        if not path.exists():
            return ()
        return read_keys(path.read_bytes().decode(errors="replace"))


def read_keys(text: str) -> tuple[VerifierKey, ...]:
    """Return the verifier keys of a text, one a line.

    Raises:
        NoteError: A line holds none.
    """
    return tuple(VerifierKey.parse(line) for line in text.split("\n") if line)


def _write(path: Path, text: str) -> None:
    """Write so that the file is there with all of its text or not at all, even if the power fails."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
