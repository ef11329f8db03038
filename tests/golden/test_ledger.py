"""What the first release wrote is read and verified for ever: a whole ledger, its proofs, its checkpoints, its statements."""

import pytest

from ledger.audit import check_records
from ledger.checkpoints import CheckpointFolder, read_keys, stated
from ledger.database import connect
from ledger.proofs import check
from ledger.statements import opened
from ledger.transfer import import_ledger
from ledger.unit_of_work import Ledger
from tests.golden.make_ledger import GOLDEN

ROOT = "475ab3db5d9e4c1e814ecd72832f033b363b2facd9f3cbcc681197e6641974bc"
EVENTS = 51
KEYS = read_keys((GOLDEN / "log.pub").read_text(encoding="utf-8"))


def test_the_ledger_is_imported_to_the_recorded_root_and_verifies(ledger_url: str) -> None:
    ledger = Ledger(connect(ledger_url, create=True))
    done = import_ledger(ledger, GOLDEN / "export", keys=KEYS)
    assert (done.events, done.root) == (EVENTS, ROOT)
    checkpoints = CheckpointFolder(GOLDEN / "export" / "checkpoints").notes()
    with ledger.read() as work:
        assert check_records(work, keys=KEYS, checkpoints=checkpoints) == []


@pytest.mark.parametrize("name", ["correction", "changeset", "consistency"])
def test_its_proofs_still_prove(name: str) -> None:
    lines = check((GOLDEN / "proofs" / f"{name}.json").read_text(encoding="utf-8"), KEYS)
    assert any("the log nse/world of" in line for line in lines)


def test_its_checkpoints_and_statements_are_still_signed_by_its_key() -> None:
    notes = CheckpointFolder(GOLDEN / "export" / "checkpoints").notes()
    assert [stated(note, KEYS).origin for note in notes.values()] == ["nse/world"] * 2
    for line in (GOLDEN / "export" / "statements.jsonl").read_text(encoding="utf-8").splitlines():
        assert opened(line, KEYS)["predicateType"] == "urn:nse:changeset:v1"
