"""Where the bytes of deltas live: one immutable path each, tracked by DVC, named in the ledger by SHA-256.

DVC identifies by MD5, so every byte that comes back is checked against the ledger's SHA-256. What is in an artifact
this module does not know.
"""

import hashlib
import logging
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, runtime_checkable

import yaml
from filelock import FileLock

from ledger.errors import ArtifactError
from ledger.records import Shown

_CHECKED_TOGETHER = 200
"""Artifacts for which DVC is opened once: while it is, nobody can store."""


@dataclass(frozen=True, slots=True)
class StoredArtifact(Shown):
    """An artifact that is safe on the remote: its path relative to the workspace, and its digest."""

    path: str
    sha256: str


class ArtifactStore(Protocol):
    """Keeps immutable files."""

    def put(self, source: Path, folder: str, *, suffix: str = ".safetensors") -> StoredArtifact:
        """Store the bytes of `source` under `folder`, relative to the workspace; the same bytes again are no change."""

    def fetch(self, path: str, sha256: str) -> Path:
        """Return a local file whose bytes have been checked against `sha256`; raises ArtifactError otherwise."""

    def check(self, path: str, sha256: str) -> list[str]:
        """Return what is wrong with a stored artifact, one line each; empty when all is well."""


@runtime_checkable
class ChecksTogether(Protocol):
    """A store that checks many artifacts in less time than one after another."""

    def check_all(self, artifacts: Sequence[tuple[str, str]]) -> Iterator[list[str]]:
        """Yield what is wrong with each of some artifacts, given by path and SHA-256."""


def checked(store: ArtifactStore, artifacts: Sequence[tuple[str, str]]) -> Iterator[list[str]]:
    """Yield what is wrong with each of some artifacts, given by path and SHA-256; see `ArtifactStore.check`."""
    if isinstance(store, ChecksTogether):
        yield from store.check_all(artifacts)
    else:
        for path, sha256 in artifacts:
            yield store.check(path, sha256)


