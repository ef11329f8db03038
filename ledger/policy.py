"""The approval policy of a model: how many people must approve what, for how long that counts, what needs nobody.

Pure rules over records. `adoption` puts a policy in force, `decisions` applies it, when a decision is made and again to
what was applied.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol, TypeVar

from ledger.errors import LedgerError
from ledger.records import ERASED, Decision, Gate, canonical_json

T = TypeVar("T")
POLICY = "policy"
"""The reviewer of a changeset that the policy approved. No person can have this name."""
_A = {"edit": "an edit", "revert": "a revert", "consolidate": "a consolidation"}


class Judged(Protocol):
    """What a policy looks at in a changeset."""

    @property
    def kind(self) -> str:
        """edit, revert or consolidate."""

    @property
    def planned_by(self) -> str:
        """Who planned it."""

    @property
    def gates(self) -> tuple[Gate, ...]:
        """Its gates."""

    @property
    def reverted(self) -> tuple[str, ...]:
        """The corrections whose force a revert or a consolidation changes."""

    @property
    def correction_ids(self) -> tuple[str, ...]:
        """Every correction it touches."""


def concerned(changeset: Judged) -> tuple[str, ...]:
    """Return the corrections whose force a changeset changes: whose work it is, and what rules about relations look at.

    What a revert or a consolidation writes again stays in force as it was, so it is not among them.
    """
    return changeset.correction_ids if changeset.kind == "edit" else changeset.reverted


@dataclass(frozen=True, slots=True)
class When:
    """Which changesets a rule is about: those that meet every condition given here.

    Attributes:
        relations: One of its corrections has one of these relations; "" stands for none.
        kinds: It is an edit, a revert or a consolidation.
        min_corrections: It changes the force of at least as many.
        max_gate_margin: A gate passed by no more than this, in its metric's own unit; or there was no gate.
    """

    relations: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    min_corrections: int | None = None
    max_gate_margin: float | None = None

    def matches(self, changeset: Judged, relations: Sequence[str | None]) -> bool:
        """Tell whether a changeset whose corrections have these relations is one of them."""
        gates = changeset.gates
        return (
            (not self.kinds or changeset.kind in self.kinds)
            and (not self.relations or any((relation or "") in self.relations for relation in relations))
            and (self.min_corrections is None or len(concerned(changeset)) >= self.min_corrections)
            # written so that a margin that is no number counts as thin
            and (self.max_gate_margin is None or not (gates and all(g.margin > self.max_gate_margin for g in gates)))
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """What some changesets need: so many approvals, of these people if any are named."""

    when: When
    approvals: int = 1
    reviewers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Auto:
    """Which changesets need nobody: those that keep every limit, and that no rule is about.

    Attributes:
        max_corrections: They change the force of no more.
        kinds: edit, revert, consolidate.
        relations: All their corrections have one of these relations ("": none); any if empty.
        min_gate_margin: There are gates, and each passed by at least this.
    """

    max_corrections: int
    kinds: tuple[str, ...] = ("edit",)
    relations: tuple[str, ...] = ()
    min_gate_margin: float | None = None


@dataclass(frozen=True, slots=True)
class Requirement:
    """What one changeset needs: `approvals` of different people, who are among `reviewers` (None: anybody)."""

    approvals: int
    reviewers: tuple[str, ...] | None

    def allows(self, person: str) -> bool:
        """Tell whether this person may decide, as far as the policy goes."""
        return self.reviewers is None or same_person(person) in {same_person(name) for name in self.reviewers}


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules in force; the default is one approval, of anybody else, that does not expire.

    Attributes:
        approvals: How many people must approve.
        reviewers: Who may decide; empty: anybody.
        expires_days: For how many days an approval counts; for ever if None.
        rules: What some changesets need beyond that.
        keys: Whether a person's first decision registers a key of that person, or keys are registered before.
        auto: What the policy approves itself; nothing if None.
    """

    approvals: int = 1
    reviewers: tuple[str, ...] = ()
    expires_days: int | None = None
    rules: tuple[Rule, ...] = ()
    keys: Literal["first-use", "enrolled"] = "first-use"
    auto: Auto | None = None

    def text(self) -> str:
        """Return the policy as the ledger holds it: canonical JSON."""
        return canonical_json(self)

    def matching(self, changeset: Judged, relations: Sequence[str | None]) -> tuple[Rule, ...]:
        """Return the rules that are about a changeset whose corrections have these relations."""
        return tuple(rule for rule in self.rules if rule.when.matches(changeset, relations))

    def required(self, changeset: Judged, relations: Sequence[str | None]) -> Requirement:
        """Return what a changeset needs: of all that applies to it the most approvals, of people whom every list names."""
        matching = self.matching(changeset, relations)
        reviewers: tuple[str, ...] | None = None
        for names in (self.reviewers, *(rule.reviewers for rule in matching)):
            if names:
                listed = Requirement(1, names)
                reviewers = names if reviewers is None else tuple(name for name in reviewers if listed.allows(name))
        return Requirement(max(self.approvals, *(rule.approvals for rule in matching), 1), reviewers)

    def objections_to_auto(self, changeset: Judged, relations: Sequence[str | None]) -> list[str]:
        """Return why the policy does not approve a changeset by itself; nothing if it does."""
        if self.auto is None:
            return ["the policy approves nothing by itself"]
        limit, count, margin = self.auto, len(concerned(changeset)), self.auto.min_gate_margin
        other = sorted({r or "" for r in relations if r != ERASED} - set(limit.relations)) if limit.relations else []
        thin = (
            not changeset.gates or not all(gate.margin >= margin for gate in changeset.gates)
            if margin is not None
            else False
        )
        found = {
            f"it is {_A.get(changeset.kind, changeset.kind)}": changeset.kind not in limit.kinds,
            f"it is about {count} corrections, the limit is {limit.max_corrections}": count > limit.max_corrections,
            f"it is about the relation {(other or [''])[0]!r}": bool(other),
            f"a gate passed by less than {margin}": thin,
            "a gate failed": not all(gate.passed for gate in changeset.gates),
            "a rule of the policy is about it": bool(self.matching(changeset, relations)),
        }
        return [objection for objection, holds in found.items() if holds]


