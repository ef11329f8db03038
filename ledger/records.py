"""The immutable records of the ledger, and the digests that identify them.

A record's identity is the SHA-256 of the canonical JSON of its content, so that anybody can recompute it. This module
knows nothing of databases (`tables`) and of what records mean together (`views`).
"""

import copy
import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from ledger.errors import LedgerError

Phase = Literal["head", "candidate"]
Kind = Literal["edit", "revert", "consolidate"]
"""Of a changeset: new corrections are written, some go out of force, or all in force are solved in one shot from the base."""


def canonical_json(value: Any) -> str:
    """Write `value` as the one JSON text that digests are taken of.

    Keys sorted, no spaces, no escapes for Unicode; a float is a string holding its `repr`, since JSON leaves open how a
    number is written; dataclasses are objects, tuples arrays. What is None is left out of an object, so that a later
    release can add an optional field without giving old records other digests.
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest_of(value: Any) -> str:
    """Return the SHA-256 (hex) of the canonical JSON of `value`.

    Raises:
        LedgerError: A text in it is not valid Unicode (a lone surrogate), so it has no bytes to digest.
    """
    try:
        return hashlib.sha256(canonical_json(value).encode()).hexdigest()
    except UnicodeEncodeError as error:
        raise LedgerError("a text holds half of a surrogate pair", "correct the character in the input") from error


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return repr(float(value))  # float(): a NumPy scalar is a float too, but has another repr
    if dataclasses.is_dataclass(value):
        return _plain({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


class Shown:
    """Anything that can be shown as JSON (`--json`)."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the value as plain dicts, lists and scalars; a float that is not a number becomes None."""
        shown = _shown(self)
        assert isinstance(shown, dict)
        return shown


