"""Makes `ledger_v1`: a small ledger as an export, with a proof, that every later release must still read and verify.

Run once, when the first release was made; a file that is there is never made anew. Its keys are those of `tests.ledger.history`,
derived from their names: they sign nothing else.

    python -m tests.golden.make_ledger
"""

import tempfile
from pathlib import Path

from ledger.checkpoints import latest
from ledger.proofs import prove, prove_consistency
from ledger.records import Correction
from ledger.repository import select_records
from ledger.transfer import export_ledger
from tests.ledger.history import LOG, full_history

GOLDEN = Path(__file__).parent / "ledger_v1"


def main(folder: Path = GOLDEN) -> None:
    """Makes the files in a new folder."""
    with tempfile.TemporaryDirectory() as temporary:
        history = full_history(f"sqlite:///{temporary}/ledger.db", filled=12)
        with history.ledger.read() as work:
            export_ledger(work, folder / "export", signer=LOG, keys=[LOG.key])
            checkpoint = latest(work)
            assert checkpoint is not None
            second = select_records(work.connection, Correction)[1]
            proofs = {
                "correction": prove(work, second.id, checkpoint),
                "changeset": prove(work, "#1", checkpoint),
                "consistency": prove_consistency(work, 9, checkpoint.size),
            }
    (folder / "proofs").mkdir()
    for name, proof in proofs.items():
        (folder / "proofs" / f"{name}.json").write_text(proof, encoding="utf-8")
    (folder / "log.pub").write_text(f"{LOG.key}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