@dataclass(frozen=True, slots=True)
class Standing:
    """What the decisions about a changeset come to.

    Attributes:
        approvals: Those that count: one a person, not withdrawn, not expired, by people who may decide.
        needed: How many there must be.
        rejected: Whether somebody rejected it.
        expired: Approvals that counted once.
        reviewers: Who may decide; None: anybody who neither planned nor filed it.
    """

    approvals: tuple[Decision, ...]
    needed: int
    rejected: bool
    expired: tuple[Decision, ...] = ()
    reviewers: tuple[str, ...] | None = None

    @property
    def approved(self) -> bool:
        """Whether enough people approved, and nobody rejected."""
        return not self.rejected and len(self.approvals) >= self.needed

    def lack(self, *, barred: Iterable[str] = ()) -> tuple[str, str]:
        """Return what a changeset that is not approved has, and who must do what; people `barred` cannot help."""
        names = ", ".join(decision.reviewer for decision in self.approvals)
        has = f"has {len(self.approvals)} of {self.needed} approvals" + (f" ({names})" if names else "")
        if self.expired:
            last = self.expired[-1]
            has += f", the approval by {last.reviewer} of {last.decided_at[:10]} expired"
        if self.reviewers is None:
            return has, "another person must approve"
        out = {same_person(name) for name in (*barred, *(decision.reviewer for decision in self.approvals))}
        left = [name for name in self.reviewers if same_person(name) not in out]
        if len(left) < self.needed - len(self.approvals):
            return has, "the policy names too few people who may: adopt another policy"
        return has, f"{' or '.join(left)} must approve"


