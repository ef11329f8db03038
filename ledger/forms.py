"""What digests are taken of, written straight from the rows of a query: the leaf of a record, its identity, its text, a part.

It gives the same texts as `records` and `repository.leaf`, which make them of records, many times as quickly and of rows that
are no records any more: whoever reads a million rows to check them, or to write them out, uses it. A row that holds what its
columns cannot is `Unreadable`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from json.encoder import encode_basestring as quoted
from operator import itemgetter
from typing import Any

from sqlalchemy import Column, Double, Integer, Select, Table, Text, and_, select

from ledger import tables
from ledger.records import PARTS, Changeset, Correction, Erasable, Identified, Quarantined, canonical_json
from ledger.repository import PART_TABLE, TABLE_OF, TEXT_OF

BOOLEAN_COLUMNS = frozenset({"passed", "removed"})


class Unreadable(ValueError):
    """A row holds something that its column cannot hold; `str()` says what."""


class Escaped:
    """Stands for `str` in a shape, where some text of the row may hold a character that JSON escapes."""


Shape = tuple[type, ...]
"""The types of a row's values: what decides how it is written."""
_PLAIN = bytes(byte if byte > 0x1F and byte not in b'"\\' else 0x7F for byte in range(256))
"""For `bytes.translate`: changes exactly the characters that JSON escapes."""


def shape_of(row: Sequence[Any]) -> Shape:
    """Return the shape of one row; of many, `Shapes` is quicker and leads to quicker writers."""
    return tuple([Escaped if kind is str else kind for kind in map(type, row)])


class Shapes:
    """The shapes of a query's rows: they say as well whether any text of a row needs escapes, found in one look at all."""

    def __init__(self) -> None:
        """Start before the first row."""
        self._known: dict[Shape, tuple[Callable[[Sequence[Any]], Iterable[str]], Shape]] = {}

    def __call__(self, row: Sequence[Any]) -> Shape:
        """Return the shape of a row."""
        kinds = tuple(map(type, row))
        known = self._known.get(kinds)
        if known is None:
            texts = [place for place, kind in enumerate(kinds) if kind is str]
            pick = itemgetter(*texts) if texts else lambda _: ()
            known = self._known[kinds] = (pick, shape_of(row))
        texts_of, escaped = known
        written = "".join(texts_of(row)).encode(errors="surrogatepass")
        return kinds if written.translate(_PLAIN) == written else escaped


Blank = tuple[str, int | None, Column[Any] | None]
Writer = Callable[[Any], str]
Plan = Callable[[Sequence[Any]], str]


class Form:
    """One JSON text for each row of a query, by the places of its columns."""

    def __init__(self, opening: str, columns: Sequence[Blank], closing: str) -> None:
        """Take what stands before and after the columns, and of each the label before it, its place in a row, and itself.

        An object's labels are `"name":`, and what is NULL is left out of it; an array has no labels and holds null. A
        label without a column stands as it is.
        """
        self._opening, self._columns, self._closing = opening, columns, closing
        self._plans: dict[Shape, Plan] = {}

    def __call__(self, row: Sequence[Any], shape: Shape | None = None) -> str:
        """Return the text; `shape` is that of the row, for who has it.

        Raises:
            Unreadable: The row holds what its columns cannot.
        """
        shape = shape or shape_of(row)
        return (self._plans.get(shape) or self._plan(shape))(row)

    def digest(self, row: Sequence[Any], shape: Shape | None = None) -> str:
        """Return the SHA-256 of the text, in hexadecimal; raises as the call does."""
        shape = shape or shape_of(row)
        try:
            return hashlib.sha256((self._plans.get(shape) or self._plan(shape))(row).encode()).hexdigest()
        except UnicodeEncodeError as error:
            raise Unreadable("it holds bytes that are no text") from error

    def _plan(self, shape: Shape) -> Plan:
        """Return how to write rows of this shape, from now on as well."""
        made = self._plans[shape] = self._new_plan(shape)
        return made

    def _new_plan(self, shape: Shape) -> Plan:
        """How to write rows of this shape: a template, and for each of its blanks a place and, if it needs one, a writer."""
        blanks: list[str] = []
        places: list[int] = []
        writers: list[Writer | None] = []
        for label, place, column in self._columns:
            if place is None or column is None:
                blanks.append(label)
                continue
            blank, writer = _blank(column, shape[place])
            if blank == _LEFT_OUT and label:
                continue
            blanks.append(f"{label}{blank}")
            if "%" in blank:
                places.append(place)
                writers.append(writer)
        template = self._opening + ",".join(blanks) + self._closing
        if len(places) < 2:
            return lambda row: (
                template % tuple(_written(row[place], w) for place, w in zip(places, writers, strict=True))
            )
        pick = itemgetter(*places)
        if not any(writers):
            return lambda row: template % pick(row)
        if all(write is quoted for write in writers):
            return lambda row: template % tuple(map(quoted, pick(row)))
        return lambda row: template % tuple(map(_written, pick(row), writers))


