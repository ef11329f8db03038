"""Whatever people do, in whatever order: the ledger says what a model ledger of plain dicts and lists says.

Hypothesis files, proposes, decides, applies, reverts and erases at random, refusals included, and shrinks what it finds.
"""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ledger import audit, erasing, merkle, repository, tables
from ledger.database import connect
from ledger.errors import DecisionRefused, ErasureRefused
from ledger.records import ActiveDelta, CaseResult, Changeset, Gate, subject_key
from ledger.status import correction_statuses, read_state
from ledger.unit_of_work import Ledger
from ledger.waiting import lacking, surplus
from tests.ledger.cast import Cast, new_cast
from tests.ledger.conftest import MODEL, FakeStore

SUBJECTS = ("Croatia", "croatia", "Chad", "Cuba ", "Mali", "Peru", "Oman", "Iran")
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # a thousand ledgers' worth of fsync takes minutes on a disk
OBJECTS = st.sampled_from(("euro", "peso"))
ENDS = st.sampled_from(("open", "rejected", "applied", "applied"))
REVIEWERS = ("bruno", "carla", "ana")  # ana files the corrections: she may decide nothing


@dataclass
class Asked:
    """A correction of the model ledger."""

    id: str
    subject: str
    relation: str
    target: str
    supersedes: str | None
    erased: bool = False

    @property
    def fact(self) -> tuple[str, str]:
        return subject_key(self.subject), self.relation


@dataclass
class Proposed:
    """A changeset of the model ledger: `after` is the complete set in force, of each delta what is dropped of it."""

    record: Changeset
    parent: int
    after: dict[str, frozenset[str]]
    results: dict[str, str]
    reverted: tuple[str, ...]
    gate: bool
    verdicts: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class ModelLedger:
    """What the ledger should say, in plain Python: everything is computed from the beginning each time it is asked for."""

    corrections: dict[str, Asked] = field(default_factory=dict)
    proposals: list[Proposed] = field(default_factory=list)
    heads: list[Proposed | None] = field(default_factory=lambda: [None])
    contents: dict[str, set[str]] = field(default_factory=dict)

    def after(self, position: int) -> dict[str, frozenset[str]]:
        made = self.heads[position]
        return made.after if made else {}

    @property
    def now(self) -> dict[str, frozenset[str]]:
        return self.after(-1)

    def active(self) -> list[tuple[str, frozenset[str]]]:
        """The set in force, in the order in which its deltas first came in force."""
        order: dict[str, None] = {}
        for made in self.heads:
            order |= dict.fromkeys(made.after if made else ())
        return [(sha256, self.now[sha256]) for sha256 in order if sha256 in self.now]

    def held(self, after: dict[str, frozenset[str]]) -> set[str]:
        return {i for sha256, dropped in after.items() for i in self.contents[sha256] - dropped}

    def successors(self, identity: str) -> Iterator[str]:
        for other in self.corrections.values():
            if other.supersedes == identity:
                yield other.id
                yield from self.successors(other.id)

    def in_force(self, after: dict[str, frozenset[str]]) -> set[str]:
        held = self.held(after)
        return {i for i in held if held.isdisjoint(self.successors(i))}

    def state(self, made: Proposed) -> str:
        if made in self.heads:
            return "applied"
        if any(verdict == "reject" for _, verdict in made.verdicts):
            return "rejected"
        if not made.gate:
            return "gate-failed"
        if made.parent != len(self.heads) - 1:
            return "stale"
        return "approved" if "approve" in dict(made.verdicts).values() else "proposed"

    def statuses(self) -> dict[str, str]:
        now = self.in_force(self.now)
        ever = {i for position in range(len(self.heads)) for i in self.in_force(self.after(position))}
        told: dict[str, tuple[str, str]] = {}
        for made in self.proposals:
            if self.state(made) not in ("stale", "gate-failed"):
                told |= {identity: (self.state(made), result) for identity, result in made.results.items()}
        found = {}
        for identity, asked in self.corrections.items():
            state, result = told.get(identity, ("", ""))
            if identity in now:
                found[identity] = "active"
            elif (state, result) == ("applied", "skipped"):
                found[identity] = "skipped"
            elif identity in ever:
                found[identity] = "reverted"
            elif asked.erased:
                found[identity] = "erased"
            elif state in ("", "applied"):
                found[identity] = "pending"
            else:
                found[identity] = "rejected" if state == "rejected" else "proposed"
        first = dict(found)
        for identity in self.corrections:
            successors = list(self.successors(identity))
            if first[identity] == "pending" and any(first[s] not in ("rejected", "erased") for s in successors):
                found[identity] = "superseded"
            if first[identity] == "reverted" and not now.isdisjoint(successors):
                found[identity] = "superseded"
        return found | self._held_back(found)

    def _held_back(self, status: dict[str, str]) -> dict[str, str]:
        order = list(self.corrections)
        held_back = {}
        for identity in (i for i in order if status[i] == "pending"):
            asked = self.corrections[identity]
            rivals = [
                other
                for other in self.corrections.values()
                if other.fact == asked.fact
                and not other.erased
                and status[other.id] in ("pending", "proposed", "active")
                and other.id != identity
                and other.id not in self.successors(identity)
                and identity not in self.successors(other.id)
            ]
            same = [r for r in rivals if r.target == asked.target]
            if any(status[r.id] != "pending" or order.index(r.id) < order.index(identity) for r in same):
                held_back[identity] = "duplicate"
            elif len(same) < len(rivals):
                held_back[identity] = "conflict"
        return held_back

    def waiting(self) -> list[str]:
        settled = {i for i, asked in self.corrections.items() if asked.erased}
        for made in self.proposals:
            if self.state(made) == "rejected":
                settled |= set(made.results)
            elif self.state(made) == "applied":
                earlier = {i for i in self.corrections if not set(made.results).isdisjoint(self.successors(i))}
                settled |= set(made.results) | earlier
        return [identity for identity in self.corrections if identity not in settled]


