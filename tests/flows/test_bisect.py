"""Bisection: the search by itself, and a round of which one correction makes the gates fail."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.bisect import Search, curable, left_out, narrowed_by, search, suspicion
from flows.explain import explain
from flows.plan import Round, run_round
from flows.session import Session
from flows.workspace import Workspace, open_workspace
from ledger.records import CaseRow, Changeset, Gate, Metric

Nse = Callable[..., Any]
FIFTY = [f"{number:02d}" * 32 for number in range(50)]


class Trials:
    """A round that passes if these are left out, and a count."""

    def __init__(self, *culprits: str) -> None:
        self.culprits, self.asked = set(culprits), list[Sequence[str]]()

    def __call__(self, without: Sequence[str]) -> bool:
        self.asked.append(without)
        return self.culprits <= set(without)


@pytest.mark.parametrize("bad", FIFTY)
def test_any_one_among_fifty_is_found_within_the_default_number_of_solves(bad: str) -> None:
    found = search(FIFTY, Trials(bad), solves=12)
    assert (found.at_fault, found.corrections) == ((bad,), (bad,))


def test_a_suspect_is_tried_first_and_is_enough() -> None:
    trials = Trials(FIFTY[33])
    assert search(FIFTY, trials, solves=12, suspects={FIFTY[33]}).at_fault == (FIFTY[33],)
    assert trials.asked == [[FIFTY[33]]]


def test_a_wrong_suspicion_costs_one_solve_and_misleads_nobody() -> None:
    assert search(FIFTY, Trials(FIFTY[33]), solves=12, suspects={FIFTY[2]}).at_fault == (FIFTY[33],)


@pytest.mark.parametrize("pair", [(0, 1), (0, 49), (20, 30)])
def test_two_are_found_with_enough_solves_and_none_of_them_can_be_put_back(pair: tuple[int, int]) -> None:
    bad = {FIFTY[place] for place in pair}
    trials = Trials(*bad)
    found = search(FIFTY, trials, solves=100)
    assert set(found.at_fault) == bad
    for identity in bad:  # that each is at fault was tried: its evidence is there
        assert [*(bad - {identity})] in [list(asked) for asked in trials.asked]


def test_a_search_that_is_spent_accuses_nobody_but_knows_a_set_without_which_the_round_passes() -> None:
    trials = Trials(FIFTY[49])
    found = search(FIFTY, trials, solves=4)
    assert len(trials.asked) == found.solves == 4
    assert found.at_fault == ()
    assert FIFTY[49] in found.corrections
    assert len(found.corrections) < 50


def test_when_every_correction_is_bad_nothing_smaller_is_found() -> None:
    found = search(FIFTY[:2], Trials(*FIFTY[:2]), solves=12)
    assert (found.corrections, found.at_fault) == (tuple(FIFTY[:2]), ())


def case(kind: str, phase: Any, identity: str, *, passed: bool, probability: float = 0.2) -> CaseRow:
    return CaseRow(kind, phase, identity, f"{identity} is", "so", probability, "so" if passed else "not", passed)


FAILED = Gate("specificity_generation", ">=", 0.9, 0.5, False)


def test_a_failed_gate_is_explained_by_its_cases_those_first_that_the_change_broke() -> None:
    rows = [case("specificity", phase, "always bad", passed=False) for phase in ("head", "candidate")]
    rows += [
        case("specificity", "head", "broken", passed=True),
        case("specificity", "candidate", "broken", passed=False),
    ]
    rows += [case("specificity", "candidate", "fine", passed=True), case("efficacy", "candidate", "x", passed=False)]
    (found,) = explain(changeset(gates=(FAILED, Gate("perplexity", "<=", 9.0, 1.0, True)), cases=tuple(rows)))
    assert [(c.case_id, c.before, c.after, c.broken) for c in found.cases] == [
        ("broken", "so", "not", True),
        ("always bad", "not", "not", False),
    ]
    assert found.total == 2


def test_a_gate_without_cases_is_explained_by_none() -> None:
    (found,) = explain(changeset(gates=(Gate("perplexity_ratio", "<=", 1.1, 2.0, False),)))
    assert (found.total, found.cases) == (0, ())


def test_suspects_are_those_whose_own_cases_fail_a_gate_that_failed_and_those_it_asks_about() -> None:
    rows = [
        case("specificity", "candidate", FIFTY[3], passed=False),
        case("specificity", "candidate", "Fara", passed=False),
        case("specificity", "head", "Elis", passed=False),
        case("efficacy", "candidate", FIFTY[4], passed=False),
        case("specificity", "candidate", FIFTY[5], passed=True),
    ]
    subjects = {**dict.fromkeys(FIFTY[:6], "Alba"), FIFTY[6]: "Fara", FIFTY[7]: "Elis"}
    assert suspicion(changeset(gates=(FAILED,), cases=tuple(rows)), subjects) == {FIFTY[3]: 1, FIFTY[6]: 1}


@pytest.mark.parametrize(
    ("name", "at_head", "helps"),
    [("untouched_generation", 0.5, False), ("untouched_generation", 0.95, True), ("efficacy_generation", 0.0, True)],
)
def test_what_the_head_fails_as_well_is_not_searched_for(name: str, at_head: float, helps: bool) -> None:
    gates = (Gate(name, ">=", 0.9, 0.4, False),)
    assert curable(gates, [Metric(name, "head", at_head), Metric(name, "candidate", 0.4)]) is helps


def changeset(**parts: Any) -> Changeset:
    same = {"parent": None, "parent_version": "a" * 64, "candidate_version": "b" * 64, "base_digest": "c" * 64}
    made = {"model": "tiny", "kind": "edit", "changes": (), "planned_by": "Pia", "planned_at": "2031-01-01T00:00:00Z"}
    return Changeset(**same, **made, reason="round of 3 corrections", **parts)


def test_a_set_that_could_not_be_told_apart_is_recorded_as_waiting_and_nobody_is_accused() -> None:
    found = narrowed_by(changeset(), Search({}, FIFTY[:2], 12), {}, ())
    assert FIFTY[0] in found.provenance["undecided"]
    assert "2 wait" in found.reason
    assert left_out(found) == []
    assert found.results == ()


# --- a round


@pytest.fixture
def planted(workspace: Workspace, corrections: Callable[..., Path], nse: Nse) -> Workspace:
    """Six corrections, and a canary that must not say what the third teaches. GRACE teaches even a model that knows nothing."""
    for name, old, new in (
        ("params.yaml", "name: nse", "name: grace"),
        ("hparams.json", "{", '{"grace": {"layers": [2], "eps": 0.5, "lr": 0.5, "steps": 30}, '),
    ):
        path = workspace.root / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))
    path = workspace.path(workspace.params.suite)
    suite = yaml.safe_load(path.read_text())
    suite["canaries"] = [{"prompt": "The capital of Elis is", "lacks": "Berne"}]
    suite["gates"] = {"canary_generation": ">= 1", "efficacy": {"bound": ">= 2", "severity": "warn"}}
    path.write_text(yaml.safe_dump(suite))
    taught = {"Alba": "Paris", "Borea": "Tokyo", "Elis": "Berne", "Dorn": "Accra", "Cyra": "Quito", "Fara": "Oslo"}
    assert nse("ingest", corrections(*((subject, new, "") for subject, new in taught.items()))).code == 0
    return open_workspace(workspace.root)


def test_one_bad_correction_is_found_named_and_left_out_and_the_others_are_proposed(
    planted: Workspace, nse: Nse
) -> None:
    found = nse("plan", "--by", "Pia")
    assert found.code == 0, found.out + found.err
    with planted.ledger().read() as work:
        bad = next(c for c in work.corrections("tiny") if c.subject == "Elis")
        proposed = work.changeset("#1")
    assert proposed.gate_passed
    assert {r.correction_id for r in proposed.results if r.status == "skipped"} == {bad.id}
    assert len(proposed.results) == 6
    (fault,) = left_out(proposed)
    assert fault.correction_id == bad.id
    assert fault.evidence == "canary_generation 0 with it, >= 1 demanded, 1 without it"
    assert [(row.prompt, row.passed) for row in fault.cases_with_it] == [("The capital of Elis is", False)]
    assert f"left out: {bad.id[:12]} (Elis: Berne)" in found.out
    page = nse("show", "1", "--markdown").out
    assert f"| Elis: Berne | {bad.id[:12]} | {fault.evidence} |" in page
    assert "| Elis: Berne | The capital of Elis is | lacks Berne | Berne" in page
    assert "\n- warning: efficacy >= 2" in page
    assert "left out" not in page.partition("## Provenance")[2]
    assert bad.id[:12] in nse("status").out
    assert "Elis" not in "".join((proposed.reason, *proposed.provenance.values()))  # that cannot be erased
    assert nse("plan", "--by", "Pia").out.strip() == "nothing pending"
    assert nse("approve", "1", "--by", "Rex", "--reason", "checked").code == 0
    assert nse("apply", "1", "--by", "Rex").code == 0
    assert nse("status", "--json").json["corrections"] == {"active": 5, "skipped": 1}
    assert nse("plan", "--by", "Pia").out.strip() == "nothing pending"
    assert nse("verify").code == 0


def test_a_search_that_is_killed_goes_on_where_it_was(planted: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(Exception):
        """Stands for the kill."""

    def step(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        if name == "store delta":
            raise Killed
        return function(*arguments)

    with pytest.raises(Killed):
        run_round(Session(planted), by="Pia", run_step=step)
    monkeypatch.setattr(Round, "_edit", lambda *_: pytest.fail("a round was solved again"))
    found = run_round(Session(planted), by="Pia").changeset
    assert found is not None
    assert [fault.correction_id for fault in left_out(found)]
    assert found.gate_passed


def test_without_solves_the_whole_round_is_recorded_as_failed(planted: Workspace, nse: Nse) -> None:
    params = planted.root / "params.yaml"
    params.write_text(params.read_text().replace("bisection_solves: 12", "bisection_solves: 0"))
    found = nse("plan", "--by", "Pia", "--json")
    assert (found.code, found.json["status"]) == (1, "gate-failed")
    assert [c["prompt"] for told in found.json["failing"] for c in told["cases"]] == ["The capital of Elis is"]
    assert found.json["left_out"] == []
