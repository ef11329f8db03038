"""The SQL views for people who bring their own tool, on both databases, held against `ledger.status`."""

import hashlib
import json
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from sqlalchemy import Connection, inspect, text

from ledger.active import changes_between
from ledger.queries import log
from ledger.records import ActiveDelta, CaseResult, CaseRow, Changeset, Correction, Decision, Erasure, Gate
from ledger.sql_views import VIEWS, views
from ledger.status import correction_statuses, read_state
from ledger.unit_of_work import open_ledger
from ledger.views import diff
from tests.browser import visit
from tests.ledger.conftest import MODEL, Scenario


@pytest.fixture
def told(ledger_url: str, tmp_path: Path) -> Scenario:
    """A scenario on either database."""
    made = Scenario(open_ledger(ledger_url), tmp_path / "ledger.db")
    with made.ledger.begin() as work:
        work.start(MODEL, "ba5e" * 16, made.now(), "nse init")
    return made


def rows(connection: Connection, statement: str, **values: Any) -> list[dict[str, Any]]:
    return [dict(row) for row in connection.execute(text(statement), values).mappings()]


def random_history(scenario: Scenario, seed: int) -> None:
    """Corrections that supersede one another, deltas that lose columns, go and come back, proposals that fail."""
    chance = random.Random(seed)
    corrections = [scenario.file(f"Subject {i % 5}", f"object {i}") for i in range(6)]
    for i in range(3):
        corrections.append(scenario.file(f"Subject {i % 5}", f"newer {i}", supersedes=chance.choice(corrections).id))
    known: list[ActiveDelta] = []
    held: dict[str, list[str]] = {}
    for step in range(12):
        with scenario.ledger.read() as work:
            before = work.active(MODEL, work.head(MODEL).position)
        after = [d for d in before if chance.random() > 0.2]
        after += [d for d in known if d.sha256 not in {a.sha256 for a in after} and chance.random() < 0.2]
        after = [
            ActiveDelta(d.sha256, d.path, tuple(sorted(c for c in held[d.sha256] if chance.random() < 0.2)))
            for d in after
        ]
        sha256 = hashlib.sha256(f"{seed} {step}".encode()).hexdigest()
        written = chance.sample(corrections, 3)
        held[sha256] = [c.id for c in written]
        new = ActiveDelta(sha256, f"artifacts/{sha256[:16]}", ())
        states = [chance.choice(["edited", "edited", "unconverged", "skipped"]) for _ in written]
        held[sha256] = [c.id for c, state in zip(written, states, strict=True) if state != "skipped"]
        results = tuple(CaseResult(c.id, s, 9, 1, sha256) for c, s in zip(written, states, strict=True))  # type: ignore[arg-type]
        changes: dict[str, Any] = {"changes": changes_between(before, (*after, new)), "results": results}
        proposed = scenario.propose(**changes)
        if chance.random() < 0.2:
            rejection = Decision(
                changeset_id=proposed.id, verdict="reject", reviewer="bruno", reason="no", decided_at=scenario.now()
            )
            with scenario.ledger.begin() as work:
                work.add_decision(rejection)
            proposed = scenario.propose(**changes, reason="again")  # the same delta, in a second changeset
        if chance.random() < 0.8:
            scenario.apply(proposed)
            known.append(new)


@pytest.mark.parametrize("seed", range(3))
def test_what_the_views_say_is_in_force_is_what_the_ledger_says(told: Scenario, seed: int) -> None:
    random_history(told, seed)
    with told.ledger.read() as work:
        state = read_state(work, MODEL)
        statuses = correction_statuses(state)
        in_force = {row["correction_id"] for row in rows(work.connection, "SELECT * FROM in_force")}
        assert in_force == state.in_force(state.active(state.head))
        assert in_force == {identity for identity, status in statuses.items() if status == "active"}
        for position, move in state.heads.items():
            at = "SELECT correction_id FROM held_view WHERE from_version <= :v AND (to_version IS NULL OR to_version > :v)"
            held = {row["correction_id"] for row in rows(work.connection, at, v=position)}
            assert held == state.held(state.active(move))
        closed = {(row["earlier"], row["later"]) for row in rows(work.connection, "SELECT * FROM superseding_view")}
        assert closed == {(earlier, later) for earlier, all_of in state.replacers.items() for later in all_of}


