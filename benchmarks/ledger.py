"""The ledger at scale: builds one of a million corrections in 10,000 changesets and asks it what people ask.

Prints seconds of building, of blame, as-of and pending queries, of appending a changeset of 100, and events verified a second.
On SQLite in a temporary file, or in any empty database:

    python -m benchmarks.ledger [--corrections 1000000] [--url postgresql://...] [--json FILE]
"""

import argparse
import hashlib
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import sqlalchemy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.table import device_of, machine
from ledger import persons, queries
from ledger.active import changes_between
from ledger.audit import verify
from ledger.database import engine_of
from ledger.notes import VerifierKey
from ledger.persons import Signer
from ledger.records import ActiveDelta, CaseResult, CaseRow, Changeset, Correction, Decision, Gate, Metric
from ledger.status import read_state
from ledger.unit_of_work import Ledger, UnitOfWork, open_ledger
from ledger.views import blame, resolve_version

MODEL = "bench"
BASE = "ba5e" * 16
RELATIONS = ("employer", "home", "spouse", "field", "club")
CASES = 20
"""Rows of evaluation a changeset."""
BUILT_AT_ONCE = 20
"""Changesets in one transaction of the building."""
REPEATS = 30


class NoStore:
    """An artifact store in which all is well: what is measured is the ledger."""

    def check(self, path: str, sha256: str) -> list[str]:
        """Finds nothing wrong."""
        return []


class Writer:
    """Writes a history: each changeset edits the next corrections, is approved and applied."""

    def __init__(self, per_changeset: int) -> None:
        """Starts at the beginning of time."""
        self.per_changeset = per_changeset
        self.count = self.seconds = 0
        private = Ed25519PrivateKey.generate()
        self.signer = Signer(VerifierKey("Rex", private.public_key().public_bytes_raw()), private)

    def now(self) -> str:
        """One second after the last time."""
        self.seconds += 1
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(1_600_000_000 + self.seconds))

    def corrections(self, count: int) -> list[Correction]:
        """The next corrections: each subject has five."""
        made = []
        for number in range(self.count, self.count + count):
            made.append(
                Correction(
                    model=MODEL,
                    subject=f"Person {number // len(RELATIONS)}",
                    relation=RELATIONS[number % len(RELATIONS)],
                    prompt_template="{} has the value",
                    target_new=f"value {number}",
                    target_true=f"value {number + 1}",
                    source=f"gazette {number % 1000}",
                    submitter=f"submitter {number % 50}",
                    reason="it changed",
                    filed_at=self.now(),
                    file_name=f"day-{number // 1000}.csv",
                    line=number % 1000 + 2,
                )
            )
        self.count += count
        return made

    def changeset(self, work: UnitOfWork) -> Changeset:
        """Files corrections and proposes a changeset that edits them."""
        filed = [entry.record for entry in work.file(self.corrections(self.per_changeset))]
        head = work.head(MODEL)
        sha256 = hashlib.sha256(f"{head.position}".encode()).hexdigest()
        delta = ActiveDelta(sha256, f"artifacts/deltas/{sha256[:16]}.safetensors")
        cases = filed[:CASES]
        return work.add_changeset(
            Changeset(
                model=MODEL,
                kind="edit",
                parent=head.changeset_id,
                parent_version=head.version,
                candidate_version=hashlib.sha256(f"version {head.position}".encode()).hexdigest(),
                base_digest=BASE,
                plan_digest=hashlib.sha256(f"plan {head.position}".encode()).hexdigest(),
                changes=changes_between((), (delta,)),
                results=tuple(CaseResult(c.id, "edited", 9.5, 0.25, sha256) for c in filed),
                metrics=tuple(Metric(f"metric {i}", "candidate", i / 10) for i in range(10)),
                gates=(Gate("efficacy", ">=", 0.9, 0.99, True), Gate("untouched", ">=", 0.95, 0.97, True)),
                cases=tuple(
                    CaseRow("efficacy", "candidate", c.id, "It has the value", "value", 0.9, "value.", True)
                    for c in cases
                ),
                provenance={"seed": "0", "method": "nse"},
                reason="nightly",
                planned_by="scheduler",
                planned_at=self.now(),
            )
        )

    def apply(self, work: UnitOfWork, changeset: Changeset) -> None:
        """Approves a changeset and puts it in force."""
        made = {"changeset_id": changeset.id, "reviewer": "Rex", "reason": "checked", "decided_at": self.now()}
        decision = Decision(**made, verdict="approve", key_id=self.signer.id)
        work.add_decision(replace(decision, signature=self.signer.sign(decision)))
        head, version = work.head(MODEL), changeset.candidate_version
        work.move_head(MODEL, expected=head, version=version, changeset_id=changeset.id, at=self.now(), by="scheduler")


