"""An event as one line of an export: written from the rows of a ledger, and read back into rows that are checked.

A line holds the leaf (`event`) and its hash, the erasable text with its salt (null where it was erased), and of a changeset the
parts as the arrays that their digests are taken of. `transfer` writes and reads whole files of them.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Column, Double, Table, select

from ledger import repository, tables
from ledger.errors import LedgerError
from ledger.forms import (
    BOOLEAN_COLUMNS,
    Unreadable,
    identity_form,
    leaf_form,
    part_form,
    query_columns,
    rows_query,
    said_form,
    text_form,
)
from ledger.log import LogEvent
from ledger.records import (
    PARTS,
    CaseRow,
    Changeset,
    Correction,
    Erasure,
    Identified,
    canonical_json,
    parts_digest,
    subject_key,
)
from ledger.unit_of_work import UnitOfWork

AT_ONCE = 1_000
"""Events that are written or read together."""
_VERIFY = 'run "nse verify"'
_KINDS = {table.name: kind for kind, table in repository.TABLE_OF.items()}


class LineError(ValueError):
    """A line does not hold an event; `str()` says why."""


def lines_of(work: UnitOfWork, size: int) -> Iterator[str]:
    """Yield the lines of the first `size` events of a ledger, without their line ends.

    Raises:
        LedgerError: A record is not what the log recorded.
    """
    forms = {table: leaf_form(table) for table in tables.RECORD_TABLES}
    log = tables.log_event
    for start in range(1, size + 1, AT_ONCE):
        window = (start, min(start + AT_ONCE - 1, size))
        found: dict[int, tuple[str, dict[str, Any]]] = {}
        for kind, table in repository.TABLE_OF.items():
            rows = work.connection.execute(rows_query(kind).where(table.c.sequence.between(*window))).all()
            parts = _parts_of(work, [row[0] for row in rows]) if kind is Changeset else {}
            for row in rows:
                texts = {"text": _text(kind, row)} if kind in repository.TEXT_OF else {}
                found[row.sequence] = (_written(forms[table], row), texts | parts.get(row[0], {}))
        logged = select(log.c.sequence, log.c.leaf_hash).where(log.c.sequence.between(*window))
        for sequence, leaf_hash in work.connection.execute(logged.order_by(log.c.sequence)):
            leaf, more = found.get(sequence, ("", {}))
            if leaf_hash_of(leaf) != leaf_hash:
                raise LedgerError(f"the record at {sequence} of the log is not what was recorded", _VERIFY)
            yield compact({"event": json.loads(leaf), "leaf_hash": leaf_hash, **more})


def compact(value: Any) -> str:
    """Return the one way in which an export writes a value: JSON with sorted keys and no spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def leaf_hash_of(leaf: str) -> str:
    """Return the hash of a leaf in the log."""
    return hashlib.sha256(b"\0" + leaf.encode()).hexdigest()


