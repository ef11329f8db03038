"""Signed notes and checkpoints: a short text under Ed25519 signatures, as in C2SP signed-note and tlog-checkpoint.

A checkpoint says what root a log had at what size; who holds one can check any later proof against it. Where private
keys live, and signatures over other statements than notes, are in `keys`.

References:
    c2sp.org/signed-note, c2sp.org/tlog-checkpoint, RFC 8032 (Ed25519).
"""

import base64
import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ledger.errors import LedgerError

_ED25519 = b"\x01"
_MAX_BYTES = 1_000_000
_MAX_SIGNATURES = 100


class NoteError(LedgerError):
    """A note, a checkpoint or a verifier key is malformed, or a note is not signed by a known key."""


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A named Ed25519 public key. `str()` is its text form, `name+id+base64`, the same for the same key always.

    Attributes:
        name: Not empty, without spaces and '+'; see `key_name` for a person's.
        public: 32 bytes as of RFC 8032.
    """

    name: str
    public: bytes

    def __post_init__(self) -> None:
        """Raise NoteError if the name or the length of the key is not allowed."""
        if not _is_key_name(self.name):
            raise NoteError(f"{self.name!r} is no name of a key", 'a name is not empty and has no spaces, no "+"')
        if len(self.public) != 32:
            raise NoteError(f"the public key of {self.name} has {len(self.public)} bytes", "an Ed25519 key has 32")

    @property
    def id(self) -> bytes:
        """Four bytes that together with the name say which key made a signature. Not a digest to trust."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.public).digest()[:4]

    @classmethod
    def parse(cls, text: str) -> "VerifierKey":
        """Return the key of which `text` is the text form.

        Raises:
            NoteError: It is not the text form of an Ed25519 key.
        """
        name, _, rest = text.partition("+")
        key = from_base64(rest.partition("+")[2])
        if key is None or not key.startswith(_ED25519):
            raise NoteError(f"{text!r:.200} is no Ed25519 verifier key", "copy the whole line, name+id+key")
        parsed = cls(name, key[1:])
        if str(parsed) != text:
            raise NoteError(
                f"the id in verifier key {text!r:.200} is not that of the key", f"it would be {parsed.id.hex()}"
            )
        return parsed

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{to_base64(_ED25519 + self.public)}"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a log was like: the `root` (32 bytes) over its first `size` entries. `origin` names the log."""

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        """Raise NoteError if no checkpoint can say this."""
        if not self.origin or not _is_text(self.origin) or "\n" in self.origin:
            raise NoteError(f"{self.origin!r:.200} is no origin of a checkpoint", "give one line that names the log")
        if not 0 <= self.size < 10**19:
            raise NoteError(f"a log has no size {self.size}", "give the number of its entries")
        if len(self.root) != 32:
            raise NoteError(f"the root of a checkpoint has {len(self.root)} bytes", "a SHA-256 root has 32")

    def text(self) -> str:
        """Return the text to sign."""
        return f"{self.origin}\n{self.size}\n{to_base64(self.root)}\n"

    @classmethod
    def parse(cls, text: str) -> "Checkpoint":
        """Return the checkpoint that `text` states. Extension lines are left out, as the specification has it.

        Raises:
            NoteError: It is not the text of a checkpoint.
        """
        lines = text.split("\n")
        if len(lines) < 4 or lines[-1] or not all(lines[:-1]):
            raise NoteError("a checkpoint has other lines than origin, size and root", "each ends in a newline")
        size, root = lines[1], from_base64(lines[2])
        if not re.fullmatch("0|[1-9][0-9]{0,18}", size):
            raise NoteError(f"{size!r:.40} is no size of a log", "it is a decimal number without leading zeros")
        if root is None:
            raise NoteError(f"{lines[2]!r:.80} is no root of a log", "it is 32 bytes in base64")
        return cls(lines[0], int(size), root)


def key_name(person: str) -> str:
    """Return a name that a key of this person can have: spaces and '+' become '-', accents one form.

    Two people's names can give one key name ("Ana Sol", "Ana-Sol"); their keys differ all the same.

    Raises:
        NoteError: Nothing is left of the name, or it holds control characters.
    """
    name = re.sub(r"[\s+]+", "-", unicodedata.normalize("NFC", person).strip())
    if not _is_key_name(name):
        raise NoteError(f"{person!r:.200} cannot name a key", "write a name in letters")
    return name