def build(ledger: Ledger, writer: Writer, changesets: int, console: Console) -> float:
    """Writes the history; returns seconds."""
    start = time.perf_counter()
    with ledger.begin() as work:
        work.start(MODEL, BASE, writer.now(), "scheduler")
        persons.register(work, writer.signer.key, person="Rex", by="Rex", reason="first use", at=writer.now())
    for first in track(range(0, changesets, BUILT_AT_ONCE), "building", console=console):
        with ledger.begin() as work:
            for _ in range(min(BUILT_AT_ONCE, changesets - first)):
                writer.apply(work, writer.changeset(work))
    with ledger.begin() as work:  # what waits for tonight
        work.file(writer.corrections(writer.per_changeset))
    return time.perf_counter() - start


def analyze(url: str) -> None:
    """Lets PostgreSQL count the rows, as its autovacuum does in a ledger that takes years to grow."""
    engine = engine_of(url)
    if engine.dialect.name == "postgresql":
        with engine.execution_options(ledger_write=True).begin() as connection:
            connection.exec_driver_sql("ANALYZE")


def timed(ledger: Ledger, ask: Callable[[UnitOfWork], object], *, write: bool = False) -> list[float]:
    """Seconds of each of several calls, each in a transaction of its own, committed."""
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        with ledger.begin() if write else ledger.read() as work:
            ask(work)
        found.append(time.perf_counter() - start)
    return found


def questions(writer: Writer, generator: random.Random) -> Iterator[tuple[str, Callable[[UnitOfWork], object]]]:
    """What people ask, each about other subjects and times."""

    def subject() -> str:
        return f"person {generator.randrange(writer.count // len(RELATIONS))}"

    def as_of(work: UnitOfWork) -> object:
        about = subject()
        when = time.strftime("%Y-%m-%d", time.gmtime(1_600_000_000 + generator.randrange(writer.seconds)))
        head = resolve_version(work, MODEL, when) if when > "2020-09-13" else resolve_version(work, MODEL, "base")
        stretches = read_state(work, MODEL, subjects=[about]).stretches()
        return [i for i, of in stretches.items() if any(s.start <= head.position < (s.end or 10**9) for s in of)]

    yield "blame", lambda work: blame(work, MODEL, subject())
    yield "as of a date", as_of
    yield "pending", lambda work: queries.pending(work, MODEL)


def run(url: str, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Builds the ledger and measures."""
    writer, changesets = Writer(options.per_changeset), options.corrections // options.per_changeset
    ledger = open_ledger(url, create=True)
    record: dict[str, Any] = {
        "database": url.split(":")[0],
        "corrections": options.corrections,
        "changesets": changesets,
    }
    record["build_seconds"] = build(ledger, writer, changesets, console)
    analyze(url)
    for name, ask in questions(writer, random.Random(0)):
        record[name] = timed(ledger, ask)
    record["append a changeset of 100"] = timed(
        ledger, lambda work: writer.apply(work, writer.changeset(work)), write=True
    )
    with ledger.read() as work:
        record["events"] = work.log.size()
    start = time.perf_counter()
    findings = verify(ledger, NoStore())  # type: ignore[arg-type]  # of a store it needs `check` alone
    record["verify_seconds"] = time.perf_counter() - start
    record["findings"] = [f"{f.where}: {f.problem}" for f in findings]
    record["events_per_second"] = record["events"] / record["verify_seconds"]
    return record


def report(record: dict[str, Any], console: Console) -> None:
    """Prints the figures."""
    title = f"{record['database']}: {record['corrections']:,} corrections, {record['events']:,} events"
    table = Table(title=title, title_justify="left")
    for column in ("", "median ms", "slowest ms"):
        table.add_column(column, justify="left" if not column else "right")
    for name in ("blame", "as of a date", "pending", "append a changeset of 100"):
        table.add_row(name, f"{statistics.median(record[name]) * 1000:.1f}", f"{max(record[name]) * 1000:.1f}")
    console.print(table)
    console.print(
        f"built in {record['build_seconds']:.0f} s; verified in {record['verify_seconds']:.1f} s: "
        f"{record['events_per_second']:,.0f} events/s, {len(record['findings'])} findings"
    )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corrections", type=int, default=1_000_000)
    parser.add_argument("--per-changeset", type=int, default=100)
    parser.add_argument("--url", help="an empty database; default: a SQLite file that is deleted afterwards")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    console = Console(width=100)
    with tempfile.TemporaryDirectory() as folder:
        record = run(options.url or f"sqlite:///{folder}/ledger.db", options, console)
    record["machine"] = machine(device_of("cpu")) | {"sqlalchemy": sqlalchemy.__version__}
    report(record, console)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
