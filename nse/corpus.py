"""A corpus: texts streamed from a file, a folder of files or a dataset on disk, a sample of them, and the digest of all.

It knows no tokens; `nse.statistics` reads it.
"""

import gzip
import hashlib
import heapq
import importlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from nse.batch import Progress, silent
from nse.errors import StatisticsError
from nse.fingerprint import file_digest, json_digest

PIECE = 1 << 20
"""Most bytes of a line that are one text: a line as long as a book is read in pieces that end between words."""
PASSAGE = 2000
"""Most characters that are drawn together: a book that stands on one line is no more likely to be in a sample than a sentence."""
FIELD = "text"
_BETWEEN = frozenset(", \t\r\n")


@dataclass(frozen=True, slots=True)
class Corpus:
    """Where texts come from.

    Attributes:
        path: What was given: a file, a folder of files, or a dataset of the `datasets` library saved to disk.
        files: The files that hold the texts, in the order in which they are read.
        dataset: Whether they are the parts of a dataset.
    """

    path: Path
    files: tuple[Path, ...]
    dataset: bool = False

    def digest(self, *, progress: Progress = silent) -> str:
        """SHA-256 of the one file, or of the names and digests of all files of a folder."""
        if self.files == (self.path,):
            return file_digest(self.path)
        found = []
        for number, file in enumerate(self.files, 1):
            found.append([file.relative_to(self.path).as_posix(), file_digest(file)])
            progress("corpus digest", number, len(self.files))
        return json_digest(found)

    def texts(self) -> Iterator[str]:
        """Every text that is not blank, in order; there is never more than a piece of a file in memory.

        Raises:
            StatisticsError: If a file cannot be read, is not UTF-8, or holds records without texts; it names file and line.
        """
        found = _rows(self.path) if self.dataset else (text for file in self.files for text in _texts_of(file))
        return (text for text in found if text.strip())

    def sample(self, *, characters: int, seed: int) -> list[str]:
        """Passages from all over the corpus, in random order: as many as have `characters` together, or all that there are.

        Every passage has a number, its place in the corpus, and a rank, the digest of that number and the seed. Those of
        lowest rank are kept while the texts stream by, so that memory depends on the sample and not on the corpus, one
        reading is enough, and an archive or a dataset needs no index. A larger sample begins with every smaller one.

        Args:
            characters: How many are wanted.
            seed: Decides which passages are drawn and how they are ordered.

        Raises:
            StatisticsError: As `texts`.
        """
        kept: list[tuple[int, str]] = []  # a heap with the highest rank on top: ranks are negative
        held = 0
        for number, passage in enumerate(passage for text in self.texts() for passage in _passages(text)):
            rank = -int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:8])
            if held >= characters and rank < kept[0][0]:
                continue
            heapq.heappush(kept, (rank, passage))
            held += len(passage)
            while held - len(kept[0][1]) >= characters:
                held -= len(heapq.heappop(kept)[1])
        return [passage for _, passage in sorted(kept, key=lambda drawn: -drawn[0])]


def open_corpus(path: Path) -> Corpus:
    """Finds the files of a corpus; reads none of them.

    A file holds one text a line; `.jsonl` a record a line and `.json` a list of records, each a text or an object with the
    field `text`; all of them also as `.gz`. A folder is read in the order of its files' paths, hidden ones left out.

    Raises:
        StatisticsError: If there is nothing at `path`, no file in the folder, or a dataset that holds several splits.
    """
    if path.is_file():
        return Corpus(path, (path,))
    if not path.is_dir():
        raise StatisticsError(f"corpus {path} cannot be read (no such file or folder): check the path")
    if (path / "dataset_dict.json").is_file():
        raise StatisticsError(f"{path} is a dataset of several splits: give one of them, such as {path / 'train'}")
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        return Corpus(path, tuple(sorted(path.glob("*.arrow"))), dataset=True)
    files = (p for p in path.rglob("*") if p.is_file())
    shown = sorted(p for p in files if not any(part.startswith(".") for part in p.relative_to(path).parts))
    if not shown:
        raise StatisticsError(f"corpus {path} holds no file: give a folder of UTF-8 texts")
    return Corpus(path, tuple(shown))