_LEFT_OUT = "null"


def _written(value: Any, write: Writer | None) -> Any:
    return value if write is None else write(value)


def _blank(column: Column[Any], kind: type) -> tuple[str, Writer | None]:
    """How a value of this type stands in a template, and what to make of it first, if anything; NULL has no blank."""
    name, is_real, is_whole = column.name, isinstance(column.type, Double), isinstance(column.type, Integer)
    if kind is type(None) and is_real:
        return '"nan"', None
    if kind is type(None) and column.nullable:
        return _LEFT_OUT, None
    if kind is float and is_real:
        return '"%r"', None
    if kind is int and is_whole:
        return ("%s", _boolean) if name in BOOLEAN_COLUMNS else ("%d", None)
    if kind in (str, Escaped) and not is_real and not is_whole:
        if name in tables.JSON_COLUMNS:
            return "%s", _canonical
        return ('"%s"', None) if kind is str else ("%s", quoted)
    raise Unreadable(f"{name} is not {'a real number' if is_real else 'a whole number' if is_whole else 'text'}")


def _boolean(value: int) -> str:
    if value not in (0, 1):
        raise Unreadable(f"{value} is neither true nor false")
    return "true" if value else "false"


def _canonical(text: str) -> str:
    if text == "[]":
        return text
    try:
        value = json.loads(text)
        written = canonical_json(value)
    except (ValueError, RecursionError) as error:
        raise Unreadable("a column is not JSON") from error
    if written != text:
        raise Unreadable("the JSON of a column is not as the ledger writes it")
    return text


def query_columns(kind: type) -> list[Column[Any]]:
    """Return the columns of a query for rows of `kind` that its forms are made for.

    Those of its table, then all of its text table, if it has one: join that outside, erased text is NULL.
    """
    table = (TABLE_OF | PART_TABLE)[kind]
    return [*table.columns, *(TEXT_OF[kind].columns if kind in TEXT_OF else ())]


def rows_query(kind: type) -> Select[Any]:
    """Return the query for all rows of `kind` with the columns of `query_columns`."""
    table, text = (TABLE_OF | PART_TABLE)[kind], TEXT_OF.get(kind)
    if text is None:
        return select(*query_columns(kind))
    # a text table's key is that of its owner, under other names
    pairs = zip(table.primary_key.columns, text.primary_key.columns, strict=True)
    same = and_(*(own == theirs for own, theirs in pairs))
    return select(*query_columns(kind)).select_from(table.outerjoin(text, same))


def leaf_form(table: Table) -> Form:
    """Return the form of a record's leaf in the log, for rows of its table."""
    return _object([column.name for column in table.columns], list(table.columns), constants={"event": table.name})


def identity_form(kind: type[Identified]) -> Form:
    """Return the form that a record's id is the digest of; a changeset's row is followed by the digests of its parts."""
    columns = query_columns(kind)
    if kind is Changeset:
        columns += [Column(name, Text, nullable=False) for name in PARTS]
    names = [field.name for field in dataclasses.fields(kind) if field.name not in kind.beside_identity]  # type: ignore[arg-type]
    return _object(names, columns, wrap=kind.__name__)


def text_form(kind: type[Erasable]) -> Form:
    """Return the form that `text_hash` is the digest of."""
    return _object(["salt", *kind.erasable], query_columns(kind), wrap="Text")


def said_form(kind: type[Correction] | type[Quarantined]) -> Form:
    """Return the form that `text_digest` is the digest of."""
    names = [
        field.name for field in dataclasses.fields(kind) if field.name not in kind.beside_identity - {*kind.erasable}
    ]
    return _object([name for name in names if name != "text_hash"], query_columns(kind), wrap="Said")


def part_form(kind: type) -> Form:
    """Return the form that `row_digest` is the digest of: an array."""
    columns = query_columns(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    hidden = {"salt", *kind.erasable} if issubclass(kind, Erasable) else set()
    return Form(f'["{kind.__name__}",', [_column(columns, name) for name in names if name not in hidden], "]")


def _column(columns: Sequence[Column[Any]], name: str, label: str = "") -> Blank:
    place = [column.name for column in columns].index(name)
    return label, place, columns[place]


def _object(
    names: Iterable[str], columns: Sequence[Column[Any]], *, wrap: str = "", constants: Mapping[str, str] | None = None
) -> Form:
    """The canonical JSON object of some of a query's columns, and constants, under `wrap` if given."""
    fixed = {name: f"{quoted(name)}:{quoted(value)}" for name, value in (constants or {}).items()}
    made = [
        (fixed[name], None, None) if name in fixed else _column(columns, name, f"{quoted(name)}:")
        for name in sorted([*names, *fixed])
    ]
    return Form('{"' + wrap + '":{' if wrap else "{", made, "}}" if wrap else "}")
