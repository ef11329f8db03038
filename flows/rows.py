"""Rows of correction files: reads CSV, JSONL, CounterFact and zsRE JSON into cells with their place. Judges no content.

Bytes that are not UTF-8 spoil the row they are in and no other: they become lone surrogates, which a check finds.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.errors import FlowError

REQUIRED = ("subject", "relation", "prompt_template", "target_new")
OPTIONAL = ("target_true", "source", "submitter", "reason", "effective_date", "supersedes")
FORMATS = (".csv", ".jsonl", ".json")
LONGEST_RECORD = 50
"""Most lines that one quoted CSV record may span."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file.

    Attributes:
        line: Line of the file that it begins on, from 1.
        text: The record as it stands in the file.
        cells: Its values by column, stripped; empty if it could not be taken apart.
        problem: (field, reason) if it could not be taken apart.
    """

    line: int
    text: str
    cells: Mapping[str, str]
    problem: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """One file of corrections: its name, the SHA-256 of its bytes, its rows, and the columns that nobody reads."""

    name: str
    digest: str
    rows: tuple[Row, ...]
    ignored_columns: tuple[str, ...] = ()


def read_sources(path: Path) -> list[Source]:
    """Reads a file, or every correction file of a folder in the order of their names.

    Raises:
        FlowError: If it cannot be read or a whole file makes no sense; nothing of it may be filed then.
    """
    if not path.is_dir():
        return [_read(path)]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in FORMATS)
    if not files:
        raise FlowError(f"{path} holds no {', '.join(FORMATS)} file", "give a file or folder of corrections")
    return [_read(file) for file in files]


def _read(path: Path) -> Source:
    try:
        return parse(path.name, path.read_bytes())
    except OSError as error:
        raise FlowError(f"{path} cannot be read ({error.strerror})", "check the path") from error


def parse(name: str, content: bytes) -> Source:
    """Takes a file's content apart; the layout follows the suffix of `name`, or the first character if it has none.

    Raises:
        FlowError: If the file as a whole makes no sense.
    """
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise FlowError(f"{name} is UTF-16", "save it as UTF-8")
    text = content.decode("utf-8", errors="surrogateescape").removeprefix("\ufeff")
    if not text.strip():
        raise FlowError(f"{name} is empty", "give a file with corrections")
    suffix = Path(name).suffix.lower()
    layout = suffix if suffix in FORMATS else {"{": ".jsonl", "[": ".json"}.get(text.lstrip()[0], ".csv")
    digest = hashlib.sha256(content).hexdigest()
    if layout == ".csv":
        rows, ignored = _csv_rows(name, text)
        return Source(name, digest, tuple(rows), ignored)
    return Source(name, digest, tuple(_json_lines(text) if layout == ".jsonl" else _json_records(name, text)))


def readable(text: str) -> str:
    """The text with bytes that are not UTF-8, and lone surrogates, written as escapes."""
    return "".join(_readable(character) for character in text)


def _readable(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return f"\\u{ord(character):04x}" if "\ud800" <= character <= "\udfff" else character


def _csv_rows(name: str, text: str) -> tuple[list[Row], tuple[str, ...]]:
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    first = lines[0]
    delimiter = next((d for d in ",;\t" if d in first), ",")
    header = [cell.strip() for cell in _cells(first, delimiter) or []]
    if missing := [column for column in REQUIRED if column not in header]:
        raise FlowError(
            f"{name} line 1: column {missing[0]!r} is missing (found: {readable(', '.join(header)) or 'none'})",
            f"name the columns {', '.join(REQUIRED)}",
        )
    if doubled := next((column for column in header if header.count(column) > 1), None):
        raise FlowError(f"{name} line 1: column {doubled!r} is there more than once", "name each column once")
    rows, at = [], 1
    while at < len(lines):
        row, used = _csv_row(lines, at, header, delimiter)
        rows += [row] if row is not None else []
        at += used
    return rows, tuple(column for column in header if column not in (*REQUIRED, *OPTIONAL))


def _csv_row(lines: list[str], at: int, header: list[str], delimiter: str) -> tuple[Row | None, int]:
    """The row that begins on `lines[at]` (None if blank) and the number of lines it takes.

    A quote that is never closed would swallow the good rows behind it: unless the lines up to the closing quote make a
    whole row, the first line alone is the broken one.
    """
    text = lines[at]
    if not text.strip():
        return None, 1
    for count in range(1, LONGEST_RECORD + 1):
        record = "\n".join(lines[at : at + count])
        if record.count('"') % 2 == 0:
            cells = _cells(record, delimiter)
            if cells is not None and len(cells) == len(header):
                stripped = {column: cell.strip() for column, cell in zip(header, cells, strict=True)}
                return Row(at + 1, record, stripped), count
            break
        if at + count >= len(lines):
            break
    alone = _cells(text, delimiter)
    if "\0" in text:
        reason = "holds a NUL character: remove it"
    elif text.count('"') % 2:
        reason = "opens a quote that no row closes: close it, or double it if it is meant"
    elif alone is None:
        reason = 'has a stray quote: put the cell in quotes and write each of its own quotes twice ("")'
    else:
        reason = f"has {len(alone)} cells, the header has {len(header)}: put cells that hold {delimiter!r} in quotes"
    return Row(at + 1, text, {}, ("row", reason)), 1


def _cells(record: str, delimiter: str) -> list[str] | None:
    try:
        found = list(csv.reader(io.StringIO(record, newline=""), delimiter=delimiter, strict=True))
    except csv.Error:
        return None
    return found[0] if len(found) == 1 else None


def _json_lines(text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _json_row(number, line.strip())


def _json_row(number: int, text: str) -> Row:
    try:
        return _row_of(number, text, json.loads(text))
    except json.JSONDecodeError as error:
        return Row(number, text, {}, ("row", f"is not JSON (column {error.colno}: {error.msg}): mend it"))


def _json_records(name: str, text: str) -> Iterator[Row]:
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        raise FlowError(f"{name} line {error.lineno} is not JSON ({error.msg})", "mend it there") from error
    if not isinstance(whole, list):
        raise FlowError(f"{name} holds a JSON {type(whole).__name__}", "a list of records is needed")
    decoder, at = json.JSONDecoder(), text.index("[") + 1
    line, counted = 1, 0
    for _ in whole:  # again record by record, to know where each begins
        while text[at] in " \t\r\n,":
            at += 1
        line += text.count("\n", counted, at)
        counted = at
        record, at = decoder.raw_decode(text, at)
        yield _row_of(line, text[counted:at], record)


def _row_of(line: int, text: str, record: Any) -> Row:
    if not isinstance(record, dict):
        return Row(line, text, {}, ("row", f"is a JSON {type(record).__name__}: a record needs named fields"))
    rewrite = record.get("requested_rewrite")
    if isinstance(rewrite, dict):
        cells = {**record, **rewrite, "relation": rewrite.get("relation_id"), "prompt_template": rewrite.get("prompt")}
    elif "src" in record and "answers" in record:
        answers = record["answers"] if isinstance(record["answers"], list) else [record["answers"]]
        old = answers[0] if answers else None
        cells = {**record, "prompt_template": record["src"], "relation": record.get("relation")}
        cells |= {"target_new": record["alt"], "target_true": old} if record.get("alt") else {"target_new": old}
    else:
        cells = {**record, "relation": record.get("relation") or record.get("relation_id")}
        cells["prompt_template"] = record.get("prompt_template") or record.get("prompt")
    return Row(line, text, {column: _text(cells.get(column)) for column in (*REQUIRED, *OPTIONAL)})


def _text(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("str")
    return "" if value is None else str(value).strip()
