"""Proof that the ledger is what it was when it was written: every digest, rule, chain and artifact, checked again.

An audit reports every problem it finds and changes nothing. It cannot see that records were cut off the end, or that
somebody rewrote a row and every digest that depends on it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import select, text

from ledger import tables
from ledger.artifacts import ArtifactStore
from ledger.errors import LedgerError
from ledger.policy import reviewer_objections
from ledger.records import Changeset, Correction, Decision, HeadMove, Identified, Quarantined, Shown
from ledger.repository import TABLE_OF, select_records, select_rows
from ledger.unit_of_work import Ledger, UnitOfWork

T = TypeVar("T")

_RESTORE = "restore the ledger from a backup"
_RESTORE_ARTIFACT = "delete the local file to have it pulled again, or restore the DVC remote from a backup"


@dataclass(frozen=True, slots=True)
class Finding(Shown):
    """One thing that is wrong, where, and what to do."""

    where: str
    problem: str
    advice: str


def verify(ledger: Ledger, store: ArtifactStore) -> list[Finding]:
    """Check everything; an empty list means that all is well.

    - every row's digest, every record's identity, the numbering of records, every reference, the insert-only triggers;
    - that each applied changeset was approved by somebody who may, with its gates passed;
    - that each model's heads are an unbroken chain from its base, and all changesets edit the same base;
    - that every artifact a changeset names is here and on the remote, with the recorded bytes.
    """
    findings: list[Finding] = []
    with ledger.read() as work:
        driver: Any = work.connection.connection.driver_connection
        driver.text_factory = lambda raw: raw.decode(errors="replace")  # a spoilt byte is a finding, not the end
        for check in (_triggers, _rows, _numbering, _references):
            findings += check(work)
        changesets = _records(work, Changeset, findings)
        corrections = {record.id: record for record in _records(work, Correction, findings)}
        decisions = _records(work, Decision, findings)
        for record in (*corrections.values(), *_records(work, Quarantined, findings), *changesets, *decisions):
            findings += _identity(record)
        heads = _records(work, HeadMove, findings)
    by_id = {changeset.id: changeset for changeset in changesets}
    findings += _head_chains(heads, by_id)
    for move in heads:
        if move.changeset_id in by_id:
            findings += _approval(by_id[move.changeset_id], corrections, decisions)
    findings += _bases(changesets)
    artifacts = {(delta.path, delta.sha256): None for changeset in changesets for delta in changeset.active}
    for path, sha256 in artifacts:
        findings += [Finding(f"artifact {path}", problem, _RESTORE_ARTIFACT) for problem in store.check(path, sha256)]
    return findings


def _triggers(work: UnitOfWork) -> Iterator[Finding]:
    there = set(work.connection.scalars(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")))
    for table in tables.metadata.sorted_tables:
        for what in ("update", "delete", "insert"):
            if f"{table.name}_refuse_{what}" not in there:
                yield Finding(f"table {table.name}", f"the trigger that refuses {what} is gone", _RESTORE)


def _rows(work: UnitOfWork) -> Iterator[Finding]:
    for table in tables.metadata.sorted_tables:
        for row in select_rows(work.connection, table):
            if tables.row_digest(table, row) != row["row_digest"]:
                name = tables.row_name(table, row)
                yield Finding(name, "the row was changed: it does not match its digest", _RESTORE)


def _numbering(work: UnitOfWork) -> Iterator[Finding]:
    sequences: list[int] = []
    for table in tables.RECORD_TABLES:
        sequences += work.connection.scalars(select(table.c.sequence))
    numbers = list(work.connection.scalars(select(tables.changeset.c.number)))
    for name, found in (("record", sequences), ("changeset", numbers)):
        wanted = range(1, len(found) + 1)
        wrong = sorted(map(str, {*wanted} ^ {*found}))
        if wrong or len({*found}) != len(found):
            problem = (
                f"the {name}s are not numbered 1 to {len(found)} ({', '.join(wrong)}): some were deleted or renumbered"
            )
            yield Finding(f"{name} numbers", problem, _RESTORE)


def _references(work: UnitOfWork) -> Iterator[Finding]:
    for table in tables.metadata.sorted_tables:
        for key in table.foreign_keys:
            column = key.parent
            known = select(key.column)
            for row in select_rows(work.connection, table, column.is_not(None), column.not_in(known)):
                problem = f"{column.name} names {row[column.name]}, which is not in {key.column.table.name}"
                yield Finding(tables.row_name(table, row), problem, _RESTORE)


def _records(work: UnitOfWork, kind: type[T], findings: list[Finding]) -> list[T]:
    """Return the records that can be read at all; those that cannot are findings."""
    table = TABLE_OF[kind]
    records: list[T] = []
    for row in select_rows(work.connection, table):
        own = [column == row[column.name] for column in table.primary_key.columns]
        try:
            records += select_records(work.connection, kind, *own)
        except LedgerError as error:
            findings.append(Finding(tables.row_name(table, row), error.problem, _RESTORE))
    return records


def _identity(record: Identified) -> Iterator[Finding]:
    if record.id != record.digest():
        where = f"{TABLE_OF[type(record)].name} {record.id}"
        yield Finding(where, "the id is not the digest of the content: a part was changed, added or removed", _RESTORE)


def _approval(changeset: Changeset, corrections: dict[str, Correction], decisions: list[Decision]) -> Iterator[Finding]:
    where = f"changeset #{changeset.number} {changeset.id}"
    advice = "it is in force against the rules: revert it"
    about = [decision for decision in decisions if decision.changeset_id == changeset.id]
    if {decision.verdict for decision in about} != {"approve"}:
        yield Finding(where, "it was applied without an approval that stands", advice)
    if not changeset.gate_passed:
        yield Finding(where, "it was applied although a gate failed", advice)
    submitters = {corrections[i].submitter for i in changeset.correction_ids if i in corrections}
    for decision in about:
        for objection in reviewer_objections(changeset, submitters, decision):
            yield Finding(where, f"decision {decision.id[:12]}: {objection}", advice)


def _head_chains(heads: list[HeadMove], changesets: dict[str, Changeset]) -> Iterator[Finding]:
    chains: dict[str, list[HeadMove]] = {}
    for move in heads:
        chains.setdefault(move.model, []).append(move)
    for chain in chains.values():
        for place, move in enumerate(chain):
            where = f"head_move {move.model} {move.position}"
            if move.position != place:
                yield Finding(where, f"it stands where position {place} belongs", _RESTORE)
            if (move.changeset_id is None) != (place == 0):
                yield Finding(where, "every head but the first must come from a changeset", _RESTORE)
            changeset = changesets.get(move.changeset_id or "")
            if changeset is None:
                continue
            if changeset.model != move.model or changeset.candidate_version != move.version:
                yield Finding(where, f"changeset #{changeset.number} leads to another version", _RESTORE)
            if place and changeset.parent_version != chain[place - 1].version:
                yield Finding(where, f"changeset #{changeset.number} was not planned on the head before", _RESTORE)


def _bases(changesets: list[Changeset]) -> Iterator[Finding]:
    first: dict[str, Changeset] = {}
    for changeset in changesets:
        start = first.setdefault(changeset.model, changeset)
        if changeset.base_digest != start.base_digest:
            problem = f"its base is {changeset.base_digest[:12]}, that of #{start.number} is {start.base_digest[:12]}"
            yield Finding(f"changeset #{changeset.number} {changeset.id}", problem, "plan it again on the right base")