class LineReader:
    """Reads lines, one after another, into rows of the tables."""

    def __init__(self) -> None:
        """Expect the first line."""
        self.line = 0
        self.textless: dict[str, int] = {}
        """What has no text, with its line."""
        self.erased: set[str] = set()
        self._leaves = {kind: leaf_form(table) for kind, table in repository.TABLE_OF.items()}
        self._identities = {kind: identity_form(kind) for kind in repository.TABLE_OF if issubclass(kind, Identified)}
        self._texts = {kind: text_form(kind) for kind in repository.TEXT_OF}
        self._said = {kind: said_form(kind) for kind in repository.TEXT_OF if kind is not CaseRow}
        self._parts = {kind: part_form(kind) for kind in PARTS.values()}

    def read(self, text: str, rows: Mapping[Table, list[dict[str, Any]]]) -> LogEvent:
        """Check one line, with its line end, and add what it holds to the rows of each table.

        Raises:
            LineError: It does not hold the next event.
        """
        self.line += 1
        try:
            return self._event(text, rows)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            if isinstance(error, LineError | Unreadable):
                raise LineError(str(error)) from error
            raise LineError(f"it is not as an export writes it ({' '.join(str(error).split())[:200]})") from error

    def _event(self, text: str, rows: Mapping[Table, list[dict[str, Any]]]) -> LogEvent:
        line = json.loads(text)
        _expect(f"{compact(line)}\n" == text, "it has other spaces or another order")
        leaf = line["event"]
        kind = _KINDS[leaf["event"]]
        table = repository.TABLE_OF[kind]
        _expect(
            line.keys() == _fields_of(kind) and leaf.keys() <= {"event", *table.columns.keys()}, "it has other fields"
        )
        row = {column.name: _value(column, leaf.get(column.name)) for column in table.columns}
        written = self._leaves[kind](tuple(row.values()))
        leaf_hash = leaf_hash_of(written)
        _expect(row["sequence"] == self.line, f"it is event {row['sequence']} of the log")
        # as it was written, so that nothing is taken for what it is not
        _expect(written == compact(leaf), "it has values of other types")
        _expect(leaf_hash == line["leaf_hash"], "the event is not the one of its leaf hash")
        rows[table].append(row)
        digests = self._read_parts(row["id"], line, rows) if kind is Changeset else ()
        columns = query_columns(kind)
        text_row = self._text_row(kind, row, line["text"]) if kind in repository.TEXT_OF else {}
        full = [row.get(column.name) if column.table is table else text_row.get(column.name) for column in columns]
        if kind in self._identities:
            _expect(
                self._identities[kind].digest((*full, *digests)) == row["id"], "its id is not the digest of its content"
            )
        if text_row:
            _expect(self._texts[kind].digest(full) == row["text_hash"], "the text is not the one of its salted hash")
            text_row["text_digest"] = self._said[kind].digest(full)
            rows[repository.TEXT_OF[kind]].append(text_row)
        if kind is Erasure:
            self.erased.add(row["ref"])
        ref = " ".join(str(row[column.name]) for column in table.primary_key.columns)
        return LogEvent(self.line, table.name, ref, leaf_hash)

    def _text_row(self, kind: Any, row: Mapping[str, Any], text: Mapping[str, Any] | None) -> dict[str, Any]:
        """The row of a text table but for its digest; empty if the text was erased."""
        if text is None:
            self.textless[row["id"]] = self.line
            return {}
        _expect(text.keys() == {"salt", *kind.erasable}, "its text has other fields")
        found = {str(tables.TEXT_TABLES[repository.TEXT_OF[kind]]): row["id"], **text, "text_digest": ""}
        if kind is Correction:
            found["subject_key"] = subject_key(text["subject"])
        return found

    def _read_parts(
        self, changeset: str, line: Mapping[str, Any], rows: Mapping[Table, list[dict[str, Any]]]
    ) -> list[str]:
        """Add the rows of a changeset's parts; returns their digests."""
        _expect(list(line["parts"]) == sorted(PARTS), "it has other parts")
        _expect(len(line["case_texts"]) == len(line["parts"]["cases"]), "its cases have other texts")
        found = []
        for name, kind in PARTS.items():
            digests = []
            for position, part in enumerate(line["parts"][name]):
                row = _part_row(kind, part, {"changeset_id": changeset, "position": position})
                text = line["case_texts"][position] if kind is CaseRow else None
                columns, table = query_columns(kind), repository.PART_TABLE[kind]
                full = [row.get(c.name) if c.table is table else (text or {}).get(c.name) for c in columns]
                _expect(self._parts[kind](full) == compact(part), "a part has values of other types")
                row["row_digest"] = self._parts[kind].digest(full)
                digests.append(row["row_digest"])
                rows[table].append(row)
                if text is not None:
                    self._case_text(row, text, self._texts[kind].digest(full), rows)
                elif kind is CaseRow:
                    self.textless[row["case_id"]] = self.line
            found.append(parts_digest(digests))
        return found

    def _case_text(
        self, case: Mapping[str, Any], text: Mapping[str, Any], digest: str, rows: Mapping[Table, list[dict[str, Any]]]
    ) -> None:
        _expect(text.keys() == {"salt", *CaseRow.erasable}, "the text of a case has other fields")
        _expect(digest == case["text_hash"], "the text of a case is not the one of its salted hash")
        rows[tables.case_text].append({"changeset_id": case["changeset_id"], "position": case["position"], **text})


def _fields_of(kind: type) -> set[str]:
    more = {"parts", "case_texts"} if kind is Changeset else {"text"} if kind in repository.TEXT_OF else set()
    return {"event", "leaf_hash", *more}


def _part_row(kind: type, part: Sequence[Any], key: dict[str, Any]) -> dict[str, Any]:
    """The row of an array that a part's digest is taken of, but for the digest."""
    columns = [c for c in repository.PART_TABLE[kind].columns if c.name not in (*key, "row_digest")]
    _expect(part[0] == kind.__name__ and len(part) == len(columns) + 1, "a part has other fields")
    return {**key, **{c.name: _value(c, value) for c, value in zip(columns, part[1:], strict=True)}}


def _value(column: Column[Any], value: Any) -> Any:
    """What a column holds of what JSON says."""
    if column.name in tables.JSON_COLUMNS:
        return canonical_json(value)
    if isinstance(column.type, Double):
        number = float(value)
        return None if math.isnan(number) else number
    return int(value) if column.name in BOOLEAN_COLUMNS else value


def _expect(holds: bool, problem: str) -> None:
    if not holds:
        raise LineError(problem)


def _written(form: Any, row: Any) -> str:
    try:
        return str(form(row))
    except Unreadable as error:
        raise LedgerError(f"the record at {row.sequence} of the log cannot be read: {error}", _VERIFY) from error


def _parts_of(work: UnitOfWork, changesets: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The parts of changesets by name, as arrays; and the texts of their cases."""
    found: dict[str, dict[str, Any]] = {
        i: {"parts": {name: [] for name in PARTS}, "case_texts": []} for i in changesets
    }
    for name, kind in PARTS.items():
        table, form = repository.PART_TABLE[kind], part_form(kind)
        statement = rows_query(kind).order_by(table.c.changeset_id, table.c.position)
        for row in work.connection.execute(statement.where(table.c.changeset_id.in_(changesets))):
            found[row[0]]["parts"][name].append(json.loads(_written(form, row)))
            if kind is CaseRow:
                found[row[0]]["case_texts"].append(_text(kind, row))
    return found


def _text(kind: Any, row: Any) -> dict[str, Any] | None:
    table, values = repository.TEXT_OF[kind], row._mapping
    if values[table.c.salt] is None:
        return None
    return {name: values[table.c[name]] for name in ("salt", *kind.erasable)}
