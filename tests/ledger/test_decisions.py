"""Which decisions are allowed, and which changesets may be applied, on both databases."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from ledger import adoption, decisions
from ledger.errors import DecisionRefused
from ledger.persons import Signer, read_registry
from ledger.placed import Placed, read_placed
from ledger.policy import POLICY, Auto, Policy, Rule, When
from ledger.records import CaseResult, Changeset, Decision, DeltaChange, Erasure, Gate, HeadMove
from tests.ledger.cast import Cast, cast, new_signer
from tests.ledger.conftest import MODEL

__all__ = ["cast"]
FAILED = Gate("specificity", ">=", 0.9, 0.5, False)


@pytest.fixture(params=["approve", "reject"])
def decide(request: pytest.FixtureRequest, cast: Cast) -> Callable[..., Decision]:
    return getattr(cast, request.param)  # type: ignore[no-any-return]


def recorded(cast: Cast, changeset: Changeset) -> list[Decision]:
    with cast.ledger.read() as work:
        return work.decisions(changeset.id)


def applicable(cast: Cast, changeset: Changeset, at: str | None = None) -> None:
    when = at or cast.now()
    with cast.ledger.read() as work:
        decisions.check_applicable(work, changeset, at=when)


def objections(cast: Cast, changeset: Changeset) -> list[str]:
    """What an audit says about an applied changeset."""
    with cast.ledger.read() as work:
        case = decisions.read_case(work, changeset)
        (move,) = [m for m in read_placed(work.connection, HeadMove) if m.record.changeset_id == changeset.id]
        return decisions.objections_to_applied(
            changeset,
            move,
            case.decisions,
            case.submitters,
            case.relations,
            registry=read_registry(work),
            policies=adoption.read_policies(work, MODEL),
        )


def test_a_decision_is_recorded_with_who_when_why_and_signed(cast: Cast) -> None:
    changeset = cast.propose(cast.file())
    decision = cast.approve(changeset, "bruno", "checked the gazette")
    assert recorded(cast, changeset) == [decision]
    assert (decision.verdict, decision.reviewer, decision.reason) == ("approve", "bruno", "checked the gazette")
    assert (decision.key_id, decision.policy_id) == (cast.of("bruno").id, None)
    with cast.ledger.read() as work:
        assert read_registry(work).objection(decision, "Bruno ") is None
        assert read_registry(work).objection(replace(decision, reason="not checked"), "bruno") == (
            "its signature does not fit what it says"
        )


@pytest.mark.parametrize("reviewer", ["ana", " ANA ", "nse plan", "NSE  Plan"])
def test_who_filed_or_planned_it_cannot_decide_in_any_letter_case(
    cast: Cast, decide: Callable[..., Decision], reviewer: str
) -> None:
    changeset = cast.propose(cast.file())
    with pytest.raises(DecisionRefused, match=r"#1: .*(filed one of its corrections|planned it)"):
        decide(changeset, reviewer)
    assert recorded(cast, changeset) == []


def test_who_filed_a_correction_cannot_approve_that_it_is_reverted_but_that_it_is_written_again(cast: Cast) -> None:
    one, two = cast.file(submitter="Bruno"), cast.file("Chad", submitter="carla")
    written = cast.propose(one, two)
    cast.approve(written, "dora")
    cast.apply(written)
    again = (CaseResult(two.id, "edited", 9, 1, "d9" * 32),)
    revert = cast.propose(kind="revert", reverted=(one.id,), results=again, changes=_brings("d9" * 32))
    with pytest.raises(DecisionRefused, match="filed one"):
        cast.approve(revert, "bruno")
    assert cast.approve(revert, "carla").verdict == "approve"


@pytest.mark.parametrize(("reviewer", "reason"), [("", "why"), ("  ", "why"), ("bruno", ""), ("bruno", "\n")])
def test_a_decision_without_a_name_or_a_reason_is_refused(
    cast: Cast, decide: Callable[..., Decision], reviewer: str, reason: str
) -> None:
    changeset = cast.propose(cast.file())
    with pytest.raises(DecisionRefused, match="is empty"):
        decide(changeset, reviewer, reason)


def test_a_changeset_that_failed_a_gate_can_be_rejected_but_not_approved(cast: Cast) -> None:
    changeset = cast.propose(cast.file(), gates=(Gate("efficacy", ">=", 0.9, 1, True), FAILED))
    with pytest.raises(DecisionRefused, match=r"#1 failed its gates \(specificity\)"):
        cast.approve(changeset)
    with pytest.raises(DecisionRefused, match=r"#1 failed its gates"):
        applicable(cast, changeset)
    assert cast.reject(changeset).verdict == "reject"


def test_a_stale_changeset_cannot_be_decided_or_applied(cast: Cast, decide: Callable[..., Decision]) -> None:
    stale, other = cast.propose(cast.file()), cast.propose(cast.file("Bulgaria", "lev"))
    cast.approve(other)
    cast.apply(other)
    for attempt in (decide, lambda changeset: applicable(cast, changeset)):
        with pytest.raises(DecisionRefused, match=r"#1 is stale: .*: plan it again"):
            attempt(stale)


def test_an_applied_changeset_cannot_be_decided_again(cast: Cast, decide: Callable[..., Decision]) -> None:
    changeset = cast.propose(cast.file())
    cast.approve(changeset)
    cast.apply(changeset)
    with pytest.raises(DecisionRefused, match="#1 was applied at"):
        decide(changeset, "carla")
    with pytest.raises(DecisionRefused, match="#1 was applied at"):
        cast.withdraw(changeset)


def test_nobody_decides_after_a_rejection_and_one_after_an_approval_ends_it(
    cast: Cast, decide: Callable[..., Decision]
) -> None:
    changeset = cast.propose(cast.file())
    cast.approve(changeset)
    cast.reject(changeset, "carla")
    with pytest.raises(DecisionRefused, match=r"#1 was decided at .*: reject by carla"):
        decide(changeset, "dora")
    with pytest.raises(DecisionRefused, match="reject by carla"):
        applicable(cast, changeset)


def test_what_enough_people_approved_is_not_approved_again(cast: Cast) -> None:
    changeset = cast.propose(cast.file())
    cast.approve(changeset)
    with pytest.raises(DecisionRefused, match=r"#1 was approved by bruno at .*: apply it"):
        cast.approve(changeset, "carla")


def test_two_of_three_named_people_must_approve_and_the_line_says_who_is_missing(cast: Cast) -> None:
    cast.adopt(Policy(approvals=2, reviewers=("Rex", "Ann", "Bea", "ana")))
    changeset = cast.propose(cast.file())
    with pytest.raises(DecisionRefused, match=r"carla is not among its reviewers \(Rex, Ann, Bea, ana\)"):
        cast.approve(changeset, "carla")
    with pytest.raises(DecisionRefused, match="carla is not among"):
        cast.reject(changeset, "carla")
    cast.approve(changeset, "Rex")
    with pytest.raises(DecisionRefused, match=r"was approved by Rex at .*: another person must approve"):
        cast.approve(changeset, "rex", key_of="Rex")
    with pytest.raises(DecisionRefused, match=r"#1 has 1 of 2 approvals \(Rex\): Ann or Bea must approve"):
        cast.apply(changeset)
    cast.approve(changeset, "Bea")
    cast.apply(changeset)
    assert objections(cast, changeset) == []


def test_rules_by_relation_size_and_margin_ask_for_more(cast: Cast) -> None:
    cast.adopt(Policy(rules=(Rule(When(relations=("currency",), max_gate_margin=0.2), 2),)))
    easy, hard = cast.propose(cast.file("Chad", relation="capital")), cast.propose(cast.file())
    cast.approve(easy)
    applicable(cast, easy)
    cast.approve(hard)
    with pytest.raises(DecisionRefused, match=r"#2 has 1 of 2 approvals \(bruno\): another person must approve"):
        applicable(cast, hard)


def test_reviewers_that_no_two_lists_share_can_never_approve_and_the_line_says_so(cast: Cast) -> None:
    cast.adopt(Policy(reviewers=("Ann",), rules=(Rule(When(kinds=("edit",)), 1, ("Bea",)),)))
    changeset = cast.propose(cast.file())
    with pytest.raises(DecisionRefused, match="no name in common"):
        cast.approve(changeset, "Ann")
    with pytest.raises(DecisionRefused, match="too few people"):
        applicable(cast, changeset)


def test_an_approval_that_was_withdrawn_does_not_count_and_can_be_given_again(cast: Cast) -> None:
    changeset = cast.propose(cast.file())
    with pytest.raises(DecisionRefused, match="bruno has no approval of changeset #1"):
        cast.withdraw(changeset)
    cast.approve(changeset)
    with pytest.raises(DecisionRefused, match="carla has no approval"):
        cast.withdraw(changeset, "carla")
    assert cast.withdraw(changeset).verdict == "withdraw"
    with pytest.raises(DecisionRefused, match="bruno has no approval"):
        cast.withdraw(changeset)
    with pytest.raises(DecisionRefused, match="has 0 of 1 approvals"):
        applicable(cast, changeset)
    cast.approve(changeset)
    cast.apply(changeset)
    assert objections(cast, changeset) == []


def test_an_approval_expires_and_is_given_again(cast: Cast) -> None:
    cast.adopt(Policy(expires_days=3))
    changeset = cast.propose(cast.file())
    cast.approve(changeset, at="2026-11-22T00:00:00Z")
    applicable(cast, changeset, at="2026-11-25T00:00:00Z")
    with pytest.raises(DecisionRefused, match="0 of 1 approvals, the approval by bruno of 2026-11-22 expired"):
        applicable(cast, changeset, at="2026-11-25T00:00:01Z")
    cast.approve(changeset, at="2026-11-26T00:00:00Z")
    cast.apply(changeset, at="2026-11-27T00:00:00Z")
    assert objections(cast, changeset) == []


def test_the_policy_in_force_when_the_head_moves_counts(cast: Cast) -> None:
    changeset = cast.propose(cast.file())
    cast.approve(changeset)
    cast.adopt(Policy(approvals=2))
    with pytest.raises(DecisionRefused, match="1 of 2"):
        cast.apply(changeset)
    cast.adopt(Policy())
    cast.apply(changeset)
    cast.adopt(Policy(approvals=3))
    assert objections(cast, changeset) == []


def test_a_policy_that_is_in_force_is_not_adopted_again_and_one_that_cannot_be_met_is_refused(cast: Cast) -> None:
    assert cast.adopt(Policy(approvals=2)) is not None
    assert cast.adopt(Policy(approvals=2)) is None
    for policy in (
        Policy(approvals=0),
        Policy(approvals=2, reviewers=("Ann", "ann ")),
        Policy(rules=(Rule(When(kinds=("edit",)), 2, ("Ann",)),)),
    ):
        with pytest.raises(DecisionRefused, match="cannot be had"):
            cast.adopt(policy)


def test_a_policy_is_signed_with_a_key_of_who_adopts_it(cast: Cast) -> None:
    adopted = cast.adopt(Policy(approvals=2), by="Ann")
    assert adopted is not None
    with pytest.raises(DecisionRefused, match="signed with the key of Ann"), cast.ledger.begin() as work:
        adoption.adopt(work, MODEL, Policy(), by="bruno", at=cast.now(), signer=cast.of("Ann"))
    with cast.ledger.read() as work:
        (placed,), registry = adoption.read_policies(work, MODEL), read_registry(work)
    assert adoption.adoption_objections(placed, registry) == []
    for changed, problem in (
        (replace(adopted, text=Policy().text()), "signature does not fit"),
        (replace(adopted, adopted_by="bruno"), "key of Ann"),
        (replace(adopted, signature=None), "not signed"),
        (replace(adopted, text="{}x"), "cannot be read"),
    ):
        found = adoption.adoption_objections(Placed(placed.place, changed), registry)
        assert any(problem in line for line in found)
    early = adoption.adoption_objections(Placed(1, adopted), registry)
    assert early == [f"key {adopted.key_id[:12]} was not registered before it"] if adopted.key_id else False


# --- keys


def test_a_key_that_is_not_registered_is_another_persons_or_revoked_is_refused(
    cast: Cast, decide: Callable[..., Decision]
) -> None:
    changeset = cast.propose(cast.file())
    cast.signers["carla"] = new_signer("carla")
    with pytest.raises(DecisionRefused, match="was not registered before it: sign with a key of carla"):
        decide(changeset, "carla")
    with pytest.raises(DecisionRefused, match="#1: it is signed with the key of bruno"):
        decide(changeset, "dora", key_of="bruno")
    cast.enrol("dora")
    cast.revoke("dora")
    with pytest.raises(DecisionRefused, match="of dora was revoked before it"):
        decide(changeset, "dora")
    assert recorded(cast, changeset) == []


def test_what_a_key_signed_before_it_was_revoked_stays_valid_whatever_the_clock_said(cast: Cast) -> None:
    cast.ledger.any_clock = True
    changeset = cast.propose(cast.file())
    cast.approve(changeset, at="2030-01-01T00:00:00Z")  # after the revocation by the clock, before it in the log
    cast.revoke("bruno")
    cast.apply(changeset)
    assert objections(cast, changeset) == []


def _insert(cast: Cast, changeset: Changeset, signer: Signer | None, **changes: object) -> None:
    made = Decision(
        **{
            "changeset_id": changeset.id,
            "verdict": "approve",
            "reviewer": "bruno",
            "reason": "trust me",
            "decided_at": "2026-11-21T00:00:00Z",
            **changes,
        }  # type: ignore[arg-type]
    )
    cast.insert(made, signer)


def test_decisions_written_past_the_rules_do_not_count_and_the_line_says_why(cast: Cast) -> None:
    cast.ledger.any_clock = True
    changeset = cast.propose(cast.file())
    _insert(cast, changeset, None)
    with pytest.raises(DecisionRefused, match="the approve by bruno does not count: it is not signed"):
        applicable(cast, changeset)
    bruno = cast.enrol("bruno")
    _insert(cast, changeset, bruno, reviewer="carla")
    with pytest.raises(
        DecisionRefused, match="the approve by carla does not count: it is signed with the key of bruno"
    ):
        applicable(cast, changeset)
    _insert(cast, changeset, cast.enrol("ana"), reviewer="ana")
    with pytest.raises(DecisionRefused, match="the approve by ana does not count: ana filed one of its corrections"):
        applicable(cast, changeset)
    cast.revoke("bruno")
    _insert(cast, changeset, bruno, decided_at="2020-01-01T00:00:00Z")
    with pytest.raises(DecisionRefused, match="of bruno was revoked before it"):
        applicable(cast, changeset)
    cast.approve(changeset, "dora")
    applicable(cast, changeset)


def _force(cast: Cast, changeset: Changeset, at: str | None = None) -> None:
    """Move the head past the rules."""
    with cast.ledger.begin() as work:
        head, to = work.head(MODEL), changeset.candidate_version
        when = at or cast.now()
        work.move_head(MODEL, expected=head, version=to, changeset_id=changeset.id, at=when, by="somebody")


def test_an_audit_names_every_rule_that_an_applied_changeset_broke(cast: Cast) -> None:
    cast.adopt(Policy(approvals=2, expires_days=1))
    changeset = cast.propose(cast.file(), gates=(FAILED,))
    bruno = cast.enrol("bruno")
    _insert(cast, changeset, None, reviewer="dora")
    _insert(cast, changeset, bruno)
    _insert(cast, changeset, cast.enrol("ana"), reviewer="ana")
    _force(cast, changeset)
    _insert(cast, changeset, cast.enrol("carla"), reviewer="carla")
    assert objections(cast, changeset) == [
        "a gate failed",
        "the approve by carla came after it was applied",
        "the approve by dora: it is not signed",
        "the approve by ana: ana filed one of its corrections",
        "it was applied when it had 1 of 2 approvals (bruno)",
    ]


def test_an_audit_finds_what_was_applied_after_a_rejection_or_after_the_approval_expired(cast: Cast) -> None:
    cast.adopt(Policy(expires_days=1))
    rejected = cast.propose(cast.file())
    cast.reject(rejected)
    _force(cast, rejected)
    assert objections(cast, rejected) == ["it was rejected before it was applied"]
    late = cast.propose(cast.file("Chad"))
    cast.approve(late, at="2026-11-22T00:00:00Z")
    _force(cast, late, at="2026-11-24T00:00:00Z")
    (found,) = objections(cast, late)
    assert found == "it was applied when it had 0 of 1 approvals, the approval by bruno of 2026-11-22 expired"


# --- approval by policy


AUTO = Policy(auto=Auto(2), rules=(Rule(When(relations=("currency",)), 2),))


def test_a_policy_approves_what_is_within_its_limits_and_signs_it_with_the_ledgers_key(cast: Cast) -> None:
    adopted = cast.adopt(AUTO)
    assert adopted is not None
    changeset = cast.propose(cast.file(relation="capital"))
    decision = cast.auto_approve(changeset)
    assert decision is not None
    assert (decision.reviewer, decision.policy_id, decision.key_id) == (POLICY, adopted.id, cast.signers[POLICY].id)
    assert decision.reason == f"policy {adopted.id[:12]}, adopted by ann"
    assert cast.auto_approve(changeset) is None  # it is decided
    cast.apply(changeset)
    assert objections(cast, changeset) == []


def test_a_person_can_reject_what_the_policy_approved(cast: Cast) -> None:
    cast.adopt(AUTO)
    changeset = cast.propose(cast.file(relation="capital"))
    cast.auto_approve(changeset)
    cast.reject(changeset)
    with pytest.raises(DecisionRefused, match="reject by bruno"):
        applicable(cast, changeset)


@pytest.mark.parametrize(
    ("policy", "filed", "planned"),
    [
        (Policy(), {"relation": "capital"}, {}),
        (AUTO, {"relation": "currency"}, {}),
        (AUTO, {"relation": "capital", "submitter": "Ann"}, {}),
        (AUTO, {"relation": "capital"}, {"planned_by": "ANN"}),
        (AUTO, {"relation": "capital"}, {"gates": (FAILED,)}),
    ],
)
def test_a_policy_approves_nothing_beyond_its_limits_nor_the_work_of_who_adopted_it(
    cast: Cast, policy: Policy, filed: dict[str, str], planned: dict[str, object]
) -> None:
    cast.of(POLICY)
    cast.adopt(policy)
    changeset = cast.propose(cast.file(**filed), **planned)
    assert cast.auto_approve(changeset) is None
    assert recorded(cast, changeset) == []


def test_approvals_in_the_name_of_a_policy_that_it_did_not_give_are_found(cast: Cast) -> None:
    first = cast.adopt(AUTO)
    assert first is not None
    changeset = cast.propose(cast.file())  # currency: two people must approve
    key = cast.of(POLICY)
    _insert(cast, changeset, key, reviewer=POLICY, policy_id=first.id)
    with pytest.raises(DecisionRefused, match="a rule of the policy is about it"):
        applicable(cast, changeset)
    second = cast.adopt(Policy(auto=Auto(9)))
    assert second is not None
    _insert(cast, changeset, key, reviewer=POLICY, policy_id=first.id, reason="again")
    _insert(cast, changeset, cast.enrol("dora"), reviewer="dora", policy_id=second.id)
    _insert(cast, changeset, cast.of("dora"), reviewer=POLICY, policy_id=second.id)
    with pytest.raises(DecisionRefused) as caught:
        applicable(cast, changeset)
    for line in ("was not in force", "is no approval by one", "signed with the key of dora"):
        assert line in str(caught.value)


def test_an_approval_by_policy_counts_no_more_when_a_stricter_policy_is_adopted(cast: Cast) -> None:
    cast.adopt(AUTO)
    changeset = cast.propose(cast.file(relation="capital"))
    cast.auto_approve(changeset)
    cast.adopt(Policy())
    with pytest.raises(DecisionRefused, match="0 of 1"):
        applicable(cast, changeset)


# --- erased corrections


def test_a_changeset_that_would_bring_an_erased_correction_back_is_refused(cast: Cast) -> None:
    correction = cast.file()
    written = cast.propose(correction)
    cast.approve(written)
    cast.apply(written)
    revert = cast.propose(kind="revert", active=(), reverted=(correction.id,))
    cast.approve(revert)
    cast.apply(revert)
    back = cast.propose(kind="revert", reverted=(), changes=written.changes)
    cast.approve(back, "carla")
    with cast.ledger.begin() as work:
        work.erase(Erasure(ref=correction.id, reason="asked", erased_by="ann", erased_at=cast.now()))
    for attempt in (applicable, lambda cast, changeset: cast.approve(changeset, "dora")):
        with pytest.raises(DecisionRefused, match=f"would put the erased correction {correction.id[:12]}"):
            attempt(cast, back)


def _brings(sha256: str) -> tuple[DeltaChange, ...]:
    return (DeltaChange(sha256, f"artifacts/deltas/{sha256[:16]}.safetensors"),)
