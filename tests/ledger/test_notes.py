"""Signed notes and checkpoints, against the published vectors of the Go note package and of the specifications."""

import base64
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ledger.notes import (
    Checkpoint,
    NoteError,
    VerifierKey,
    from_base64,
    key_name,
    open_checkpoint,
    open_note,
    sign_checkpoint,
    sign_note,
)

# The vectors of the sumdb/note package of the Go project.
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PETER_PRIVATE = "AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
ENOCH = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
PETER_LINE = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
ENOCH_LINE = (
    "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n"
)
BAD_PETER_LINE = PETER_LINE[:60] + "ABCD" + PETER_LINE[60:]

# The example of c2sp.org/tlog-checkpoint.
SOFA = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
SOFA_LINE = (
    "— example.com/behind-the-sofa "
    "Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
)


@pytest.fixture
def private() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def vkey(name: str, private: Ed25519PrivateKey) -> VerifierKey:
    return VerifierKey(name, private.public_key().public_bytes_raw())


def peter() -> VerifierKey:
    return VerifierKey.parse(PETER)


def test_the_published_keys_are_read_and_written_alike() -> None:
    for text, name, short in [(PETER, "PeterNeumann", "c74f20a3"), (ENOCH, "EnochRoot", "af0cfe78")]:
        key = VerifierKey.parse(text)
        assert (key.name, key.id.hex(), len(key.public)) == (name, short, 32)
        assert str(key) == text


def test_no_part_of_a_verifier_key_and_no_mangled_one_is_a_verifier_key() -> None:
    parts = [PETER[start:end] for start in range(len(PETER)) for end in range(start, len(PETER) + 1)]
    mangled = [PETER[:at] + chr(ord(PETER[at]) + 1) + PETER[at + 1 :] for at in range(len(PETER))]
    for text in {*parts, *mangled, PETER + "\n", " " + PETER, PETER.replace("c74f20a3", "C74F20A3")} - {PETER}:
        with pytest.raises(NoteError):
            VerifierKey.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==",  # a longer key
        "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",  # another algorithm
    ],
)
def test_a_key_of_another_length_or_kind_is_refused_although_its_id_fits(text: str) -> None:
    with pytest.raises(NoteError, match="is no Ed25519 verifier key"):
        VerifierKey.parse(text)


def test_signing_as_the_go_package_does_gives_the_same_note() -> None:
    seed = base64.b64decode(PETER_PRIVATE)[1:]
    private = Ed25519PrivateKey.from_private_bytes(seed)
    assert sign_note(TEXT, "PeterNeumann", private) == TEXT + "\n" + PETER_LINE


def test_a_note_counts_the_signatures_of_known_keys_only() -> None:
    note = TEXT + "\n" + PETER_LINE + ENOCH_LINE
    enoch = VerifierKey.parse(ENOCH)
    assert open_note(note, [peter()]) == (TEXT, ("PeterNeumann",))
    assert open_note(note, [enoch]) == (TEXT, ("EnochRoot",))
    assert open_note(note, iter([enoch, peter()])) == (TEXT, ("PeterNeumann", "EnochRoot"))
    assert open_note(TEXT + "\n" + PETER_LINE * 2, [peter(), peter()]) == (TEXT, ("PeterNeumann",))


def test_a_note_that_no_known_key_signed_is_refused(private: Ed25519PrivateKey) -> None:
    namesake = vkey("PeterNeumann", private)
    for keys in ([], [VerifierKey.parse(ENOCH)], [namesake], [VerifierKey("Peter", peter().public)]):
        with pytest.raises(NoteError, match="is not signed by a known key"):
            open_note(TEXT + "\n" + PETER_LINE, keys)


@pytest.mark.parametrize(
    "note",
    [
        TEXT.replace("cryptography", "cryptographY") + "\n" + PETER_LINE,
        TEXT + "\n\n" + PETER_LINE,
        TEXT + "\n" + BAD_PETER_LINE,
        TEXT + "\n" + PETER_LINE + BAD_PETER_LINE,
        TEXT + "\n" + ENOCH_LINE + "— PeterNeumann x08go/ZJ\n",
    ],
    ids=["another text", "one more newline", "a long signature", "a second that is wrong", "a short signature"],
)
def test_a_wrong_signature_of_a_known_key_spoils_the_note(note: str) -> None:
    with pytest.raises(NoteError, match="the signature of PeterNeumann on the note is wrong"):
        open_note(note, [peter(), VerifierKey.parse(ENOCH)])


