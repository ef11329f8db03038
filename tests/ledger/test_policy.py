"""What a policy asks of a changeset, and what decisions come to under it."""

from dataclasses import dataclass

import pytest

from ledger.errors import LedgerError
from ledger.policy import (
    Auto,
    Policy,
    Rule,
    When,
    concerned,
    read_policy,
    reviewer_objections,
    same_person,
    standing,
)
from ledger.records import ERASED, Decision, Gate

FULL = Policy(
    approvals=2,
    reviewers=("Ann", "Bea", "Zoë"),
    expires_days=14,
    rules=(
        Rule(
            When(relations=("currency", ""), kinds=("revert",), min_corrections=10, max_gate_margin=0.05), 3, ("Ann",)
        ),
    ),
    keys="enrolled",
    auto=Auto(5, ("edit", "revert"), ("capital",), 0.1),
)


@dataclass
class Change:
    """As much of a changeset as a policy looks at."""

    kind: str = "edit"
    planned_by: str = "nse plan"
    gates: tuple[Gate, ...] = (Gate("efficacy", ">=", 0.9, 1.0, True),)
    correction_ids: tuple[str, ...] = ("c1",)
    reverted: tuple[str, ...] = ()


def says(
    reviewer: str, verdict: str = "approve", at: str = "2026-11-01T00:00:00Z", policy: str | None = None
) -> Decision:
    return Decision(
        changeset_id="x", verdict=verdict, reviewer=reviewer, reason="ok", decided_at=at, policy_id=policy  # type: ignore[arg-type]
    )  # fmt: skip


def approvers(policy: Policy, *decisions: Decision, at: str | None = None, relation: str = "capital") -> list[str]:
    found = standing(Change(), [relation], decisions, policy, at=at)
    return [decision.reviewer for decision in found.approvals]


def test_a_policy_comes_back_from_its_text() -> None:
    for policy in (Policy(), FULL, Policy(auto=Auto(1))):
        assert read_policy(policy.text()) == policy
    assert read_policy('{"approvals":1,"keys":"first-use","reviewers":[],"rules":[]}') == Policy()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "7",
        '{"approvals":"2","keys":"first-use","reviewers":[],"rules":[]}',
        '{"approvals":1,"keys":"first-use","reviewers":[1],"rules":[]}',
        '{"approvals":1,"keys":"first-use","reviewers":"Ann","rules":[]}',
        '{"approvals":1,"keys":"first-use","reviewers":[],"rules":[{}]}',
        '{"approvals":1,"keys":"first-use","moon":"full","reviewers":[],"rules":[]}',
        '{"approvals": 1, "keys": "first-use", "reviewers": [], "rules": []}',
        '{"approvals":1,"auto":{"kinds":[]},"keys":"first-use","reviewers":[],"rules":[]}',
    ],
)
def test_a_text_that_is_no_policy_is_refused_with_one_line(text: str) -> None:
    with pytest.raises(LedgerError, match="a policy in the ledger cannot be read") as caught:
        read_policy(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("when", "change", "relations", "matches"),
    [
        (When(relations=("currency",)), Change(), ["capital", "currency"], True),
        (When(relations=("currency",)), Change(), ["capital", None], False),
        (When(relations=("",)), Change(), ["capital", None], True),
        (When(kinds=("revert",)), Change(), [], False),
        (When(kinds=("revert",)), Change(kind="revert"), [], True),
        (When(min_corrections=2), Change(correction_ids=("a",)), [], False),
        (When(min_corrections=2), Change(correction_ids=("a", "b")), [], True),
        (When(min_corrections=2), Change(kind="revert", correction_ids=("a", "b"), reverted=("a",)), [], False),
        (When(max_gate_margin=0.05), Change(), [], False),
        (When(max_gate_margin=0.1), Change(), [], True),
        (When(max_gate_margin=0.05), Change(gates=(Gate("loss", "<=", 2, 1.99, True),)), [], True),
        (When(max_gate_margin=0.05), Change(gates=(Gate("loss", "<=", 2, float("nan"), True),)), [], True),
        (When(max_gate_margin=0.05), Change(gates=()), [], True),
        (When(kinds=("edit",), relations=("currency",)), Change(), ["capital"], False),
    ],
)
def test_a_rule_is_about_what_meets_all_its_conditions(
    when: When, change: Change, relations: list[str | None], matches: bool
) -> None:
    assert when.matches(change, relations) is matches


def test_of_all_that_applies_the_most_approvals_and_the_people_on_every_list_are_needed() -> None:
    policy = Policy(
        approvals=1,
        reviewers=("Ann", "Bea", "Cai"),
        rules=(
            Rule(When(kinds=("edit",)), 2),
            Rule(When(relations=("currency",)), 1, ("bea", "CAI", "Dan")),
            Rule(When(kinds=("revert",)), 9),
        ),
    )
    asked = policy.required(Change(), ["currency"])
    assert (asked.approvals, asked.reviewers) == (2, ("Bea", "Cai"))
    assert [asked.allows(name) for name in (" bea ", "Ann", "Dan")] == [True, False, False]
    assert policy.required(Change(), ["capital"]).reviewers == ("Ann", "Bea", "Cai")
    assert Policy().required(Change(), []).reviewers is None


def test_approvals_are_counted_once_a_person_and_the_last_word_of_each_stands() -> None:
    two = Policy(approvals=2)
    assert approvers(two, says("Ann"), says("ann ")) == ["ann "]
    assert approvers(two, says("Ann"), says("Bea"), says("Ann", "withdraw")) == ["Bea"]
    assert approvers(two, says("Ann"), says("Ann", "withdraw"), says("Bea"), says("Ann")) == ["Bea", "Ann"]
    assert standing(Change(), [], [says("Ann"), says("Bea")], two, at=None).approved
    assert not standing(Change(), [], [says("Ann")], two, at=None).approved