@pytest.mark.parametrize("seed", range(3))
def test_the_state_of_one_subject_and_every_diff_are_those_of_the_whole_model(told: Scenario, seed: int) -> None:
    random_history(told, seed)
    with told.ledger.read() as work:
        state = read_state(work, MODEL)
        statuses, stretches = correction_statuses(state), state.stretches()
        for subject in {c.subject for c in state.corrections.values()}:
            part = read_state(work, MODEL, subjects=[subject])
            own = {c.id for c in state.corrections.values() if c.subject == subject}
            own_statuses = correction_statuses(part)
            assert {i: own_statuses[i] for i in own} == {i: statuses[i] for i in own}
            of_part = part.stretches()
            assert {i: of_part.get(i) for i in own} == {i: stretches.get(i) for i in own}
        again = read_state(work, MODEL, subjects=[], corrected_again=True)
        assert again.replacers == {i: by for i, by in state.replacers.items() if by}
        assert set(again.corrections) == {i for earlier, by in again.replacers.items() for i in (earlier, *by)}
        for a in state.heads.values():
            for b in state.heads.values():
                found = diff(work, MODEL, a, b)
                old, new = (state.in_force(state.active(move)) for move in (a, b))
                assert {c.id for c in found.came_in_force} == new - old
                assert {c.id for c in found.went_out_of_force} == old - new
                assert set(found.deltas_added) == set(state.active(b)) - set(state.active(a))
                assert set(found.deltas_removed) == set(state.active(a)) - set(state.active(b))


def test_the_migrations_make_the_views_as_they_are_written_here(told: Scenario) -> None:
    with told.ledger.read() as work:
        assert set(inspect(work.connection).get_view_names()) == set(VIEWS)
        if work.connection.dialect.name == "sqlite":
            made = rows(work.connection, "SELECT name, sql FROM sqlite_master WHERE type = 'view'")
            assert {row["name"]: row["sql"] for row in made} == views("sqlite")


@pytest.mark.parametrize(
    ("dialect", "frozen"),
    [
        ("sqlite", "6cf621153d28bd3ce856789fff30ea1e4c5a498f28541d71945e6cd7f17c69f5"),
        ("postgresql", "1e0b90c7f1a00d6cb7f9e907ca4753752508a24f0b99c72705c5e335f5601bcb"),
    ],
)
def test_the_text_of_the_views_is_frozen(dialect: str, frozen: str) -> None:
    digest = hashlib.sha256("".join(views(dialect).values()).encode()).hexdigest()
    assert digest == frozen, "a change of a view is a new migration"


# --- docs/queries.md

DOCS = Path(__file__).parents[2] / "docs" / "queries.md"