def read_policy(text: str) -> Policy:
    """Return the policy that a record holds as JSON.

    Raises:
        LedgerError: It holds none that this program knows.
    """
    try:
        plain = json.loads(text)
        rules = tuple(_made(Rule, {**rule, "when": _made(When, rule["when"])}) for rule in plain.get("rules", ()))
        auto = plain.get("auto")
        policy = _made(Policy, {**plain, "rules": rules, "auto": None if auto is None else _made(Auto, auto)})
        if policy.text() != text:
            raise ValueError("it is not canonical")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LedgerError(f"a policy in the ledger cannot be read ({error})", "use a newer program") from error
    return policy


def _made(kind: type[T], plain: Mapping[str, Any]) -> T:
    """One object of JSON; canonical JSON has floats as strings."""
    known = {field.name: str(field.type) for field in fields(kind)}  # type: ignore[arg-type]  # they are dataclasses
    values: dict[str, Any] = {}
    for name, value in plain.items():
        if name not in known:
            raise ValueError(f"it has {name}")
        wanted = known[name]
        if "tuple" in wanted:
            right = isinstance(value, list | tuple) and all(isinstance(v, str) or name == "rules" for v in value)
            values[name] = tuple(value) if right else ()
        else:
            right = "int" not in wanted or isinstance(value, int | None)
            values[name] = float(value) if "float" in wanted else value
        if not right:
            raise ValueError(f"{name} has another type")
    return kind(**values)


def standing(
    changeset: Judged, relations: Sequence[str | None], decisions: Iterable[Decision], policy: Policy, *, at: str | None
) -> Standing:
    """Return what decisions, in order, come to under a policy.

    Args:
        changeset: What they are about.
        relations: The relations of its corrections.
        decisions: Every one about it.
        policy: The one in force.
        at: The time, if approvals shall expire.
    """
    required = policy.required(changeset, relations)
    last: dict[str, Decision] = {}
    rejected = False
    for decision in decisions:
        rejected = rejected or decision.verdict == "reject"
        last.pop(same_person(decision.reviewer), None)  # the one that stands comes in its own order
        last[same_person(decision.reviewer)] = decision
    given = [decision for decision in last.values() if decision.verdict == "approve"]
    automatic = [d for d in given if d.policy_id is not None and not policy.objections_to_auto(changeset, relations)]
    counted = automatic or [d for d in given if d.policy_id is None and required.allows(d.reviewer)]
    expired = tuple(decision for decision in counted if _expired(decision, policy.expires_days, at))
    return Standing(
        approvals=tuple(decision for decision in counted if decision not in expired),
        needed=1 if automatic else required.approvals,
        rejected=rejected,
        expired=expired,
        reviewers=required.reviewers,
    )


def _expired(decision: Decision, days: int | None, at: str | None) -> bool:
    if days is None or at is None:
        return False
    try:
        return datetime.fromisoformat(at) > datetime.fromisoformat(decision.decided_at) + timedelta(days=days)
    except (ValueError, TypeError, OverflowError):
        return True  # a time that is none was written past the ledger


def reviewer_objections(changeset: Judged, submitters: Iterable[str], decision: Decision) -> list[str]:
    """Return what is wrong with who decided and with what reason, whatever the state of the ledger.

    `submitters` filed the corrections that the changeset is about (see `concerned`).
    """
    problems = [f"the {name} is empty" for name in ("reviewer", "reason") if not getattr(decision, name).strip()]
    reviewer = same_person(decision.reviewer)
    if reviewer == POLICY and decision.policy_id is None:
        problems.append(f"no person can be called {decision.reviewer}")
    if reviewer == same_person(changeset.planned_by):
        problems.append(f"{decision.reviewer} planned it")
    if reviewer in {same_person(submitter) for submitter in submitters}:
        problems.append(f"{decision.reviewer} filed one of its corrections")
    return problems


def same_person(name: str) -> str:
    """Return what two spellings of one person's name share."""
    return " ".join(name.split()).casefold()
