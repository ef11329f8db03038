"""Private keys on disk and signatures over statements."""

import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from ledger.keys import KeyRing, KeyRingError, check, default_folder, key_id, sign
from ledger.notes import NoteError, VerifierKey, from_base64, open_note, sign_note, to_base64

STATEMENT = b'{"changeset":"c0ffee","verdict":"approved"}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "nse" / "keys"


@pytest.fixture
def ring(folder: Path) -> KeyRing:
    return KeyRing(folder)


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def key_file(folder: Path) -> Path:
    (path,) = folder.glob("*.pem")
    return path


def test_a_key_comes_back_from_disk_and_signs_what_its_public_part_checks(ring: KeyRing, folder: Path) -> None:
    vkey = ring.create("ana")
    again = KeyRing(folder)
    assert again.public("ana") == vkey
    private = again.private(vkey)
    assert private.public_key().public_bytes_raw() == vkey.public
    assert check(STATEMENT, sign(STATEMENT, private), vkey)
    assert open_note(sign_note("text\n", "ana", private), [vkey]) == ("text\n", ("ana",))


def test_a_key_is_found_by_its_name_and_by_its_id(ring: KeyRing) -> None:
    assert ring.names() == ()
    assert not ring.has("ana")
    keys = [ring.create(name) for name in ("bruno", "ana")]
    assert ring.names() == ("ana", "bruno")
    assert all(ring.has(key.name) and ring.has(key_id(key)) for key in keys)
    assert not ring.has("an")
    assert not ring.has("0" * 64)
    with pytest.raises(KeyRingError, match="there is no key for carla"):
        ring.public("carla")


def test_the_id_of_a_key_is_the_digest_of_its_text() -> None:
    text = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    assert key_id(VerifierKey.parse(text)) == "a82f24c48c9ee106dd11952a8026e14f3760ae4686748dd80e6cae8dd4e98a04"


@pytest.mark.usefixtures("no_umask")
def test_folder_and_file_are_for_their_owner_alone_whatever_the_umask(ring: KeyRing, folder: Path) -> None:
    ring.create("ana")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(key_file(folder).stat().st_mode) == 0o600


def test_the_file_is_a_pem_file_that_other_programs_read(ring: KeyRing, folder: Path) -> None:
    vkey = ring.create("ana", passphrase="sésame")
    data = key_file(folder).read_bytes()
    assert data.startswith(f"{vkey}\n-----BEGIN ENCRYPTED PRIVATE KEY-----\n".encode())
    loaded = load_pem_private_key(data, "sésame".encode())
    assert isinstance(loaded, Ed25519PrivateKey)
    assert loaded.public_key().public_bytes_raw() == vkey.public


def test_nothing_but_keys_and_the_lock_is_left_in_the_folder(ring: KeyRing, folder: Path) -> None:
    ring.create("ana")
    assert {path.name for path in folder.iterdir()} <= {key_file(folder).name, ".lock"}


def test_a_name_is_given_once_and_the_first_key_stays(ring: KeyRing) -> None:
    first = ring.create("ana")
    with pytest.raises(KeyRingError, match=r"there is a key for ana in .* already"):
        ring.create("ana")
    assert ring.names() == ("ana",)
    ring.private(first)


def test_of_several_who_make_one_key_at_once_one_does(folder: Path) -> None:
    def create(_: int) -> bool:
        try:
            KeyRing(folder).create("ana")
        except KeyRingError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(create, range(8))) == 1
    assert KeyRing(folder).names() == ("ana",)


@pytest.mark.parametrize(
    "name", ["../../escaped", "/etc/passwd", "..", "a/b\\c", "山田-太郎", "x" * 400, "Łucja/é", ".lock"]
)
def test_no_name_leads_out_of_the_folder(ring: KeyRing, folder: Path, tmp_path: Path, name: str) -> None:
    vkey = ring.create(name)
    files = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert files <= {key_file(folder), folder / ".lock"}
    assert key_file(folder).name.isascii()
    assert ring.public(name) == vkey
    ring.private(vkey)


def test_names_that_look_alike_on_disk_are_two_keys(ring: KeyRing) -> None:
    assert ring.create("a/b") != ring.create("a\\b")
    assert ring.names() == ("a/b", "a\\b")


def test_a_name_that_no_key_can_have_makes_no_file(ring: KeyRing, folder: Path) -> None:
    with pytest.raises(NoteError, match="is no name of a key"):
        ring.create("Ana Sol")
    assert not folder.exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_file_that_others_may_read_is_refused_with_the_way_out(ring: KeyRing, folder: Path, mode: int) -> None:
    vkey = ring.create("ana")
    path = key_file(folder)
    path.chmod(mode)
    with pytest.raises(KeyRingError, match=f'chmod 600 {path}"'):
        ring.private(vkey)
    path.chmod(0o600)
    ring.private(vkey)


def test_an_encrypted_key_opens_with_its_passphrase_only(ring: KeyRing) -> None:
    vkey = ring.create("ana", passphrase="open sesame")
    ring.private(vkey, "open sesame")
    assert ring.public("ana") == vkey  # needs none
    for wrong in ("open Sesame", "x", "\udcff"):
        with pytest.raises(KeyRingError, match="the passphrase does not open") as caught:
            ring.private(vkey, wrong)
        assert "\n" not in str(caught.value)
        assert wrong not in str(caught.value)
    for missing in (None, ""):
        with pytest.raises(KeyRingError, match="needs its passphrase"):
            ring.private(vkey, missing)


