"""Private keys on disk, and signatures over statements of the ledger.

One file per key: the text form of its verifier key, then the private key as PEM. Signatures on notes are in `notes`.
"""

import hashlib
import os
import re
import stat
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from filelock import FileLock

from ledger.errors import LedgerError
from ledger.notes import NoteError, VerifierKey, from_base64, to_base64

_STATEMENT = b"nse-statement-v1\n"
"""Before every statement that is signed, so that no signature on something else passes for one on a statement."""


class KeyRingError(LedgerError):
    """A private key cannot be made, found, read or opened."""


class KeyRing:
    """The private keys in one folder."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`; it is made, for its owner alone, with the first key."""
        self._folder = folder

    def create(self, name: str, *, passphrase: str | None = None) -> VerifierKey:
        """Make a key with this name, encrypted if there is a passphrase, and return its public part.

        Raises:
            NoteError: A key cannot have this name.
            KeyRingError: There is a key with this name already, the passphrase is of no use, or the folder is not writable.
        """
        private = Ed25519PrivateKey.generate()
        vkey = VerifierKey(name, private.public_key().public_bytes_raw())
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, _encryption(passphrase))
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with FileLock(self._folder / ".lock"):
                if self.has(name):
                    raise KeyRingError(f"there is a key for {name} in {self._folder} already", "choose another name")
                _write(self._path(vkey), f"{vkey}\n".encode() + pem)
        except OSError as error:
            raise KeyRingError(f"cannot write to {self._folder} ({error.strerror})", "choose another folder") from error
        return vkey

    def has(self, key: str) -> bool:
        """Tell whether the ring holds the private key with this id (see `key_id`) or name."""
        return any(key in (vkey.name, key_id(vkey)) for vkey in self._public())

    def public(self, name: str) -> VerifierKey:
        """Return the public part of the key with this name; no passphrase is needed.

        Raises:
            KeyRingError: There is no such key.
        """
        for vkey in self._public():
            if vkey.name == name:
                return vkey
        raise KeyRingError(f"there is no key for {name} in {self._folder}", "make one, or name another folder")

    def names(self) -> tuple[str, ...]:
        """Return the names of all keys, in order."""
        return tuple(sorted(vkey.name for vkey in self._public()))

    def private(self, vkey: VerifierKey, passphrase: str | None = None) -> Ed25519PrivateKey:
        """Return the private key that belongs to `vkey`; the passphrase of a key that needs none is ignored.

        Raises:
            KeyRingError: It is not here, others may read its file, the file is damaged, or the passphrase is wrong.
        """
        path = self._path(vkey)
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                    raise KeyRingError(f"others may read the private key {path}", f'run "chmod 600 {path}"')
                data = file.read()
        except FileNotFoundError as error:
            problem = f"the private key of {vkey.name} is not in {self._folder}"
            raise KeyRingError(problem, "name the folder that holds it") from error
        except OSError as error:
            raise KeyRingError(f"cannot read {path} ({error.strerror})", "restore it from a backup") from error
        private = _load(data, path, passphrase)
        if private.public_key().public_bytes_raw() != vkey.public:
            raise KeyRingError(f"{path} holds another key than it says", "restore it from a backup")
        return private

    def _path(self, vkey: VerifierKey) -> Path:
        ascii_name = unicodedata.normalize("NFKD", vkey.name).encode("ascii", "ignore").decode()
        slug = re.sub("[^A-Za-z0-9]+", "-", ascii_name)[:40].strip("-") or "key"
        return self._folder / f"{slug}-{key_id(vkey)[:32]}.pem"

    def _public(self) -> Iterator[VerifierKey]:
        for path in sorted(self._folder.glob("*.pem")):
            try:
                with path.open(encoding="utf-8") as file:
                    vkey = VerifierKey.parse(file.readline().removesuffix("\n"))
            except (OSError, UnicodeDecodeError, NoteError) as error:
                raise KeyRingError(f"{path} is no key of this program", "move it away, or restore it") from error
            yield vkey


KEYS = "NSE_KEYS"
"""Names the folder of a person's keys."""


def default_folder(environ: Mapping[str, str]) -> Path:
    """Return where a person's keys are: $NSE_KEYS, else nse/keys in $XDG_CONFIG_HOME, else in ~/.config."""
    if environ.get(KEYS):
        return Path(environ[KEYS])
    config = environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME") or Path.home()) / ".config"
    return Path(config) / "nse" / "keys"


def key_id(vkey: VerifierKey) -> str:
    """Return the digest of a verifier key's text form, 64 hex digits: what names a key in the ledger."""
    return hashlib.sha256(str(vkey).encode()).hexdigest()


def sign(statement: bytes, private: Ed25519PrivateKey) -> str:
    """Return a signature over a statement, in base64."""
    return to_base64(private.sign(_STATEMENT + statement))


def check(statement: bytes, signature: str, vkey: VerifierKey) -> bool:
    """Tell whether `signature` is one by `vkey` over the statement; what is no signature at all is not."""
    try:
        Ed25519PublicKey.from_public_bytes(vkey.public).verify(from_base64(signature) or b"", _STATEMENT + statement)
    except InvalidSignature:
        return False
    return True


def _encryption(passphrase: str | None) -> KeySerializationEncryption:
    if passphrase is None:
        return NoEncryption()
    if not 0 < len(_password(passphrase)) < 1024:
        raise KeyRingError("the passphrase is empty or longer than 1023 bytes", "choose another, or none")
    return BestAvailableEncryption(_password(passphrase))


def _password(passphrase: str) -> bytes:
    return passphrase.encode(errors="surrogatepass")  # an environment variable may hold what is no UTF-8


def _load(data: bytes, path: Path, passphrase: str | None) -> Ed25519PrivateKey:
    encrypted = b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in data
    if encrypted and not passphrase:
        raise KeyRingError(f"the private key {path} needs its passphrase", "give it")
    password = _password(passphrase) if encrypted and passphrase else None
    try:
        private = load_pem_private_key(data, password)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if encrypted:
            raise KeyRingError(f"the passphrase does not open {path}", "give the one it was made with") from error
        raise KeyRingError(f"{path} is damaged", "restore it from a backup") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise KeyRingError(f"{path} holds no Ed25519 key", "restore it from a backup")
    return private


def _write(path: Path, data: bytes) -> None:
    """Write a file for its owner alone, so that it is there with all its bytes or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name
    finally:
        os.close(folder)
