"""Writing whole or not at all: folders and files get their names when they are whole, and say in a record what they are."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nse.errors import NseError
from nse.fingerprint import file_digest


def check_free(path: Path) -> None:
    """Checks that a folder or file can be made: it is not there, or it is an empty folder.

    Raises:
        NseError: If it is taken.
    """
    if path.is_dir() and any(path.iterdir()):
        raise NseError(f"{path} exists and is not empty: name another folder, or move it away")
    if path.exists() and not path.is_dir():
        raise NseError(f"{path} exists: name another one, or move it away")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which gets its name when the block ends well, and is gone when it does not.

    Raises:
        NseError: If the name is taken.
    """
    check_free(folder)
    temporary = folder.parent / f".{folder.name}.{os.getpid()}"
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write, which gets its name when the block ends well, and is gone when it does not.

    Raises:
        NseError: If the name is taken, by a file or by any folder.
    """
    check_free(path)
    if path.is_dir():
        raise NseError(f"{path} is a folder: name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")  # some readers go by the end of a name
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def recorded(folder: Path, name: str, record: Mapping[str, Any], *libraries: str) -> dict[str, Any]:
    """Writes `record`, with the digest of each file in a folder and the versions of what wrote them, as `name` into it."""
    files = {path.name: file_digest(path) for path in sorted(folder.iterdir())}
    versions = {library: version(library) for library in sorted({"torch", "transformers", "safetensors", *libraries})}
    found = {**record, "files": files, "versions": versions}
    (folder / name).write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return found