def _passages(text: str) -> Iterator[str]:
    """A text in pieces of at most `PASSAGE` characters, cut between words where it has any."""
    start = 0
    while start < len(text):
        end = start + PASSAGE
        if end < len(text):
            end = text.rfind(" ", start + 1, end) + 1 or end
        if piece := text[start:end].strip():
            yield piece
        start = end


def _rows(path: Path) -> Iterator[str]:
    """The texts of a dataset saved to disk, which the library maps into memory and does not load."""
    try:
        datasets = importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        raise StatisticsError(f"{path} is a dataset and the `datasets` library is missing: install it") from error
    rows = datasets.load_from_disk(str(path))
    if FIELD not in rows.column_names:
        raise StatisticsError(f"{path} has no column {FIELD!r} (it has {', '.join(rows.column_names)}): rename one")
    for number, row in enumerate(rows.select_columns(FIELD), 1):
        yield _text_of(row, f"{path} row {number}")


def _texts_of(path: Path) -> Iterator[str]:
    packed = path.suffix == ".gz"
    kind = path.with_suffix("").suffix if packed else path.suffix
    read = {".jsonl": _records, ".json": _array}.get(kind, _lines)
    try:
        with cast(IO[bytes], gzip.open(path)) if packed else path.open("rb") as file:
            yield from read(file, path)
    except (OSError, EOFError, zlib.error) as error:
        raise StatisticsError(f"{path} cannot be read ({error}): check the file") from error


def _lines(file: IO[bytes], path: Path) -> Iterator[str]:
    number, held = 1, b""
    while piece := file.readline(PIECE):
        line, held = held + piece, b""
        ended = line.endswith(b"\n")
        if not ended and len(piece) == PIECE:
            cut = line.rfind(b" ") + 1 or _whole_characters(line)
            line, held = line[:cut], line[cut:]
        yield _decoded(line, path, number).rstrip("\r\n")
        number += ended
    if held:
        yield _decoded(held, path, number)


def _whole_characters(line: bytes) -> int:
    """Length of `line` without the bytes of a last character that may be incomplete."""
    end = len(line) - 1
    while end > len(line) - 4 and line[end] & 0xC0 == 0x80:
        end -= 1
    return end


def _records(file: IO[bytes], path: Path) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if line.strip():
            where = f"{path} line {number}"
            try:
                record = json.loads(_decoded(line, path, number))
            except json.JSONDecodeError as error:
                raise StatisticsError(f"{where} is not JSON ({error.msg}): mend it there") from error
            yield _text_of(record, where)


def _array(file: IO[bytes], path: Path) -> Iterator[str]:
    """The records of one JSON list, decoded one after the other from a window over the file."""
    decoder, pieces = json.JSONDecoder(), _decoded_pieces(file, path)
    window, number = next(pieces, "").lstrip(), 0
    if not window.startswith("["):
        raise StatisticsError(f"{path} is not a JSON list: write one record a line and call it .jsonl")
    at = 1
    while True:
        while window[at : at + 1] in _BETWEEN:
            at += 1
        if window[at : at + 1] == "]":
            return
        try:
            record, at = decoder.raw_decode(window, at)
        except json.JSONDecodeError as error:
            more = next(pieces, "")
            if not more:
                raise StatisticsError(f"{path} record {number} is not JSON ({error.msg}): mend it there") from error
            window, at = window[at:] + more, 0
            continue
        yield _text_of(record, f"{path} record {number}")
        number += 1


def _decoded_pieces(file: IO[bytes], path: Path) -> Iterator[str]:
    """The file as text, in pieces that never cut a character."""
    held, number = b"", 1
    while piece := file.read(PIECE):
        data = held + piece
        cut = _whole_characters(data) if len(piece) == PIECE else len(data)
        held = data[cut:]
        yield _decoded(data[:cut], path, number)
        number += data.count(b"\n", 0, cut)
    if held:
        yield _decoded(held, path, number)


def _decoded(data: bytes, path: Path, number: int) -> str:
    try:
        return data.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        at = number + data[: error.start].count(b"\n")
        place = error.start - (data.rfind(b"\n", 0, error.start) + 1)
        raise StatisticsError(f"{path} is not UTF-8 (line {at}, byte {place}): save it as UTF-8") from error


def _text_of(record: Any, where: str) -> str:
    text = record.get(FIELD) if isinstance(record, dict) else record
    if not isinstance(text, str):
        raise StatisticsError(f"{where} has no text: write a text, or an object with the field {FIELD!r}")
    return text