def test_a_passphrase_for_a_key_that_has_none_is_ignored(ring: KeyRing) -> None:
    ring.private(ring.create("ana"), "not needed")


@pytest.mark.parametrize("passphrase", ["", "x" * 1024])
def test_a_passphrase_of_no_use_makes_no_key(ring: KeyRing, folder: Path, passphrase: str) -> None:
    with pytest.raises(KeyRingError, match="empty or longer"):
        ring.create("ana", passphrase=passphrase)
    assert not folder.exists()


def test_a_passphrase_that_is_no_utf8_works_as_well(ring: KeyRing) -> None:
    ring.private(ring.create("ana", passphrase="\udcff"), "\udcff")


def test_a_key_that_is_elsewhere_is_missed(ring: KeyRing, tmp_path: Path) -> None:
    ring.create("ana")
    namesake = KeyRing(tmp_path / "other").create("ana")
    with pytest.raises(KeyRingError, match="the private key of ana is not in"):
        ring.private(namesake)


@pytest.mark.parametrize("passphrase", [None, "sesame"])
def test_a_cut_off_file_is_refused(ring: KeyRing, folder: Path, passphrase: str | None) -> None:
    vkey = ring.create("ana", passphrase=passphrase)
    path = key_file(folder)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(KeyRingError):
        ring.private(vkey, passphrase)


def test_a_file_that_holds_another_key_than_it_says_is_refused(ring: KeyRing, folder: Path) -> None:
    vkey = ring.create("ana")
    path = key_file(folder)
    others: list[tuple[Ed25519PrivateKey | EllipticCurvePrivateKey, str]] = [
        (Ed25519PrivateKey.generate(), "holds another key than it says"),
        (generate_private_key(SECP256R1()), "holds no Ed25519 key"),
    ]
    for other, problem in others:
        pem = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path.write_bytes(f"{vkey}\n".encode() + pem)
        with pytest.raises(KeyRingError, match=problem):
            ring.private(vkey)


@pytest.mark.parametrize("data", [b"", b"notes\n", b"\xff\xfe\n"])
def test_a_stray_file_is_named(ring: KeyRing, folder: Path, data: bytes) -> None:
    ring.create("ana")
    (folder / "stray.pem").write_bytes(data)
    with pytest.raises(KeyRingError, match=r"stray\.pem is no key of this program"):
        ring.names()


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyRingError, match="cannot write to"):
        KeyRing(tmp_path / "file" / "keys").create("ana")


def test_the_default_folder_is_named_by_the_environment() -> None:
    home, config = {"HOME": "/home/ana"}, {"XDG_CONFIG_HOME": "/config"}
    assert default_folder(home | config | {"NSE_KEYS": "/keys"}) == Path("/keys")
    assert default_folder(home | config) == Path("/config/nse/keys")
    assert default_folder(home) == Path("/home/ana/.config/nse/keys")
    assert default_folder(home | {"NSE_KEYS": "", "XDG_CONFIG_HOME": ""}) == Path("/home/ana/.config/nse/keys")
    assert default_folder({}) == Path.home() / ".config" / "nse" / "keys"


@pytest.fixture(scope="module")
def private() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture(scope="module")
def vkey(private: Ed25519PrivateKey) -> VerifierKey:
    return VerifierKey("ana", private.public_key().public_bytes_raw())


def test_a_signature_holds_for_its_statement_and_key_alone(private: Ed25519PrivateKey, vkey: VerifierKey) -> None:
    signature = sign(STATEMENT, private)
    assert check(STATEMENT, signature, vkey)
    other = VerifierKey("ana", Ed25519PrivateKey.generate().public_key().public_bytes_raw())
    assert not check(STATEMENT, signature, other)
    for at in range(len(STATEMENT)):
        assert not check(STATEMENT[:at] + bytes([STATEMENT[at] ^ 1]) + STATEMENT[at + 1 :], signature, vkey)
    for at in range(len(signature)):
        changed = chr(ord(signature[at]) ^ 1)
        assert not check(STATEMENT, signature[:at] + changed + signature[at + 1 :], vkey)


@pytest.mark.parametrize("signature", ["", "x", "é", "AAAA", "=" * 88, "A" * 86 + "==", "A" * 88, "\udcff"])
def test_what_is_no_signature_is_none(vkey: VerifierKey, signature: str) -> None:
    assert not check(STATEMENT, signature, vkey)


def test_a_signature_on_bare_bytes_is_none_on_a_statement(private: Ed25519PrivateKey, vkey: VerifierKey) -> None:
    note = sign_note("a note\n", "ana", private)
    raw = from_base64(note.rsplit(" ", 1)[1].strip())
    assert raw is not None
    assert not check(b"a note\n", to_base64(raw[4:]), vkey)
    assert sign(STATEMENT, private) == to_base64(private.sign(b"nse-statement-v1\n" + STATEMENT))