@pytest.fixture(scope="module")
def new_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with nothing in it, to be copied."""
    path = tmp_path_factory.mktemp("machine") / "ledger.db"
    connect(f"sqlite:///{path}", create=True)
    return path


class Machine(RuleBasedStateMachine):
    """A ledger and its model; every rule does the same to both."""

    new_ledger: Path

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory(dir=MEMORY)
        path = Path(self.folder.name) / "ledger.db"
        shutil.copyfile(self.new_ledger, path)
        self.cast: Cast = new_cast(f"sqlite:///{path}", path)
        salts = count(1)
        self.cast.ledger = Ledger(connect(f"sqlite:///{path}", create=False), new_salt=lambda: f"{next(salts):032x}")
        self.model = ModelLedger()
        for subject, wanted in (("Croatia", "euro"), ("Chad", "euro"), ("Chad", "peso")):
            record = self.cast.file(subject, wanted, relation="capital")
            self.model.corrections[record.id] = Asked(record.id, subject, "capital", wanted, None)

    def teardown(self) -> None:
        if hasattr(self, "cast"):
            try:
                self._check_whole()
            finally:
                self.folder.cleanup()

    # --- what people do

    @precondition(lambda self: len(self.model.corrections) < 16)
    @rule(subject=st.sampled_from(SUBJECTS), relation=st.sampled_from(("currency", "capital")), wanted=OBJECTS)
    def file(self, subject: str, relation: str, wanted: str) -> None:
        self._file(subject, relation, wanted, None)

    @precondition(lambda self: len(self.model.corrections) < 16)
    @rule(data=st.data(), wanted=OBJECTS, end=st.sampled_from(("rejected", "waits", "erased", "applied", "open")))
    def supersede(self, data: st.DataObject, wanted: str, end: str) -> None:
        known = [asked for asked in self.model.corrections.values() if not asked.erased]
        if not known:
            return
        earlier = data.draw(st.sampled_from(known), label="superseded")
        identity = self._file(earlier.subject, earlier.relation, wanted, earlier.id)
        if end == "erased":
            self._erase(self.model.corrections[identity])
        elif end != "waits" and self.model.statuses()[identity] == "pending":
            self._propose({identity: "edited"}, self.model.now)
            self._end(end)

    def _file(self, subject: str, relation: str, wanted: str, supersedes: str | None) -> str:
        said = (subject, relation, wanted, supersedes)
        known = [
            asked.id
            for asked in self.model.corrections.values()
            if (asked.subject, asked.relation, asked.target, asked.supersedes) == said and not asked.erased
        ]
        record = self.cast.file(subject, wanted, relation=relation, supersedes=supersedes)
        if known:
            assert record.id == known[0]
        else:
            assert record.id not in self.model.corrections
            self.model.corrections[record.id] = Asked(record.id, *said)
        return record.id

    @precondition(lambda self: "pending" in self.model.statuses().values())
    @rule(data=st.data(), gate=st.integers(0, 5), end=ENDS)
    def plan(self, data: st.DataObject, gate: int, end: str) -> None:
        pending = [i for i, status in self.model.statuses().items() if status == "pending"]
        chosen = data.draw(st.lists(st.sampled_from(pending), min_size=1, max_size=3, unique=True))
        fates = st.sampled_from(("edited", "edited", "edited", "unconverged", "skipped"))
        self._propose({identity: data.draw(fates) for identity in chosen}, self.model.now, gate=gate > 0)
        self._end(end if gate else "open")

    @precondition(lambda self: self.model.held(self.model.now))
    @rule(data=st.data(), again=st.booleans(), end=ENDS)
    def revert(self, data: st.DataObject, again: bool, end: str) -> None:
        held = sorted(self.model.held(self.model.now))
        gone = data.draw(st.lists(st.sampled_from(held), min_size=1, unique=True))
        after = {}
        for sha256, dropped in self.model.now.items():
            out = self.model.contents[sha256] & {*dropped, *gone}
            if out != self.model.contents[sha256]:
                after[sha256] = frozenset(out)
        stay = sorted(self.model.held(after))
        self._propose({stay[0]: "edited"} if again and stay else {}, after, reverted=gone)
        self._end(end)

    @precondition(lambda self: len(self.model.heads) > 1)
    @rule(data=st.data(), end=ENDS)
    def go_back(self, data: st.DataObject, end: str) -> None:
        position = data.draw(st.integers(0, len(self.model.heads) - 2))
        after = self.model.after(position)
        gone = sorted(self.model.in_force(self.model.now) - self.model.in_force(after))
        if after != self.model.now:
            self._propose({}, after, reverted=gone)
            self._end(end)

    @precondition(lambda self: self.model.proposals)
    @rule(data=st.data(), verdict=st.sampled_from(("approve", "approve", "reject", "withdraw")))
    def decide(self, data: st.DataObject, verdict: str) -> None:
        made = data.draw(st.sampled_from(self.model.proposals[-3:]), label="changeset")
        reviewer = data.draw(st.sampled_from(REVIEWERS), label="reviewer")
        if self._may(made, reviewer, verdict):
            getattr(self.cast, verdict)(made.record, reviewer)
            made.verdicts.append((reviewer, verdict))
        else:
            with pytest.raises(DecisionRefused):
                getattr(self.cast, verdict)(made.record, reviewer)

    @precondition(lambda self: self.model.proposals)
    @rule(data=st.data())
    def apply(self, data: st.DataObject) -> None:
        made = data.draw(st.sampled_from(self.model.proposals[-3:]), label="changeset")
        if self.model.state(made) == "approved":
            move = self.cast.apply(made.record)
            self.model.heads.append(made)
            assert move.position == len(self.model.heads) - 1
        else:
            with pytest.raises(DecisionRefused):
                self.cast.apply(made.record)

    @rule(data=st.data(), seldom=st.integers(0, 3))
    def erase(self, data: st.DataObject, seldom: int) -> None:
        if seldom:
            return
        self._erase(data.draw(st.sampled_from(list(self.model.corrections.values())), label="correction"))

    def _erase(self, asked: Asked) -> None:
        with self.cast.ledger.begin() as work:
            record = work.correction(asked.id)
            if self._may_be_erased(asked):
                assert erasing.erase(work, record, reason="asked", by="dora", at=self.cast.now()) >= 1
                asked.erased = True
            else:
                with pytest.raises(ErasureRefused):
                    erasing.erase(work, record, reason="asked", by="dora", at=self.cast.now())

    def _end(self, end: str) -> None:
        """Takes the last proposal to its end at once: rejected, or applied if nothing erased would come back."""
        made = self.model.proposals[-1]
        verdict = {"applied": "approve", "rejected": "reject"}.get(end)
        if verdict is None or not self._may(made, "carla", verdict):
            return
        getattr(self.cast, verdict)(made.record, "carla")
        made.verdicts.append(("carla", verdict))
        if verdict == "approve":
            self.cast.apply(made.record)
            self.model.heads.append(made)

    def _propose(
        self,
        results: dict[str, str],
        after: dict[str, frozenset[str]],
        *,
        reverted: list[str] | None = None,
        gate: bool = True,
    ) -> None:
        number = len(self.model.proposals) + 1
        sha256 = f"{number:064x}"
        written = {identity for identity, status in results.items() if status != "skipped"}
        if written:
            self.model.contents[sha256] = written
            after = {**after, sha256: frozenset()}
        record = self.cast.propose(
            kind="edit" if reverted is None else "revert",
            active=tuple(
                ActiveDelta(s, f"artifacts/deltas/{s[-16:]}.safetensors", tuple(sorted(d))) for s, d in after.items()
            ),
            results=tuple(
                CaseResult(i, status, 9.5, 0.25, sha256 if status != "skipped" else None)  # type: ignore[arg-type]
                for i, status in results.items()
            ),
            reverted=tuple(reverted or ()),
            gates=(Gate("efficacy", ">=", 0.9, 1.0 if gate else 0.5, gate),),
        )
        assert record.number == number
        position = len(self.model.heads) - 1
        self.model.proposals.append(Proposed(record, position, dict(after), results, tuple(reverted or ()), gate))

    def _may(self, made: Proposed, reviewer: str, verdict: str) -> bool:
        state = self.model.state(made)
        is_open = state in ("proposed", "approved", "gate-failed") and made.parent == len(self.model.heads) - 1
        if verdict == "withdraw":
            return is_open and dict(made.verdicts).get(reviewer) == "approve"
        if not is_open or (reviewer == "ana" and self._touches_some(made)):
            return False
        if verdict == "reject":
            return True
        revives = any(self.model.corrections[i].erased for i in self.model.held(made.after))
        return state == "proposed" and not revives

    def _touches_some(self, made: Proposed) -> bool:
        """Whether it changes the force of any correction: all are ana's."""
        return (
            bool(made.results) or bool(made.reverted) or self.model.held(made.after) != self.model.held(self.model.now)
        )

    def _may_be_erased(self, asked: Asked) -> bool:
        if asked.erased or asked.id in self.model.held(self.model.now):
            return False
        waits = [made for made in self.model.proposals if self.model.state(made) in ("proposed", "approved")]
        return not any(
            asked.id in (*made.results, *made.reverted) or asked.id in self.model.held(made.after) for made in waits
        )

    # --- what must hold after each step

    @invariant()
    def the_ledger_says_what_the_model_says(self) -> None:
        if not hasattr(self, "cast"):
            return
        with self.cast.ledger.read() as work:
            state = read_state(work, MODEL)
            assert correction_statuses(state) == self.model.statuses()
            assert list(state.corrections) == list(self.model.corrections)
            found = [state.status(changeset) for changeset in state.changesets.values()]
            assert found == [self.model.state(made) for made in self.model.proposals]
            head = work.head(MODEL)
            assert head.position == len(self.model.heads) - 1
            active = work.active(MODEL, head.position)
            assert [(delta.sha256, frozenset(delta.dropped)) for delta in active] == self.model.active()
            assert state.active(head) == active
            assert state.in_force(active) == self.model.in_force(self.model.now)
            assert work.waiting(MODEL) == self.model.waiting()
            leaves = [leaf for _, leaf in sorted(_leaves(work.connection))]
            assert work.log.size() == len(leaves)
            assert work.log.root() == merkle.root(len(leaves), merkle.subtrees_of(leaves))

    def _check_whole(self) -> None:
        with self.cast.ledger.read() as work:
            assert list(work.connection.execute(lacking())) == []
            assert list(work.connection.execute(surplus())) == []
            statuses = self.model.statuses()
            for asked in self.model.corrections.values():
                state = read_state(work, MODEL, subjects=[asked.subject])
                for identity, status in correction_statuses(state).items():
                    assert status == statuses[identity]
                assert asked.erased or asked.id in state.corrections
        assert audit.verify(self.cast.ledger, FakeStore()) == []


def _leaves(connection: object) -> Iterator[tuple[int, bytes]]:
    for table in tables.RECORD_TABLES:
        for row in repository.select_rows(connection, table):  # type: ignore[arg-type]
            yield row["sequence"], merkle.leaf_hash(repository.leaf(table, row))


def test_the_ledger_says_what_a_model_ledger_says_whatever_people_do(new_ledger: Path) -> None:
    class OnThisLedger(Machine):
        pass

    OnThisLedger.new_ledger = new_ledger
    run_state_machine_as_test(
        OnThisLedger,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