def _shown(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if dataclasses.is_dataclass(value):
        return {f.name: _shown(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _shown(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(item) for item in value]
    return value


class Identified(Shown):
    """A record named by the digest of its content.

    Leave `id` out when you make one: it is filled in (of one with erasable text, once it is salted). A record read from
    the ledger carries the stored id, and `id == digest()` is what `verify` checks.
    """

    __slots__ = ()
    beside_identity: ClassVar[frozenset[str]] = frozenset({"id"})
    id: str

    def digest(self) -> str:
        """Recompute the identity from the content."""
        return digest_of({type(self).__name__: self.content()})

    def content(self) -> dict[str, Any]:
        """Return what the identity is taken of."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]  # every subclass is a dataclass
        return {f.name: getattr(self, f.name) for f in fields if f.name not in self.beside_identity}

    def __post_init__(self) -> None:
        """Fill in the identity."""
        if not self.id:
            object.__setattr__(self, "id", self.digest())


class Erasable(Shown):
    """A record some of whose text can be erased: what is digested, logged and signed holds a salted hash of it instead.

    Leave `salt` and `text_hash` out when you make one; `salted` fills them in, the ledger does that when it records it.
    After an erasure the texts read `ERASED` and the salt is empty, and the hash is still what it was.
    """

    __slots__ = ()
    erasable: ClassVar[tuple[str, ...]] = ()
    salt: str
    text_hash: str

    @property
    def erased(self) -> bool:
        """Whether the text is gone."""
        return not self.salt and bool(self.text_hash)

    def hash_text(self) -> str:
        """Recompute the salted hash of the text."""
        return digest_of({"Text": {"salt": self.salt, **{name: getattr(self, name) for name in self.erasable}}})

    def salted(self: "E", salt: str) -> "E":
        """Return the record with its text's hash under `salt` (32 hexadecimal digits), and its identity if it has one."""
        found = copy.copy(self)
        object.__setattr__(found, "salt", salt)
        object.__setattr__(found, "text_hash", found.hash_text())
        if isinstance(found, Identified):
            object.__setattr__(found, "id", found.digest())
        return found

    def text_digest(self) -> str:
        """Digest of content and text without the salt: equal for two rows that say the same. Erased with the text."""
        assert isinstance(self, Identified)
        content = {name: value for name, value in self.content().items() if name != "text_hash"}
        return digest_of({"Said": {**content, **{name: getattr(self, name) for name in self.erasable}}})

    def __post_init__(self) -> None:
        """Fill in the identity of one that has its text's hash."""
        if isinstance(self, Identified) and self.text_hash and not self.id:
            object.__setattr__(self, "id", self.digest())


E = TypeVar("E", bound=Erasable)
ERASED = "[erased]"
"""Stands where an erased text was."""


def _make_floats(record: Any, names: Iterable[str]) -> None:
    # REAL columns give floats back (1 -> 1.0, -0.0 -> 0.0); the digest must be the same before and after.
    for name in names:
        object.__setattr__(record, name, float(getattr(record, name)) + 0.0)


def subject_key(subject: str) -> str:
    """Return what two spellings of one subject share: letter case and runs of spaces do not matter."""
    return " ".join(subject.split()).casefold()


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction(Erasable, Identified):
    """What somebody asks for: this subject's relation has this object.

    Its id leaves out when and from which file it came. Which fact it is about, and why, can be erased.
    """

    erasable: ClassVar[tuple[str, ...]] = (
        *("subject", "relation", "prompt_template", "target_new", "target_true", "source", "reason"),
    )
    beside_identity: ClassVar[frozenset[str]] = frozenset({"id", "salt", "filed_at", "file_name", "line", *erasable})
    id: str = ""
    salt: str = ""
    text_hash: str = ""
    model: str
    subject: str
    relation: str | None
    prompt_template: str
    target_new: str
    target_true: str | None = None
    source: str
    submitter: str
    reason: str
    effective_date: str | None = None
    supersedes: str | None = None
    filed_at: str
    file_name: str
    line: int

    @property
    def fact(self) -> tuple[str, str]:
        """What it is about: two corrections of one fact with different targets cannot both hold."""
        return subject_key(self.subject), self.relation or self.prompt_template


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined(Erasable, Identified):
    """A row that could not be filed, with the place and the reason (which may quote the row)."""

    erasable: ClassVar[tuple[str, ...]] = ("reason", "row_text")
    beside_identity: ClassVar[frozenset[str]] = frozenset({"id", "salt", "file_name", "quarantined_at", *erasable})
    id: str = ""
    salt: str = ""
    text_hash: str = ""
    file_name: str
    file_digest: str
    line: int
    field: str
    reason: str
    row_text: str
    quarantined_at: str


@dataclass(frozen=True, slots=True)
class ActiveDelta(Shown):
    """A delta in force, less the columns of the corrections `dropped` from it. `path` is relative to the workspace."""

    sha256: str
    path: str
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DeltaChange(Shown):
    """What a changeset does to one delta: from then on it is in force less `dropped`, or not at all (`removed`)."""

    sha256: str
    path: str
    dropped: tuple[str, ...] = ()
    removed: bool = False


@dataclass(frozen=True, slots=True)
class CaseResult(Shown):
    """How the editor fared with one correction.

    `delta` is the SHA-256 of the new delta that holds the correction's columns; it may be left out when the changeset
    brings one new delta only, as every edit does, but not when a replay brings several.
    """

    correction_id: str
    status: Literal["edited", "skipped", "unconverged"]
    residual_before: float
    residual_after: float
    delta: str | None = None

    def __post_init__(self) -> None:
        """Make the residuals floats."""
        _make_floats(self, ("residual_before", "residual_after"))


@dataclass(frozen=True, slots=True)
class Metric(Shown):
    """One number of the evaluation, of the head or of the candidate."""

    name: str
    phase: Phase
    value: float

    def __post_init__(self) -> None:
        """Make the value a float."""
        _make_floats(self, ("value",))


@dataclass(frozen=True, slots=True)
class Gate(Shown):
    """One condition on the candidate's metrics: `value op bound`."""

    name: str
    op: Literal[">=", "<="]
    bound: float
    value: float
    passed: bool

    @property
    def margin(self) -> float:
        """By how much it passed, in the metric's own unit; negative when it failed."""
        return self.value - self.bound if self.op == ">=" else self.bound - self.value

    def __post_init__(self) -> None:
        """Make value and bound floats."""
        _make_floats(self, ("bound", "value"))


@dataclass(frozen=True, slots=True)
class CaseRow(Erasable):
    """One prompt of the evaluation and what the model said. `case_id` names a correction, or a case of the suite."""

    erasable: ClassVar[tuple[str, ...]] = ("prompt", "expected", "generated")
    kind: str
    phase: Phase
    case_id: str
    prompt: str
    expected: str
    probability: float
    generated: str
    passed: bool
    salt: str = ""
    text_hash: str = ""

    def __post_init__(self) -> None:
        """Make the probability a float."""
        _make_floats(self, ("probability",))


Part = DeltaChange | CaseResult | Metric | Gate | CaseRow
PARTS: dict[str, type] = {
    "changes": DeltaChange,
    "results": CaseResult,
    "metrics": Metric,
    "gates": Gate,
    "cases": CaseRow,
}
"""The tuples of a changeset, by field name."""
_DIGESTED = {
    kind: tuple(f.name for f in dataclasses.fields(kind) if f.name not in (*getattr(kind, "erasable", ()), "salt"))
    for kind in PARTS.values()
}
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def part_digest(part: Part) -> str:
    """Return the SHA-256 of one part: of the JSON array of its class's name and its fields, in order, less what is erasable.

    Floats are strings holding their `repr`, None is null.
    """
    kind = type(part)
    values = [getattr(part, name) for name in _DIGESTED[kind]]
    plain = [repr(value) if type(value) is float else value for value in values]
    return hashlib.sha256(_encode([kind.__name__, *plain]).encode()).hexdigest()


def parts_digest(digests: Iterable[str]) -> str:
    """Return the digest of a tuple of parts: SHA-256 of the concatenated digests, in order."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Changeset(Identified):
    """A proposed change of the set of active deltas, with all the evidence for it.

    `parent` is the changeset that led to the head it was planned on (None: the base), `changes` what it does to the
    deltas in force there. Its identity covers every part, and so, through the parents, the whole set in force.
    `number` is given by the ledger, counts from 1, and is not part of the identity.
    """

    beside_identity: ClassVar[frozenset[str]] = frozenset({"id", "number"})
    id: str = ""
    number: int | None = None
    model: str
    kind: Kind
    mode: Literal["drop", "replay"] | None = None
    method: str = "nse"
    parent: str | None
    parent_version: str
    candidate_version: str
    base_digest: str
    plan_digest: str = ""
    changes: tuple[DeltaChange, ...]
    results: tuple[CaseResult, ...] = ()
    reverted: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = ()
    gates: tuple[Gate, ...] = ()
    cases: tuple[CaseRow, ...] = ()
    provenance: dict[str, str] = field(default_factory=dict)
    reason: str
    planned_by: str
    planned_at: str

    @property
    def gate_passed(self) -> bool:
        """Whether every gate passed."""
        return all(gate.passed for gate in self.gates)

    @property
    def correction_ids(self) -> tuple[str, ...]:
        """Every correction it touches: those edited or skipped, then those reverted."""
        return tuple(dict.fromkeys((*(result.correction_id for result in self.results), *self.reverted)))

    def content(self) -> dict[str, Any]:
        """Return what the identity is taken of: the fields, of each tuple of parts its digest."""
        digests = {name: parts_digest(map(part_digest, getattr(self, name))) for name in PARTS}
        return {**Identified.content(self), **digests}


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision(Identified):
    """What a named person decided about a changeset, and why; or that a policy approved it (`policy_id`).

    `signature` is over the decision's content (`statement`), by the key `key_id`.
    """

    beside_identity: ClassVar[frozenset[str]] = frozenset({"id", "signature"})
    id: str = ""
    changeset_id: str
    verdict: Literal["approve", "reject", "withdraw"]
    reviewer: str
    reason: str
    decided_at: str
    policy_id: str | None = None
    key_id: str | None = None
    signature: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyAdopted(Identified):
    """The approval policy that a person put in force for a model, as canonical JSON, signed with that person's key."""

    beside_identity: ClassVar[frozenset[str]] = frozenset({"id", "signature"})
    id: str = ""
    model: str
    text: str
    adopted_by: str
    adopted_at: str
    key_id: str | None = None
    signature: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyEvent(Identified):
    """A signing key of a person was registered or revoked. `public_key` is the verifier key of `ledger.notes`."""

    id: str = ""
    action: Literal["register", "revoke"]
    key_id: str
    person: str
    public_key: str
    reason: str
    at: str
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure(Identified):
    """The text of a correction or of a quarantined row (`ref`) was erased, on whose word and why."""

    id: str = ""
    ref: str
    reason: str
    erased_by: str
    erased_at: str


@dataclass(frozen=True, slots=True)
class HeadMove(Shown):
    """The weights in force from `moved_at` on. Position 0 is the base model and has no changeset."""

    model: str
    position: int
    version: str
    changeset_id: str | None
    moved_at: str
    moved_by: str


Record = Correction | Quarantined | Changeset | Decision | HeadMove | KeyEvent | PolicyAdopted | Erasure


def statement(record: Identified) -> bytes:
    """Return the bytes that a signature of `record` is over: the canonical JSON of its content under its class's name."""
    return canonical_json({type(record).__name__: record.content()}).encode()