def test_every_flipped_bit_of_text_or_signature_is_refused(private: Ed25519PrivateKey) -> None:
    note = sign_note("ana approves\n", "ana", private).encode()
    keys = [vkey("ana", private)]
    assert open_note(note.decode(), keys) == ("ana approves\n", ("ana",))
    for at in range(len(note)):
        for bit in range(8):
            changed = note[:at] + bytes([note[at] ^ 1 << bit]) + note[at + 1 :]
            with pytest.raises((NoteError, UnicodeDecodeError)):
                open_note(changed.decode(), keys)


@pytest.mark.parametrize(
    "note",
    [
        "",
        "\n",
        TEXT,
        TEXT + "\n",
        TEXT + PETER_LINE,
        TEXT + "\n" + PETER_LINE[:-1],
        "\x01" + TEXT + "\n" + PETER_LINE,
        "\t" + TEXT + "\n" + PETER_LINE,
        "\udcff" + TEXT + "\n" + PETER_LINE,
        (TEXT + "\n" + PETER_LINE).replace("\n", "\r\n"),
        TEXT + "\n" + PETER_LINE.replace("PeterNeumann", "Bad Name"),
        TEXT + "\n" + PETER_LINE.replace("PeterNeumann", "Bad\u2003Name"),
        TEXT + "\n" + PETER_LINE.replace("PeterNeumann", "Bad+Name"),
        TEXT + "\n" + PETER_LINE.replace("PeterNeumann", ""),
        TEXT + "\n" + PETER_LINE.replace("—", "-"),
        TEXT + "\n" + PETER_LINE.replace("—", " —"),
        TEXT + "\n" + PETER_LINE.replace("=\n", "\n"),
        TEXT + "\n" + PETER_LINE.replace("=\n", "= \n"),
        TEXT + "\n" + PETER_LINE.replace("nAM=", "nAN="),
        TEXT + "\n" + PETER_LINE + "— EnochRoot rwz+eA==\n",
        TEXT + "\n" + PETER_LINE + "Unexpected line.\n",
        TEXT + "\n" + PETER_LINE + "\n",
        TEXT + "\n" + PETER_LINE * 101,
        "x" * 1_000_000 + "\n\n" + PETER_LINE,
    ],
)
def test_a_malformed_note_is_refused_as_such(note: str) -> None:
    with pytest.raises(NoteError, match=r"cut off|control characters|is no signature|101 signatures"):
        open_note(note, [peter()])


def test_a_text_may_hold_empty_lines_and_what_looks_like_signatures(private: Ed25519PrivateKey) -> None:
    text = "first\n\n" + PETER_LINE + "\n\n山田 \u2028\n\n"
    assert open_note(sign_note(text, "Łucja", private), [vkey("Łucja", private), peter()]) == (text, ("Łucja",))


@pytest.mark.parametrize("text", ["", "no newline", "\x1b[31mred\n", "tab\there\n", "\ud800\n", "x" * 1_000_000 + "\n"])
def test_a_text_that_no_note_can_hold_is_not_signed(private: Ed25519PrivateKey, text: str) -> None:
    with pytest.raises(NoteError):
        sign_note(text, "ana", private)


@pytest.mark.parametrize("name", ["", "Ana Sol", "a+b", "a\u00a0b", "a\nb", "a\x00b", "\ud800"])
def test_a_name_that_no_key_can_have_is_refused(private: Ed25519PrivateKey, name: str) -> None:
    with pytest.raises(NoteError, match="is no name of a key"):
        sign_note("text\n", name, private)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_public_key_has_32_bytes(length: int) -> None:
    with pytest.raises(NoteError, match=f"has {length} bytes"):
        VerifierKey("ana", bytes(length))


def test_two_keys_that_cannot_be_told_apart_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VerifierKey, "id", b"same")  # a collision of 32 bits
    with pytest.raises(NoteError, match=r"two known keys are both ana\+73616d65"):
        open_note(TEXT + "\n" + PETER_LINE, [VerifierKey("ana", bytes(32)), VerifierKey("ana", b"x" * 32)])