class DvcStore:
    """Artifacts in a Git + DVC repository with a default remote.

    `put` goes copy, fsync, rename, `dvc add`, `git commit`, `dvc push`, look on the remote. It can be killed after any
    of these: putting the same bytes again completes what is missing. The ledger names an artifact only after that.
    """

    def __init__(self, root: Path) -> None:
        """Use the repository at `root`."""
        self._root = root.resolve()

    def put(self, source: Path, folder: str, *, suffix: str = ".safetensors") -> StoredArtifact:
        """Store the bytes of `source`, track them, push them and see them on the remote.

        Raises:
            ArtifactError: `folder` is outside the workspace, or Git, DVC or the remote refuses.
        """
        sha256 = _sha256(source)
        path = str(PurePosixPath(folder) / f"{sha256[:16]}{suffix}")
        target = self._inside(path)
        with self._exclusively(path) as repo:
            if not target.exists() or _sha256(target) != sha256:
                _copy(source, target)
            if _sha256(target) != sha256:
                raise ArtifactError(f"{source} changed while it was stored", "store it again")
            repo.add([str(target)])  # DVC reads relative paths from the current folder
            self._commit(path)
            repo.push(targets=[f"{target}.dvc"])
            if not self._on_remote(repo, path):
                raise ArtifactError(f"{path} is not on the DVC remote after a push", "check the remote")
        return StoredArtifact(path, sha256)

    def fetch(self, path: str, sha256: str) -> Path:
        """Return the local file, pulled from the remote if it is missing, after checking its bytes.

        Raises:
            ArtifactError: It is outside the workspace, cannot be had, or holds other bytes.
        """
        target = self._inside(path)
        if not target.exists():
            with self._exclusively(path) as repo:
                repo.pull(targets=[f"{target}.dvc"])
        found = _sha256(target)
        if found != sha256:
            problem = f"{path} holds other bytes (sha256 {found[:12]}) than the ledger recorded ({sha256[:12]})"
            raise ArtifactError(problem, "delete the file to have it pulled again, or restore it from a backup")
        return target

    def check(self, path: str, sha256: str) -> list[str]:
        """Return what is wrong with the local bytes (pulled if missing) and with the copy on the remote."""
        return next(self.check_all([(path, sha256)]))

    def check_all(self, artifacts: Sequence[tuple[str, str]]) -> Iterator[list[str]]:
        """Yield what `check` returns for each of many; DVC is opened, and the remote asked, once for some hundred.

        Between these, others can store.
        """
        for start in range(0, len(artifacts), _CHECKED_TOGETHER):
            group = artifacts[start : start + _CHECKED_TOGETHER]
            asked = self._ask_dvc([path for path, _ in group])
            for (path, sha256), (lost, elsewhere) in zip(group, asked, strict=True):
                here = [lost] if lost else self._wrong_bytes(path, sha256)
                yield list(dict.fromkeys([*here, *elsewhere]))

    def _ask_dvc(self, paths: Sequence[str]) -> list[tuple[str, list[str]]]:
        """Of each path why it cannot be pulled (empty: it is here), and what is wrong with the copy on the remote."""
        try:
            with self._exclusively(paths[0]) as repo:
                lost = [self._pull_missing(repo, path) for path in paths]
                return list(zip(lost, self._remote_problems(repo, paths), strict=True))
        except (
            ArtifactError
        ) as error:  # what DVC refuses to one it refuses to all: that it opens, or that it has a remote
            return [("", [error.problem.replace(paths[0], path)]) for path in paths]

    def _pull_missing(self, repo: Any, path: str) -> str:
        try:
            target = self._inside(path)
            if not target.exists():
                with _refusals(path):
                    repo.pull(targets=[f"{target}.dvc"])
        except ArtifactError as error:
            return error.problem
        return ""

    def _wrong_bytes(self, path: str, sha256: str) -> list[str]:
        try:
            self.fetch(path, sha256)
        except ArtifactError as error:
            return [error.problem]
        return []

    def _remote_problems(self, repo: Any, paths: Sequence[str]) -> list[list[str]]:
        md5s: list[str | None] = []
        problems: list[list[str]] = [[] for _ in paths]
        for path, found in zip(paths, problems, strict=True):
            try:
                md5s.append(self._md5(path))
            except ArtifactError as error:
                md5s.append(None)
                found.append(error.problem)
        there = set(_remote(repo).list_oids_exists([md5 for md5 in md5s if md5 is not None]))
        for path, md5, found in zip(paths, md5s, problems, strict=True):
            if md5 is not None and md5 not in there:
                found.append(f"{path} is not on the DVC remote")
        return problems

    def _inside(self, path: str) -> Path:
        parts = PurePosixPath(path).parts
        target = self._root.joinpath(*parts)
        # Of the file itself only the folder is resolved: DVC may link the file to its cache.
        if ".." in parts or not target.parent.resolve().is_relative_to(self._root) or PurePosixPath(path).is_absolute():
            raise ArtifactError(f"{path} is outside the workspace {self._root}", "name a folder inside it")
        return target

    @contextmanager
    def _exclusively(self, path: str) -> Iterator[Any]:
        """Yield the DVC repository, quiet and to ourselves; its errors become ArtifactErrors."""
        from dvc.repo import Repo  # takes a second to import

        lock = self._root / ".nse" / "artifacts.lock"
        with _refusals(path):
            lock.parent.mkdir(exist_ok=True)
            with FileLock(lock), _quiet(), Repo(str(self._root), _wait_for_lock=True) as repo:
                yield repo

    def _commit(self, path: str) -> None:
        ignore = str(PurePosixPath(path).parent / ".gitignore")
        paths = [f"{path}.dvc", *([ignore] if (self._root / ignore).exists() else [])]
        self._git("add", "--", *paths)
        if self._git("status", "--porcelain", "--", *paths):
            self._git("commit", "--quiet", "-m", f"Store artifact {path}", "--", *paths)

    def _git(self, *arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(self._root), *arguments], capture_output=True, text=True)
        if done.returncode:
            problem = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            raise ArtifactError(f"git {arguments[0]} in {self._root} refused: {problem}", "see to it, then try again")
        return done.stdout

    def _on_remote(self, repo: Any, path: str) -> bool:
        return bool(_remote(repo).exists(self._md5(path)))

    def _md5(self, path: str) -> str:
        """Return what DVC calls an artifact."""
        try:
            return str(yaml.safe_load((self._root / f"{path}.dvc").read_text())["outs"][0]["md5"])
        except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError) as error:
            raise ArtifactError(f"{path}.dvc cannot be read", "restore it from Git") from error


def _remote(repo: Any) -> Any:
    """Return the objects on the remote of a DVC repository."""
    return repo.cloud.get_remote_odb(command="push")


@contextmanager
def _refusals(path: str) -> Iterator[None]:
    """Make DVC's errors about an artifact ArtifactErrors."""
    from dvc.exceptions import DvcException

    try:
        yield
    except (DvcException, OSError, sqlite3.Error) as error:  # sqlite3: DVC keeps what it knows of files in one
        raise ArtifactError(f"DVC refused {path}: {error}", 'check the workspace with "dvc status -c"') from error


def _copy(source: Path, target: Path) -> None:
    """Copy so that `target` is there with all its bytes or not at all, even if the power fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    with source.open("rb") as read, partial.open("wb") as write:
        shutil.copyfileobj(read, write)
        write.flush()
        os.fsync(write.fileno())
    partial.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name
    finally:
        os.close(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("dvc")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # DVC's progress bars obey its log level
    try:
        yield
    finally:
        logger.setLevel(level)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(f"cannot read {path} ({error.strerror})", "restore it, or store it again") from error
