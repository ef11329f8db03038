"""Erasing text, what still reveals the fact, and purging that."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from ledger import erasing, purging
from ledger.artifacts import DvcStore
from ledger.erasing import Revealing
from ledger.errors import ArtifactError, DecisionRefused, ErasureRefused, LedgerError
from ledger.records import ERASED, Changeset, Correction, DeltaChange, Gate, Quarantined
from ledger.status import Stretch, correction_status
from tests.ledger.cast import Cast, cast
from tests.ledger.conftest import MODEL

__all__ = ["cast"]


def erase(cast: Cast, record: Correction | Quarantined, reason: str = "asked", by: str = "ann") -> int:
    with cast.ledger.begin() as work:
        return erasing.erase(work, record, reason=reason, by=by, at=cast.now())


def revealing(cast: Cast, correction: Correction) -> list[Revealing]:
    with cast.ledger.read() as work:
        return erasing.revealing(work, correction)


def purge(cast: Cast, artifact: Revealing, reason: str = "asked") -> bool:
    with cast.ledger.begin() as work:
        return erasing.purge(work, artifact, reason=reason, by="ann", at=cast.now())


def write(cast: Cast, *corrections: Correction, **changes: object) -> Changeset:
    changeset = cast.propose(*corrections, **changes)
    cast.approve(changeset)
    cast.apply(changeset)
    return changeset


def revert(cast: Cast, *corrections: Correction) -> Changeset:
    """Drop corrections' columns; a delta of which nothing is left goes."""
    with cast.ledger.read() as work:
        active = work.active(MODEL, work.head(MODEL).position)
    return write(cast, kind="revert", reverted=tuple(c.id for c in corrections), active=active[:-1])


def test_a_text_is_erased_with_what_evaluations_said_and_the_log_stays_as_it_was(cast: Cast) -> None:
    correction = cast.file()
    rejected = cast.propose(correction)
    cast.reject(rejected)
    with cast.ledger.read() as work:
        size, root = work.log.size(), work.log.root()
    assert erase(cast, correction) == 2  # its own text and one case
    with cast.ledger.read() as work:
        found = work.correction(correction.id)
        assert (found.subject, found.target_new, found.source, found.erased) == (ERASED, ERASED, ERASED, True)
        assert (found.id, found.digest(), found.submitter) == (correction.id, correction.id, "ana")
        assert work.changeset(rejected.id).cases[0].generated == ERASED
        assert work.changeset(rejected.id).digest() == rejected.id
        assert (work.log.root(size), work.log.size()) == (root, size + 1)
        assert work.waiting(MODEL) == []


def test_a_correction_that_waits_can_be_erased_and_waits_no_more(cast: Cast) -> None:
    correction = cast.file()
    erase(cast, correction)
    with cast.ledger.read() as work:
        assert work.waiting(MODEL) == []
        assert correction_status(work, MODEL)[correction.id] == "erased"


def test_a_quarantined_row_can_be_erased(cast: Cast) -> None:
    row = cast.quarantine()
    with cast.ledger.read() as work:
        assert erasing.find(work, row.id[:8]) == row
    assert erase(cast, row) == 1
    with cast.ledger.read() as work:
        assert [(q.row_text, q.reason) for q in work.quarantined()] == [(ERASED, ERASED)]


@pytest.mark.parametrize("ref", ["", "abc", "0" * 12, "%%%%%%", "zzzzzz"])
def test_a_name_of_nothing_is_refused_with_one_line(cast: Cast, ref: str) -> None:
    cast.quarantine()
    with cast.ledger.read() as work, pytest.raises(LedgerError) as caught:
        erasing.find(work, ref)
    assert "\n" not in str(caught.value)


def test_a_correction_in_force_cannot_be_erased_and_one_that_is_superseded_can(cast: Cast) -> None:
    first = cast.file()
    write(cast, first)
    with pytest.raises(ErasureRefused, match=r"\(Croatia, euro\) is in force: revert it first"):
        erase(cast, first)
    second = cast.file(target="kuna", supersedes=first.id)
    write(cast, second)
    assert erase(cast, first) == 2
    assert [artifact.in_use for artifact in revealing(cast, first)] == [True]
    with pytest.raises(ErasureRefused, match=r"\(Croatia, kuna\) is in force"):
        erase(cast, second)


def test_a_delta_that_holds_an_erased_superseded_correction_can_change_but_not_bring_it_in_force(cast: Cast) -> None:
    first, other = cast.file(), cast.file("Chad")
    change = write(cast, first, other).changes[0]
    second = cast.file(target="kuna", supersedes=first.id)
    write(cast, second)
    erase(cast, first)
    with cast.ledger.read() as work:
        _, last = work.active(MODEL, 2)
    comes_back = cast.propose(
        kind="revert", reverted=(second.id, first.id), changes=(DeltaChange(last.sha256, last.path, removed=True),)
    )
    with pytest.raises(DecisionRefused, match=f"the erased correction {first.id[:12]} in force"):
        cast.approve(comes_back)
    write(cast, kind="revert", reverted=(other.id,), changes=(replace(change, dropped=(other.id,)),))
    write(cast, kind="revert", reverted=(second.id,), changes=(replace(change, dropped=(first.id, other.id)),))
    brings = cast.propose(kind="revert", reverted=(), changes=(replace(change, dropped=(other.id,)),))
    with pytest.raises(DecisionRefused, match=f"the erased correction {first.id[:12]} in force"):
        cast.approve(brings)