@pytest.mark.parametrize(
    ("person", "name"),
    [
        ("ana", "ana"),
        ("  Ana  María\tSol ", "Ana-María-Sol"),
        ("Ana Mari\u0301a", "Ana-María"),
        ("C++ team", "C-team"),
        ("山田 太郎", "山田-太郎"),
        ("a\u2003\u00a0b\n", "a-b"),
    ],
)
def test_a_persons_name_becomes_the_name_of_a_key(person: str, name: str) -> None:
    assert key_name(person) == name
    assert key_name(name) == name
    assert VerifierKey(name, bytes(32)).name == name


@pytest.mark.parametrize("person", ["", "  \t", "a\x00b", "\ud800"])
def test_a_person_without_a_usable_name_has_no_key_name(person: str) -> None:
    with pytest.raises(NoteError, match="cannot name a key"):
        key_name(person)


def test_the_published_checkpoint_is_read_and_written_alike() -> None:
    checkpoint = Checkpoint.parse(SOFA)
    assert (checkpoint.origin, checkpoint.size) == ("example.com/behind-the-sofa", 20852163)
    assert checkpoint.root.hex() == "0ac5186a91863e8e1d90c808014aa89bf5da8e3ee1d9f07630f0378f68f1ab62"
    assert checkpoint.text() == SOFA


def test_a_signed_checkpoint_comes_back_and_the_signature_of_a_stranger_does_not_matter(
    private: Ed25519PrivateKey,
) -> None:
    checkpoint = Checkpoint.parse(SOFA)
    note = sign_checkpoint(checkpoint, "example.com/log", private)
    for received in (note, note + SOFA_LINE):
        assert open_checkpoint(received, [vkey("example.com/log", private)]) == (checkpoint, ("example.com/log",))
    with pytest.raises(NoteError, match="not signed by a known key"):
        open_checkpoint(note, [peter()])


def test_a_signed_note_that_states_no_checkpoint_is_refused() -> None:
    with pytest.raises(NoteError, match="other lines than origin, size and root"):
        open_checkpoint(TEXT + "\n" + PETER_LINE, [peter()])


def test_extension_lines_of_a_checkpoint_are_left_out() -> None:
    assert Checkpoint.parse(SOFA + "extension\n") == Checkpoint.parse(SOFA)


ROOT_LINE = base64.b64encode(bytes(32)).decode()


@pytest.mark.parametrize("size", ["0", "1", "9999999999999999999"])
def test_the_size_of_a_checkpoint_is_a_plain_number(size: str) -> None:
    text = f"log\n{size}\n{ROOT_LINE}\n"
    assert Checkpoint.parse(text).size == int(size)
    assert Checkpoint.parse(text).text() == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        f"log\n1\n{ROOT_LINE}",
        "log\n1\n",
        f"\n1\n{ROOT_LINE}\n",
        f"log\n\n{ROOT_LINE}\n",
        f"log\n1\n{ROOT_LINE}\n\n",
        f"log\n1\n{ROOT_LINE}\n\nextension\n",
        f"log\n1\n{ROOT_LINE}\nextension",
        *[f"log\n{size}\n{ROOT_LINE}\n" for size in ("01", "-1", "+1", "1 ", "1.0", "1_0", "٣", "x", "1" * 5000)],
        f"log\n1\n{ROOT_LINE[:-1]}\n",
        f"log\n1\n{ROOT_LINE} \n",
        f"log\n1\n{base64.b64encode(bytes(31)).decode()}\n",
        f"log\n1\n{base64.b64encode(bytes(33)).decode()}\n",
    ],
)
def test_what_is_not_the_text_of_a_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(NoteError):
        Checkpoint.parse(text)


@pytest.mark.parametrize(
    "values",
    [("", 1, bytes(32)), ("a\nb", 1, bytes(32)), ("a\x07", 1, bytes(32)), ("a", -1, bytes(32)), ("a", 1, bytes(20))],
)
def test_a_checkpoint_that_could_not_be_read_back_is_not_made(values: Any) -> None:
    with pytest.raises(NoteError):
        Checkpoint(*values)


@pytest.mark.parametrize("text", ["AA=", "AB==", "A A=", "AA==\n", "é", "AA==AA=="])
def test_base64_has_one_form(text: str) -> None:
    assert from_base64(text) is None
    assert from_base64("AA==") == b"\0"