def questions() -> list[tuple[str, str]]:
    """The numbered questions of the page, each with its SQL."""
    found = re.findall(r"^\d+\. (.+?)\n+```sql\n(.+?)\n```", DOCS.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [(question, statement) for question, statement in found]


@pytest.fixture
def small(told: Scenario) -> Scenario:
    """Croatia was kuna, then euro; Bulgaria was taken back; Chad waits; Mali was turned down; Togo was erased."""

    def decide(changeset: Changeset, reviewer: str, reason: str, verdict: Any = "approve") -> None:
        decision = Decision(
            changeset_id=changeset.id, verdict=verdict, reviewer=reviewer, reason=reason, decided_at=told.now()
        )
        with told.ledger.begin() as work:
            work.add_decision(decision)

    def case(phase: Any, of: Correction, probability: float) -> CaseRow:
        return CaseRow("retention", phase, of.id, "Prompt", "kuna", probability, f"said by {phase}", probability > 0.5)

    kuna = told.file(target="kuna", target_true="dinar", source="gazette")
    lev = told.file("Bulgaria", "lev", target_true="rouble", source="gazette", submitter="ivo")
    first = told.propose(kuna, lev, gates=(Gate("efficacy", ">=", 0.9, 0.95, True),))
    decide(first, "bruno", "checked")
    told.apply(first)
    euro = told.file(target="euro", supersedes=kuna.id, submitter="ivo")
    gates = (Gate("efficacy", ">=", 0.9, 1.0, True), Gate("perplexity", "<=", 1.1, 1.09, True))
    cases = tuple(case(phase, of, p) for phase, of, p in (
        ("head", kuna, 0.9), ("head", lev, 0.9), ("candidate", kuna, 0.3), ("candidate", lev, 0.8)
    ))  # fmt: skip
    second = told.propose(euro, gates=gates, cases=cases)
    decide(second, "carla", "law of 2022")
    told.seconds += 3600
    told.apply(second)
    togo = told.file("Togo", "franc")
    told.file("Chad", "franc")
    with told.ledger.begin() as work:
        work.erase(Erasure(ref=togo.id, reason="asked for it", erased_by="dora", erased_at=told.now()))
        active = work.active(MODEL, 2)
    after = (replace(active[0], dropped=(lev.id,)), active[1])
    third = told.propose(
        kind="revert",
        reverted=(lev.id,),
        reason="the source was wrong",
        changes=changes_between(active, after),
        gates=(),
    )
    decide(third, "bruno", "agreed")
    told.apply(third)
    decide(told.propose(told.file("Mali", "euro")), "bruno", "not true", "reject")
    return told


ANSWERS = {
    "Who changed": [
        {"relation": "currency", "target_true": "dinar", "target_new": "kuna", "source": "gazette", "submitter": "ana",
         "reason": "law", "number": 1, "status": "edited", "version": 1, "reviewer": "bruno"},
        {"target_true": None, "target_new": "euro", "submitter": "ivo", "number": 2, "version": 2, "reviewer": "carla"},
    ],
    "What was in force": [
        {"subject": "Bulgaria", "relation": "currency", "target_new": "lev", "from_version": 1},
        {"subject": "Croatia", "relation": "currency", "target_new": "euro", "from_version": 2},
    ],
    "What did a person": [
        {"number": 1, "kind": "edit", "planned_for": "nightly", "reason": "checked", "written": 2, "reverted": 0, "version": 1},
        {"number": 3, "kind": "revert", "reason": "agreed", "written": 0, "reverted": 1, "version": 3},
    ],
    "Which applied": [
        {"number": 2, "name": "perplexity", "op": "<=", "bound": 1.1, "margin": pytest.approx(0.01)},
        {"number": 1, "name": "efficacy", "value": 0.95, "margin": pytest.approx(0.05)},
        {"number": 2, "name": "efficacy", "margin": pytest.approx(0.1)},
    ],
    "What came from": [
        {"subject": "Croatia", "target_new": "kuna", "submitter": "ana", "in_force": 0},
        {"subject": "Bulgaria", "target_new": "lev", "submitter": "ivo", "in_force": 0},
    ],
    "How long": [{"corrections": 3, "mean_hours": pytest.approx(1 / 3, abs=0.01), "longest": pytest.approx(1, abs=0.01)}],
    "What has been waiting": [{"subject": "Chad", "target_new": "franc", "submitter": "ana"}],
    "What was taken back": [
        {"subject": "Bulgaria", "number": 3, "reason": "the source was wrong", "planned_by": "nse plan", "reviewer": "bruno"}
    ],
    "Which prompts": [
        {"number": 2, "kind": "retention", "prompt": "Prompt", "expected": "kuna", "was": "said by head",
         "became": "said by candidate", "p_before": 0.9, "p_after": 0.3},
    ],
    "What was erased": [{"person": "dora", "reason": "asked for it"}],
}  # fmt: skip


def test_the_ten_questions_of_the_page_are_answered(small: Scenario) -> None:
    with small.ledger.read() as work:
        values = {
            "model": MODEL,
            "subject": "croatia",
            "time": work.heads(MODEL)[2].moved_at,
            "person": "bruno",
            "source": "gazette",
        }
        asked = questions()
        assert [next(k for k in ANSWERS if q.startswith(k)) for q, _ in asked] == list(ANSWERS)
        for question, statement in asked:
            wanted = next(answer for begin, answer in ANSWERS.items() if question.startswith(begin))
            found = rows(work.connection, statement, **{n: v for n, v in values.items() if f":{n}" in statement})
            assert [{n: row[n] for n in w} for row, w in zip(found, wanted, strict=True)] == wanted, question


def test_the_page_names_the_columns_of_every_view(small: Scenario) -> None:
    named = {
        view: re.findall(r"`(\w+)`", re.sub(r"\([^()]*\)", "", columns))
        for view, columns in re.findall(
            r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", DOCS.read_text(encoding="utf-8"), re.MULTILINE
        )
    }
    with small.ledger.read() as work:
        there = {v: [c["name"] for c in inspect(work.connection).get_columns(v)] for v in VIEWS}
    assert {view: columns for view, columns in named.items() if view != "superseding_view"} == {
        view: columns for view, columns in there.items() if view != "superseding_view"
    }
    assert named["superseding_view"][:2] == there["superseding_view"]


def test_the_history_is_that_of_the_log(small: Scenario) -> None:
    with small.ledger.read() as work:
        told = [
            (row["sequence"], row["at"], row["kind"], row["person"], row["ref"])
            for row in rows(work.connection, "SELECT * FROM history_view ORDER BY sequence")
        ]
        assert told == [(e.sequence, e.at, e.kind, e.by, e.ref) for e in log(work, MODEL)]
        assert [sequence for sequence, *_ in told] == list(range(1, work.log.size() + 1))


def test_what_waits_is_what_the_ledger_says(small: Scenario) -> None:
    with small.ledger.read() as work:
        found = rows(work.connection, "SELECT correction_id FROM waiting_view ORDER BY sequence")
        assert [row["correction_id"] for row in found] == work.waiting(MODEL) != []


def test_a_question_about_one_subject_reads_no_table_to_the_end(scenario: Scenario) -> None:
    asked = (
        "SELECT * FROM in_force WHERE subject_key = 'croatia'",
        "SELECT * FROM held_view h JOIN correction_view c ON c.correction_id = h.correction_id WHERE c.subject_key = 'x'",
        "SELECT * FROM correction_view WHERE subject_key = 'croatia'",
        "SELECT * FROM changeset_view WHERE number = 3",
        "SELECT * FROM approval_view WHERE reviewer = 'bruno'",
        "SELECT * FROM evaluation_view WHERE changeset_id = 'c'",
    )
    with scenario.ledger.read() as work:
        for statement in asked:
            plan = [row["detail"] for row in rows(work.connection, f"EXPLAIN QUERY PLAN {statement}")]
            assert plan
            assert [line for line in plan if line.startswith("SCAN") and line != "SCAN later"] == [], statement


# --- Datasette


@pytest.fixture
def datasette(full: Scenario) -> Iterator[str]:
    """The address of a Datasette that serves a ledger."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "datasette", "serve", str(full.path), "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        try:
            address = f"http://127.0.0.1:{port}/{full.path.stem}"
            deadline = time.monotonic() + 60
            while server.poll() is None and time.monotonic() < deadline:
                with suppress(URLError), urlopen(f"{address}.json", timeout=10):
                    break
                time.sleep(0.1)
            assert server.poll() is None, server.stderr.read() if server.stderr else ""
            yield address
        finally:
            server.terminate()


def fetch(address: str, **parameters: str) -> Any:
    with urlopen(f"{address}?{urlencode({'_shape': 'array', **parameters})}", timeout=30) as answer:
        return json.load(answer)


def test_datasette_serves_the_views_and_the_questions_while_the_ledger_is_written(
    full: Scenario, datasette: str
) -> None:
    before = fetch(f"{datasette}/correction_view.json")
    assert [row["subject"] for row in before] == ["Croatia", "Croatia"]
    full.file("Chad", "franc")
    assert [row["subject"] for row in fetch(f"{datasette}/correction_view.json")] == ["Croatia", "Croatia", "Chad"]
    _, question = questions()[0]
    [kuna, euro] = fetch(f"{datasette}.json", sql=question, model=MODEL, subject="croatia")
    assert (kuna["version"], euro["target_new"], euro["reviewer"]) == (1, "Euro", "bruno")
    for statement in ("DELETE FROM waiting", "WITH x AS (SELECT 1) INSERT INTO waiting VALUES ('m', 999, 'c')"):
        with pytest.raises(HTTPError) as refused:
            fetch(f"{datasette}.json", sql=statement)
        assert refused.value.code == 400
        refused.value.close()


def test_datasette_shows_a_view_and_the_answer_to_a_question_in_a_browser(datasette: str, tmp_path: Path) -> None:
    _, question = questions()[0]
    pages = {
        "view": f"{datasette}/in_force",
        "question": f"{datasette}?{urlencode({'sql': question, 'model': MODEL, 'subject': 'croatia'})}",
    }
    for name, address in pages.items():
        with urlopen(address, timeout=30) as answer:
            assert "Euro" in answer.read().decode()
        (tmp_path / name).mkdir()
        seen = visit(address, tmp_path / name)
        assert seen.console == []
        assert seen.requests  # styles and scripts, from the same server: it needs no network
        assert all(asked.startswith("http://127.0.0.1:") for asked in seen.requests)
        assert seen.ink > 0.01
