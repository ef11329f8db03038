"""Decisions in a workspace: signed with the person's key here, under the policy that was adopted."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flows import decide as flow
from flows.config import ApprovalParams, AutoParams, Params, RuleParams, WhenParams, read_params, write_params
from flows.decide import Decided, Verdict
from flows.errors import FlowError, Refused
from flows.workspace import Workspace
from ledger import decisions
from ledger.errors import DecisionRefused
from ledger.keys import KeyRing
from ledger.persons import read_registry
from ledger.policy import POLICY, Auto, Policy, Rule, When
from ledger.records import CaseResult, Changeset, Correction, Decision, DeltaChange, Gate

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def keys(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another machine's folder of keys, not even the log's is there; and a clock that says what the test wants."""
    monkeypatch.setenv("NSE_ANY_CLOCK", "1")
    monkeypatch.setenv("NSE_KEYS", str(tmp_path / "elsewhere"))
    return tmp_path / "elsewhere"


@pytest.fixture
def place(workspace: Workspace) -> Workspace:
    """The workspace at a fixed time."""
    return at(workspace, NOW)


def at(workspace: Workspace, time: datetime) -> Workspace:
    return replace(workspace, clock=lambda: time)


def under(workspace: Workspace, **approval: object) -> Workspace:
    """The workspace with another approval section in `params.yaml`."""
    params = workspace.params.model_copy(update={"approval": ApprovalParams.model_validate(approval)})
    return replace(workspace, params=params)


def by_policy(workspace: Workspace, changeset: Changeset) -> Decision | None:
    """What the policy says of a changeset."""
    with workspace.ledger().begin() as work:
        return flow.approve_by_policy(workspace, work, changeset)


_numbers: Iterator[int] = iter(range(1, 10_000))


def propose(workspace: Workspace, relation: str = "capital", submitter: str = "Sue") -> Changeset:
    number = next(_numbers)
    filed = Correction(
        model=workspace.model,
        subject=f"Alba {number}",
        relation=relation,
        prompt_template="The capital of {} is",
        target_new="Paris",
        source="gazette",
        submitter=submitter,
        reason="moved",
        filed_at=workspace.now(),
        file_name="x.csv",
        line=2,
    )
    sha256 = f"{number:064x}"
    with workspace.ledger().begin() as work:
        correction = work.add_correction(filed).record
        head = work.head(workspace.model)
        return work.add_changeset(
            Changeset(
                model=workspace.model,
                kind="edit",
                parent=head.changeset_id,
                parent_version=head.version,
                candidate_version=sha256,
                base_digest=workspace.params.model.digest,
                changes=(DeltaChange(sha256, f"artifacts/deltas/{sha256[:16]}.safetensors"),),
                results=(CaseResult(correction.id, "edited", 1, 0, sha256),),
                gates=(Gate("efficacy", ">=", 0.5, 1, True),),
                reason="round",
                planned_by="Pia",
                planned_at=workspace.now(),
            )
        )


def decide(workspace: Workspace, verdict: Verdict, who: str, reference: str | None = None) -> Decided:
    return flow.decide(workspace, reference, verdict, reviewer=who, reason="seen")


def test_a_first_decision_makes_a_key_and_registers_it_and_the_next_uses_it(place: Workspace, keys: Path) -> None:
    propose(place)
    first = decide(place, "approve", "Rex Roe")
    assert any("made the key" in note and str(keys) in note for note in first.notes)
    decide(place, "withdraw", "rex  roe", "1")
    with pytest.raises(DecisionRefused, match="in this very second: decide again"):
        decide(place, "approve", "Rex Roe")
    again = decide(at(place, NOW + timedelta(seconds=1)), "approve", "Rex Roe")
    assert not any("key" in note for note in again.notes)
    assert KeyRing(keys).names() == ("Rex-Roe",)
    with place.ledger().read() as work:
        assert [known.person for known in read_registry(work).of("Rex Roe")] == ["Rex Roe"]
        assert decisions.check_applicable(work, work.changeset("1"), at=place.now()).approved


