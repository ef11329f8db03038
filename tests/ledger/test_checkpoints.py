"""Checkpoints are signed, kept in the ledger and in files, and name one history for ever."""

from pathlib import Path

import pytest

from ledger import checkpoints
from ledger.checkpoints import CheckpointFolder, SignedCheckpoint, at_size, latest, read_keys, stated
from ledger.errors import LedgerError
from ledger.notes import NoteError
from tests.ledger.history import LOG, ORIGIN, full_history, open_history, signer


def test_a_checkpoint_states_size_and_root_of_the_log_and_is_signed_with_its_key(ledger_url: str) -> None:
    history = open_history(ledger_url)
    history.start()
    made = history.checkpoint()
    with history.ledger.read() as work:
        said = stated(made.note, [LOG.key])
        assert (said.origin, said.size, said.root) == (ORIGIN, work.log.size(), work.log.root())
        assert latest(work) == at_size(work, made.size) == made
        assert at_size(work, made.size + 1) is None


def test_the_checkpoint_of_one_size_is_made_once(ledger_url: str) -> None:
    history = open_history(ledger_url)
    history.start()
    first = history.checkpoint()
    with history.ledger.begin() as work:
        assert checkpoints.checkpoint(work, signer("another log"), origin="other") == first
    history.file()
    assert history.checkpoint().size == first.size + 1


def test_an_empty_log_has_no_checkpoint(ledger_url: str) -> None:
    history = open_history(ledger_url)
    with history.ledger.read() as work:
        assert latest(work) is None
    with pytest.raises(LedgerError, match="the log is empty"):
        history.checkpoint()


def test_any_changed_character_of_a_note_is_refused(tmp_path: Path) -> None:
    note = full_history(f"sqlite:///{tmp_path / 'ledger.db'}").checkpoint().note
    assert stated(note, [LOG.key]) == stated(note)
    for place, character in enumerate(note):
        spoilt = note[:place] + ("A" if character != "A" else "B") + note[place + 1 :]
        with pytest.raises(NoteError):
            stated(spoilt, [LOG.key])


def test_a_folder_keeps_every_checkpoint_and_every_key_once(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints")
    assert (folder.notes(), folder.keys()) == ({}, ())
    first, second = SignedCheckpoint(9, "nine\n"), SignedCheckpoint(12, "twelve\n")
    for made, key in ((first, LOG.key), (second, LOG.key), (first, LOG.key), (second, signer("new").key)):
        folder.keep(made, key)
    assert folder.notes() == {"12.note": "twelve\n", "9.note": "nine\n"}
    assert folder.keys() == (LOG.key, signer("new").key)
    assert sorted(path.name for path in folder.folder.iterdir()) == ["12.note", "9.note", "log.pub"]


def test_another_checkpoint_of_the_same_size_is_refused_and_the_first_stays(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.keep(SignedCheckpoint(9, "nine\n"), LOG.key)
    with pytest.raises(LedgerError, match="holds another checkpoint than the ledger"):
        folder.keep(SignedCheckpoint(9, "9\n"), LOG.key)
    assert folder.path(9).read_text() == "nine\n"


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="cannot keep a checkpoint"):
        CheckpointFolder(tmp_path / "file").keep(SignedCheckpoint(9, "nine\n"), LOG.key)


def test_a_changed_character_of_the_public_keys_is_refused(tmp_path: Path) -> None:
    text = f"{LOG.key}\n"
    for place in range(len(text) - 1):
        spoilt = text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :]
        with pytest.raises(NoteError):
            read_keys(spoilt)