def sign_note(text: str, name: str, private_key: Ed25519PrivateKey) -> str:
    """Return `text` with a signature by `private_key` under `name`.

    Raises:
        NoteError: The text does not end in a newline, holds control characters or is too long, or the name is not allowed.
    """
    if not text.endswith("\n") or not _is_text(text):
        raise NoteError("this text cannot be signed as a note", "end it in a newline, without control characters")
    key = VerifierKey(name, private_key.public_key().public_bytes_raw())
    note = f"{text}\n— {name} {to_base64(key.id + private_key.sign(text.encode()))}\n"
    if len(note.encode()) > _MAX_BYTES:
        raise NoteError("this text is too long for a note", f"a note has at most {_MAX_BYTES} bytes")
    return note


def open_note(note: str, keys: Iterable[VerifierKey]) -> tuple[str, tuple[str, ...]]:
    """Return the text of a note and the names of the `keys` that signed it; signatures of other keys do not count.

    Raises:
        NoteError: The note is malformed, none of the keys signed it, or a signature of one of them is wrong.
    """
    known = _by_name_and_id(keys)
    text, lines = _split(note)
    signers = []
    for name, data in map(_signature, lines):
        key = known.get((name, data[:4]))
        if key is None:
            continue
        try:
            Ed25519PublicKey.from_public_bytes(key.public).verify(data[4:], text.encode())
        except InvalidSignature as error:
            raise NoteError(f"the signature of {name} on the note is wrong", "do not trust the note") from error
        signers.append(name)
    if not signers:
        raise NoteError("the note is not signed by a known key", "do not trust it, or add the signer's verifier key")
    return text, tuple(dict.fromkeys(signers))


def sign_checkpoint(checkpoint: Checkpoint, name: str, private_key: Ed25519PrivateKey) -> str:
    """Return a note that states `checkpoint`, signed by `private_key` under `name`; raises as `sign_note` does."""
    return sign_note(checkpoint.text(), name, private_key)


def open_checkpoint(note: str, keys: Iterable[VerifierKey]) -> tuple[Checkpoint, tuple[str, ...]]:
    """Return the checkpoint of a note and the names of the `keys` that signed it.

    Raises:
        NoteError: As `open_note`, or the text is not that of a checkpoint.
    """
    text, signers = open_note(note, keys)
    return Checkpoint.parse(text), signers


def to_base64(data: bytes) -> str:
    """Return the standard encoding, with padding."""
    return base64.b64encode(data).decode()


def from_base64(text: str) -> bytes | None:
    """Return what `text` encodes; None unless it is the one encoding of it."""
    try:
        data = base64.b64decode(text)
    except ValueError:  # not ASCII, or wrongly padded
        return None
    return data if to_base64(data) == text else None


def _by_name_and_id(keys: Iterable[VerifierKey]) -> dict[tuple[str, bytes], VerifierKey]:
    known: dict[tuple[str, bytes], VerifierKey] = {}
    for key in keys:
        if known.setdefault((key.name, key.id), key) != key:
            raise NoteError(f"two known keys are both {key.name}+{key.id.hex()}", "remove the one that is not theirs")
    return known


def _split(note: str) -> tuple[str, list[str]]:
    """Return the text, its last newline included, and the lines of signatures."""
    if not _is_text(note) or len(note.encode()) > _MAX_BYTES:
        raise NoteError(
            "the note is too long or holds control characters", f"it has at most {_MAX_BYTES} bytes of UTF-8"
        )
    text, blank, signatures = note.rpartition("\n\n")
    if not blank or not signatures.endswith("\n"):
        raise NoteError("the note is cut off", "it ends in an empty line and lines of signatures")
    lines = signatures[:-1].split("\n")
    if len(lines) > _MAX_SIGNATURES:
        raise NoteError(f"the note has {len(lines)} signatures", f"at most {_MAX_SIGNATURES} are read")
    return text + "\n", lines


def _signature(line: str) -> tuple[str, bytes]:
    """Return the name in a signature line, and key id and signature."""
    dash, _, rest = line.partition(" ")
    name, _, data = rest.partition(" ")
    decoded = from_base64(data)
    if dash != "—" or not _is_key_name(name) or decoded is None or len(decoded) < 5:
        raise NoteError(f"{line!r:.120} in the note is no signature", 'such a line is "— name base64"')
    return name, decoded


def _is_text(text: str) -> bool:
    """Tell whether a note can hold it: encodable, and without control characters but newline."""
    return not re.search("[\x00-\x09\x0b-\x1f\ud800-\udfff]", text)


def _is_key_name(name: str) -> bool:
    return bool(name) and _is_text(name) and not re.search(r"[\s+]", name)