def test_one_rejection_outweighs_every_approval() -> None:
    found = standing(Change(), [], [says("Ann"), says("Bea", "reject"), says("Cai")], Policy(), at=None)
    assert (found.rejected, found.approved) == (True, False)


def test_approvals_of_people_who_are_not_on_the_list_do_not_count() -> None:
    assert approvers(Policy(reviewers=("Ann",)), says("Bea"), says("ANN")) == ["ANN"]


def test_an_approval_expires_to_the_second_when_a_time_is_given() -> None:
    week = Policy(expires_days=7)
    given = says("Ann", at="2026-11-01T10:00:00Z")
    assert approvers(week, given, at="2026-11-08T10:00:00Z") == ["Ann"]
    assert approvers(week, given, at="2026-11-08T10:00:01Z") == []
    assert approvers(week, given, at="2026-10-01T00:00:00Z") == ["Ann"]  # a clock that went back
    assert approvers(week, given) == ["Ann"]
    assert approvers(week, says("Ann", at="yesterday"), at="2026-11-08T10:00:00Z") == []
    assert standing(Change(), [], [given], week, at="2027-01-01T00:00:00Z").expired == (given,)


def test_what_is_missing_is_said_with_who_can_give_it() -> None:
    policy = Policy(approvals=2, reviewers=("Rex", "Ann", "Bea"), expires_days=7)
    found = standing(Change(), [], [says("Rex")], policy, at=None)
    assert found.lack() == ("has 1 of 2 approvals (Rex)", "Ann or Bea must approve")
    assert found.lack(barred=["ann"])[1] == "Bea must approve"
    assert "too few people" in found.lack(barred=["ann", "bea"])[1]
    late = standing(Change(), [], [says("Rex")], policy, at="2026-12-01T00:00:00Z")
    assert late.lack()[0] == "has 0 of 2 approvals, the approval by Rex of 2026-11-01 expired"
    assert standing(Change(), [], [], Policy(), at=None).lack() == (
        "has 0 of 1 approvals",
        "another person must approve",
    )


AUTO = Policy(
    auto=Auto(2, relations=("capital",), min_gate_margin=0.05), rules=(Rule(When(relations=("currency",)), 2),)
)


@pytest.mark.parametrize(
    ("change", "relations", "objection"),
    [
        (Change(), ["capital"], None),
        (Change(kind="revert", reverted=("a",)), ["capital"], "it is a revert"),
        (Change(kind="consolidate"), ["capital"], "it is a consolidation"),
        (Change(correction_ids=("a", "b", "c")), ["capital"] * 3, "3 corrections, the limit is 2"),
        (Change(), ["capital", "colour"], "relation 'colour'"),
        (Change(), [None], "relation ''"),
        (Change(), [ERASED], None),
        (Change(gates=(Gate("efficacy", ">=", 0.9, 0.92, True),)), ["capital"], "less than 0.05"),
        (Change(gates=(Gate("efficacy", ">=", 0.9, float("nan"), True),)), ["capital"], "less than 0.05"),
        (Change(gates=()), ["capital"], "less than 0.05"),
        (Change(gates=(Gate("efficacy", ">=", 0.9, 0.96, False),)), ["capital"], "a gate failed"),
        (Change(), ["currency"], "rule of the policy"),
    ],
)
def test_a_policy_approves_by_itself_only_within_its_limits(
    change: Change, relations: list[str | None], objection: str | None
) -> None:
    found = AUTO.objections_to_auto(change, relations)
    assert any(objection in line for line in found) if objection else not found


def test_a_policy_without_auto_approves_nothing_by_itself() -> None:
    assert Policy().objections_to_auto(Change(), []) == ["the policy approves nothing by itself"]


def test_an_approval_by_policy_counts_for_all_as_long_as_the_policy_in_force_would_give_it() -> None:
    by_policy = says("policy", policy="p1")
    assert standing(Change(), ["capital"], [by_policy], AUTO, at=None).approved
    assert not standing(Change(), ["capital"], [by_policy], Policy(), at=None).approved
    assert not standing(Change(), ["currency"], [by_policy], AUTO, at=None).approved


def test_what_a_revert_writes_again_is_not_what_it_is_about() -> None:
    for kind in ("revert", "consolidate"):
        assert concerned(Change(kind=kind, correction_ids=("again", "gone"), reverted=("gone",))) == ("gone",)
    assert concerned(Change(correction_ids=("new",))) == ("new",)


@pytest.mark.parametrize(
    ("reviewer", "reason", "objection"),
    [
        ("", "why", "the reviewer is empty"),
        ("bruno", " \n", "the reason is empty"),
        ("NSE  Plan", "why", "planned it"),
        (" ANA", "why", "filed one of its corrections"),
        ("Policy", "why", "no person can be called"),
        ("bruno", "why", None),
    ],
)
def test_who_planned_or_filed_it_cannot_decide_in_any_letter_case(
    reviewer: str, reason: str, objection: str | None
) -> None:
    decision = Decision(changeset_id="x", verdict="approve", reviewer=reviewer, reason=reason, decided_at="")
    found = reviewer_objections(Change(), ["Ana"], decision)
    assert [objection in line for line in found] == [True] if objection else found == []


def test_letter_case_and_spaces_do_not_make_another_person() -> None:
    assert same_person(" Ana  SOL") == same_person("ana sol") != same_person("anasol")