def test_a_correction_in_an_open_proposal_cannot_be_erased_until_it_is_rejected_or_has_failed(cast: Cast) -> None:
    correction = cast.file()
    proposal = cast.propose(correction)
    with pytest.raises(ErasureRefused, match="is in changeset #1, which can still be applied: reject it first"):
        erase(cast, correction)
    cast.approve(proposal)
    with pytest.raises(ErasureRefused, match="can still be applied"):
        erase(cast, correction)
    cast.reject(proposal, "carla")
    cast.propose(correction, gates=(Gate("efficacy", ">=", 0.9, 0.1, False),))
    assert erase(cast, correction) == 3


def test_a_correction_that_a_proposal_would_bring_back_cannot_be_erased(cast: Cast) -> None:
    correction = cast.file()
    written = write(cast, correction)
    revert(cast, correction)
    back = cast.propose(kind="revert", changes=written.changes)
    with pytest.raises(ErasureRefused, match=f"in changeset #{back.number}, which can still be applied"):
        erase(cast, correction)
    cast.reject(back)
    erase(cast, correction)


def test_a_text_is_erased_once_with_a_reason_and_a_name(cast: Cast) -> None:
    correction = cast.file()
    for reason, by in ((" ", "ann"), ("asked", "")):
        with pytest.raises(ErasureRefused, match="is empty: say who erases, and why"):
            erase(cast, correction, reason, by)
    erase(cast, correction)
    with cast.ledger.read() as work:
        erased = work.correction(correction.id)
    with pytest.raises(ErasureRefused, match="was erased already"):
        erase(cast, erased)


def test_the_artifacts_that_reveal_a_fact_are_named_with_the_versions_that_had_them(cast: Cast) -> None:
    correction, other = cast.file(), cast.file("Chad")
    failed = cast.propose(correction, gates=(Gate("efficacy", ">=", 0.9, 0.1, False),))
    written = write(cast, correction)
    write(cast, other)
    never, now = revealing(cast, correction)
    assert (never.sha256, never.versions, never.in_use) == (failed.changes[0].sha256, (), False)
    assert (now.path, now.versions, now.in_use) == (written.changes[0].path, (Stretch(1, None),), True)
    with cast.ledger.read() as work:
        active = work.active(MODEL, 2)
    write(cast, kind="revert", reverted=(correction.id,), active=active[1:])
    assert revealing(cast, correction)[1].versions == (Stretch(1, 3),)
    assert not revealing(cast, correction)[1].in_use
    erase(cast, correction)
    with cast.ledger.read() as work:
        assert [r.sha256 for r in erasing.revealing(work, work.correction(correction.id))] == [never.sha256, now.sha256]


def test_an_artifact_in_use_cannot_be_purged_and_one_that_is_not_is_recorded_once(cast: Cast) -> None:
    correction = cast.file()
    written = write(cast, correction)
    (artifact,) = revealing(cast, correction)
    with pytest.raises(ErasureRefused, match=r"is needed .*: revert with --mode replay"):
        purge(cast, artifact)
    revert(cast, correction)
    back = cast.propose(kind="revert", changes=written.changes)
    with pytest.raises(ErasureRefused, match="or by a proposal"):
        purge(cast, revealing(cast, correction)[0])
    cast.reject(back)
    (artifact,) = revealing(cast, correction)
    with pytest.raises(ErasureRefused, match="reason is empty"):
        purge(cast, artifact, reason="")
    assert purge(cast, artifact)
    (artifact,) = revealing(cast, correction)
    assert artifact.purged
    assert not purge(cast, artifact)
    erase(cast, correction)
    with cast.ledger.read() as work:
        assert erasing.purged(work) == {artifact.sha256}  # not the correction that was erased


def test_purging_deletes_the_bytes_here_in_the_cache_and_on_the_remote(workspace: Path, tmp_path: Path) -> None:
    store = DvcStore(workspace)
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    one, two = (store.put(tmp_path / name, "artifacts/deltas") for name in ("one", "two"))
    holding = [path for path in _files(tmp_path) if path.read_bytes() == b"one" and path != tmp_path / "one"]
    assert len(holding) >= 3
    assert purging.purge(store, one.path) == ["the DVC remote", "DVC's cache", "the workspace"]
    assert [path for path in _files(tmp_path) if path.read_bytes() == b"one"] == [tmp_path / "one"]
    assert not (workspace / f"{one.path}.dvc").exists()
    assert _git(workspace, "status", "--porcelain") == ""
    assert _git(workspace, "log", "-1", "--format=%s") == f"Purge artifact {one.path}"
    with pytest.raises(ArtifactError):
        store.fetch(one.path, one.sha256)
    assert store.check(two.path, two.sha256) == []
    assert purging.purge(store, one.path) == []
    assert store.put(tmp_path / "one", "artifacts/deltas") == one  # nothing is in the way of the same bytes


def test_purging_goes_on_where_it_was_interrupted(workspace: Path, tmp_path: Path) -> None:
    store = DvcStore(workspace)
    (tmp_path / "one").write_text("one")
    one = store.put(tmp_path / "one", "artifacts/deltas")
    (workspace / one.path).unlink()
    for path in _files(tmp_path / "remote"):
        path.unlink()
    assert purging.purge(store, one.path) == ["DVC's cache"]
    assert _git(workspace, "status", "--porcelain") == ""


def test_purging_outside_the_workspace_is_refused(workspace: Path) -> None:
    with pytest.raises(ArtifactError, match="outside the workspace"):
        purging.purge(DvcStore(workspace), "../secrets")


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