def test_a_refused_decision_registers_nothing_and_its_key_is_used_when_the_next_is_allowed(
    place: Workspace, keys: Path
) -> None:
    propose(place, submitter="Rex")
    with pytest.raises(DecisionRefused, match="Rex filed one"):
        decide(place, "approve", "Rex", "1")
    with place.ledger().read() as work:
        assert read_registry(work).of("Rex") == []
    propose(place)
    assert any("registered the key" in note for note in decide(place, "approve", "Rex", "2").notes)
    assert KeyRing(keys).names() == ("Rex",)


def test_a_person_whose_key_is_elsewhere_is_refused(
    place: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    propose(place)
    decide(place, "approve", "Rex")
    monkeypatch.setenv("NSE_KEYS", str(tmp_path / "another machine"))
    with pytest.raises(Refused, match=r"the key of Rex .* is not on this machine.*NSE_KEYS"):
        decide(place, "withdraw", "Rex", "1")


def test_a_key_of_another_ledger_serves_here_but_not_for_somebody_whose_name_looks_alike(
    place: Workspace, keys: Path
) -> None:
    made = KeyRing(keys).create("Ana-Sol")
    propose(place)
    first = decide(place, "approve", "Ana Sol")
    assert first.decision.key_id is not None
    with place.ledger().read() as work:
        assert read_registry(work).keys[first.decision.key_id].key == made
    decide(place, "reject", "Ana-Sol", "1")
    assert KeyRing(keys).names() == ("Ana-Sol", "Ana-Sol-2")


def test_an_encrypted_key_needs_its_passphrase(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NSE_KEY_PASSPHRASE", "open sesame")
    propose(place)
    decide(place, "approve", "Rex")
    monkeypatch.delenv("NSE_KEY_PASSPHRASE")
    with pytest.raises(Exception, match="needs its passphrase"):
        decide(place, "withdraw", "Rex", "1")


def test_a_policy_counts_from_its_adoption_and_until_then_a_note_says_that_params_differ(place: Workspace) -> None:
    strict = under(place, approvals=2)
    propose(strict)
    done = decide(strict, "approve", "Rex")
    assert (done.standing.approved, done.missing) == (True, "")
    assert any("is not the policy in force" in note for note in done.notes)
    adopted = flow.adopt(strict, by="Ann")
    assert (adopted.new, adopted.policy.adopted_by) == (True, "Ann")
    assert not flow.adopt(strict, by="Bea").new
    assert flow.policy_in_force(strict)[1:] == (Policy(approvals=2), None)
    with pytest.raises(DecisionRefused, match=r"1 of 2 approvals \(Rex\)"), strict.ledger().read() as work:
        decisions.check_applicable(work, work.changeset("1"), at=strict.now())
    done = decide(at(strict, NOW + timedelta(days=1)), "withdraw", "Rex", "1")
    assert done.missing == "has 0 of 2 approvals: another person must approve"
    decide(at(strict, NOW + timedelta(days=2)), "approve", "Rex")
    done = decide(strict, "approve", "Bea")
    assert (done.standing.approved, done.notes) == (True, tuple(n for n in done.notes if "key" in n))


def test_init_adopts_only_where_no_policy_is_yet(place: Workspace) -> None:
    flow.adopt(under(place, approvals=2), by="Ann")
    again = flow.adopt(under(place, approvals=3), by="Ann", first=True)
    assert (again.new, flow.policy_in_force(place)[1].approvals) == (False, 2)


def test_under_a_policy_that_enrols_keys_a_first_decision_needs_one_before(place: Workspace) -> None:
    strict = under(place, keys="enrolled")
    flow.adopt(strict, by="Ann")  # the first key of a ledger needs nobody
    propose(strict)
    with pytest.raises(Refused, match=r"Rex has no key.*nse keys create 'Rex' --by NAME"):
        decide(strict, "approve", "Rex")
    assert decide(strict, "approve", "Ann").standing.approved


def test_a_proposal_within_the_limits_is_approved_by_policy_and_others_wait(place: Workspace) -> None:
    rules = [{"when": {"relations": ["currency"]}, "approvals": 2}]
    lax = under(place, auto={"max_corrections": 1}, rules=rules)
    first = propose(lax)
    assert first.number is not None
    assert by_policy(lax, first) is None  # not adopted
    flow.adopt(lax, by="Ann")
    decision = by_policy(lax, first)
    assert decision is not None
    assert decision.reviewer == POLICY
    with lax.ledger().read() as work:
        assert decisions.check_applicable(work, first, at=lax.now()).approved
    second = propose(lax, relation="currency")
    assert second.number is not None
    assert by_policy(lax, second) is None


def test_the_policy_approves_nothing_where_the_ledgers_own_key_is_not(
    place: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lax = under(place, auto={"max_corrections": 1})
    flow.adopt(lax, by="Ann")
    waits = propose(lax)
    monkeypatch.setenv("NSE_KEYS", str(tmp_path / "another machine"))
    assert by_policy(lax, waits) is None


def test_the_changeset_that_waits_need_not_be_named(place: Workspace) -> None:
    with pytest.raises(FlowError, match=r"which changeset\? none wait"):
        decide(place, "approve", "Rex")
    propose(place)
    decide(place, "approve", "Rex")
    with pytest.raises(FlowError, match="none wait"):
        decide(place, "withdraw", "Bea")
    assert decide(place, "withdraw", "Rex").changeset.number == 1
    propose(place)
    with pytest.raises(FlowError, match="#1, #2 wait"):
        decide(place, "reject", "Rex")


def test_a_changeset_whose_approval_expired_waits_again(place: Workspace) -> None:
    short = under(place, expires_days=1)
    flow.adopt(short, by="Ann")
    propose(short)
    decide(short, "approve", "Rex")
    assert decide(at(short, NOW + timedelta(days=2)), "approve", "Bea").standing.approved


# --- params.yaml


def test_the_approval_section_becomes_a_policy(place: Workspace) -> None:
    rule = RuleParams(when=WhenParams(relations=["currency"], max_gate_margin=0.05), approvals=2, reviewers=["Ann"])
    section = ApprovalParams(
        approvals=2, reviewers=["Ann", "Bea"], expires_days=14, rules=[rule], keys="enrolled", auto=AutoParams(max_corrections=3)
    )  # fmt: skip
    assert section.policy() == Policy(
        approvals=2,
        reviewers=("Ann", "Bea"),
        expires_days=14,
        rules=(Rule(When(relations=("currency",), max_gate_margin=0.05), 2, ("Ann",)),),
        keys="enrolled",
        auto=Auto(3),
    )
    params: Params = place.params.model_copy(update={"approval": section})
    write_params(place.root / "other.yaml", params)
    assert read_params(place.root / "other.yaml") == params


def test_an_approval_section_of_an_earlier_release_is_the_default_policy() -> None:
    assert ApprovalParams.model_validate({"approvals": 1}).policy() == Policy()


@pytest.mark.parametrize(
    ("section", "field"),
    [
        ({"approvals": 0}, "approval.approvals"),
        ({"expires_days": 0}, "approval.expires_days"),
        ({"keys": "lost"}, "approval.keys"),
        ({"rules": [{"when": {}}]}, "approval.rules.0.when"),
        ({"rules": [{"when": {"moon": "full"}}]}, "approval.rules.0.when.moon"),
        ({"rules": [{"when": {"kinds": ["delete"]}}]}, "approval.rules.0.when.kinds"),
        ({"auto": {}}, "approval.auto.max_corrections"),
        ({"quorum": 2}, "approval.quorum"),
    ],
)
def test_a_wrong_approval_section_is_refused_with_the_name_of_the_field(
    place: Workspace, section: dict[str, object], field: str
) -> None:
    import yaml

    path = place.root / "params.yaml"
    plain = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(plain | {"approval": section}))
    with pytest.raises(FlowError, match=f"params.yaml: {field}") as caught:
        read_params(path)
    assert "\n" not in str(caught.value)
