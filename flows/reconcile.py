"""Reconcile: what a run that died left half done is finished or undone. What is whole is left alone.

A transaction of the ledger is there as a whole or not at all, so the ledger needs none of this: half done is only what lies
beside it. Call it under the writer lock. Called again, it finds nothing to do.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from flows.checkpoints import kept, key_here, record
from flows.draft import Draft
from flows.errors import FlowError
from flows.git import git
from flows.lock import DIED
from flows.workspace import Workspace
from ledger.artifact_names import artifacts_of
from ledger.erasing import purged
from ledger.errors import ArtifactError, LedgerError
from ledger.purging import purge
from ledger.records import Shown
from ledger.unit_of_work import UnitOfWork
from ledger.waiting import rebuild_waiting

ARTIFACTS = "artifacts/deltas"
_ARTIFACT = re.compile(r"[0-9a-f]{16}\.safetensors(\.dvc)?")


@dataclass(frozen=True, slots=True)
class Repair(Shown):
    """One thing that was done, or could not be: one line."""

    text: str
    done: bool = True

    def __str__(self) -> str:
        """The line for people."""
        return self.text if self.done else f"not done: {self.text}"


def reconcile(workspace: Workspace) -> list[str]:
    """Finishes or undoes what a run left half done, before the next one; returns a line for each thing."""
    return [str(repair) for repair in repairs(workspace)]


def repairs(workspace: Workspace, *, thorough: bool = False) -> list[Repair]:
    """Finishes or undoes what a run left half done.

    Args:
        workspace: Where; its writer lock is held.
        thorough: Whether to restore every artifact that is missing and to compare the index of what waits as well, which
            takes seconds in a long ledger, and no crash can cause.

    Raises:
        LedgerError: If the ledger cannot be opened.
        FlowError: If Git refuses.
    """
    found = _Reconciliation(workspace)
    steps = [found.dead_writer, found.copies, found.drafts, found.artifacts]
    if thorough:
        steps += [found.missing, found.waiting]
    steps.append(found.checkpoint)
    return [repair for step in steps for repair in step()]


class _Reconciliation:
    """The steps; each says what it did."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace, self.root, self.store = workspace, workspace.root, workspace.store()
        self.model = workspace.model

    def dead_writer(self) -> Iterator[Repair]:
        note = self.workspace.state / DIED
        try:
            said = json.loads(note.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except ValueError:
            said = {"doing": "?", "by": "?", "pid": "?", "since": "?"}  # it died while it wrote its name
        yield Repair(f"`nse {said['doing']}` by {said['by']} (process {said['pid']}, since {said['since']}) had died")
        note.unlink()

    def copies(self) -> Iterator[Repair]:
        """Half a copy of an artifact: nobody can be making one while the store is ours."""
        with FileLock(self.workspace.state / "artifacts.lock"):
            for partial in sorted((self.root / ARTIFACTS).glob(".*.partial")):
                partial.unlink()
                yield Repair(f"removed {self._name(partial)}, half a copy")

    def drafts(self) -> Iterator[Repair]:
        """Drafts of rounds that cannot be finished any more, or are; of the others the files that were half written."""
        folders = sorted(path for path in (self.workspace.state / "drafts").glob("*") if path.is_dir())
        if not folders:
            return
        with self.workspace.ledger().read() as work:
            ended = {folder: self._ended(work, folder.name) for folder in folders}
        for folder, why in ended.items():
            for file in sorted(folder.iterdir()):
                if why is not None or file.name.startswith("."):
                    file.unlink()
                    if why is None:
                        yield Repair(f"removed {self._name(file)}, half a file")
            if why is not None:
                folder.rmdir()
                yield Repair(f"removed the draft {folder.name[:12]}: {why}")

    def _ended(self, work: UnitOfWork, plan: str) -> str | None:
        draft = Draft(self.workspace, plan)
        if not draft.has("plan"):
            return "its plan was not written"
        number = work.planned(self.model, plan)
        if number is not None:
            return f"changeset #{number} is in the ledger"
        if draft.read("plan").get("parent") != work.head(self.model).changeset_id:
            return "the head has moved since it was planned"
        return None

    def artifacts(self) -> Iterator[Repair]:
        """Artifacts on their way to the remote: to the end, if the ledger or a draft wants them, else back."""
        drafted = self._drafted()
        half = self._half_stored()
        named = self._named() if half else {}
        for path in sorted({*half, *(path for path in drafted if (self.root / path).exists())}):
            target = self.root / path
            wanted = drafted[path][1] if path in drafted else named.get(path)
            source = drafted[path][0] if path in drafted else target
            if wanted is None:
                yield self._undone(path)
            elif source.exists() and _sha256(source) == wanted:
                yield from self._finish(path, source, wanted, half=path in half)

    def _undone(self, path: str) -> Repair:
        try:
            purge(self.store, path)
        except ArtifactError as error:
            return Repair(f"{path} was not stored to the end, and cannot be removed: {error}", done=False)
        return Repair(f"removed {path}: it was not stored to the end, and nothing needs it")

    def _finish(self, path: str, source: Path, sha256: str, *, half: bool) -> Iterator[Repair]:
        try:
            problems = ["it was not committed to Git"] if half else self.store.check(path, sha256)
            if problems:
                self.store.put(source, str(Path(path).parent))
                yield Repair(f"stored {path} to the end: {problems[0]}")
        except ArtifactError as error:
            yield Repair(f"{path} cannot be stored to the end: {error}", done=False)

    def missing(self) -> Iterator[Repair]:
        """Artifacts that the ledger names and that are not here."""
        for path, sha256 in self._named().items():
            if (self.root / path).exists():
                continue
            try:
                self.store.fetch(path, sha256)
                yield Repair(f"restored {path} from the remote; its bytes are those that the ledger recorded")
            except ArtifactError as error:
                yield Repair(f"{path} is missing and cannot be restored: {error}", done=False)

    def waiting(self) -> Iterator[Repair]:
        """The index of what waits, if it is not what the records say."""
        with self.workspace.ledger().begin() as work:
            put, taken = rebuild_waiting(work)
        if put or taken:
            yield Repair(f"made the index of what waits anew: {put} put in, {taken} taken out")

    def checkpoint(self) -> Iterator[Repair]:
        """The checkpoint of the last event, if a run died before it was in Git; where the log's key is not, it is not missed."""
        try:
            if key_here(self.workspace) is None:
                return
            with self.workspace.ledger().read() as work:
                size = work.log.size()
            name = self._name(kept(self.workspace).path(size))
            if not git(self.root, "ls-tree", "--name-only", "HEAD", "--", name):
                record(self.workspace, push=False)
                yield Repair(f"committed {name}, the checkpoint of the ledger's last event")
        except (LedgerError, FlowError) as error:
            yield Repair(f"the checkpoint of the ledger's last event cannot be committed: {error}", done=False)

    # --- what is there

    def _drafted(self) -> dict[str, tuple[Path, str]]:
        """Where each delta of a draft will be stored: the file in the draft, and its SHA-256."""
        found = {}
        for file in sorted((self.workspace.state / "drafts").glob("*/delta-*.safetensors")):
            sha256 = _sha256(file)
            found[f"{ARTIFACTS}/{sha256[:16]}.safetensors"] = (file, sha256)
        return found

    def _half_stored(self) -> set[str]:
        """Artifacts that are here, or their `.dvc` files, and that Git does not have."""
        files = (self.root / ARTIFACTS).glob("*")
        here = {self._name(file).removesuffix(".dvc") for file in files if _ARTIFACT.fullmatch(file.name)}
        if not here:
            return set()
        committed = git(self.root, "ls-tree", "-z", "--name-only", "HEAD", "--", f"{ARTIFACTS}/").split("\0")
        return here - {name.removesuffix(".dvc") for name in committed}

    def _named(self) -> Mapping[str, str]:
        """Every artifact that the ledger names, with its SHA-256, in order."""
        with self.workspace.ledger().read() as work:
            gone = purged(work)
            return {path: sha256 for path, sha256 in artifacts_of(work, self.model).items() if sha256 not in gone}

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
