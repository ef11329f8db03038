"""The immutable records of the ledger, and the digests that identify them.

A record's identity is the SHA-256 of the canonical JSON of its content, so that anybody can recompute it. This module
knows nothing of databases (`tables`) and of what records mean together (`views`).
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ledger.errors import LedgerError

Phase = Literal["head", "candidate"]


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

    Leave `id` out when you make one: it is filled in. A record read from the ledger carries the stored id, and
    `id == digest()` is what `verify` checks.
    """

    __slots__ = ()
    beside_identity: ClassVar[frozenset[str]] = frozenset({"id"})
    id: str

    def digest(self) -> str:
        """Recompute the identity from the content."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]  # every subclass is a dataclass
        content = {f.name: getattr(self, f.name) for f in fields if f.name not in self.beside_identity}
        return digest_of({type(self).__name__: content})

    def __post_init__(self) -> None:
        """Fill in the identity."""
        if not self.id:
            object.__setattr__(self, "id", self.digest())


def _make_floats(record: Any, names: Iterable[str]) -> None:
    # REAL columns give floats back (1 -> 1.0, -0.0 -> 0.0); the digest must be the same before and after.
    for name in names:
        object.__setattr__(record, name, float(getattr(record, name)) + 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction(Identified):
    """What somebody asks for: this subject's relation has this object.

    Its id leaves out when and from which file it came, so that the same row filed twice is the same correction.
    """

    beside_identity: ClassVar[frozenset[str]] = frozenset({"id", "filed_at", "file_name", "line"})
    id: str = ""
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
        return self.subject.strip().casefold(), self.relation or self.prompt_template


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined(Identified):
    """A row that could not be filed, with the place and the reason."""

    beside_identity: ClassVar[frozenset[str]] = frozenset({"id", "file_name", "quarantined_at"})
    id: str = ""
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

    def __post_init__(self) -> None:
        """Make value and bound floats."""
        _make_floats(self, ("bound", "value"))


@dataclass(frozen=True, slots=True)
class CaseRow(Shown):
    """One prompt of the evaluation and what the model said."""

    kind: str
    phase: Phase
    case_id: str
    prompt: str
    expected: str
    probability: float
    generated: str
    passed: bool

    def __post_init__(self) -> None:
        """Make the probability a float."""
        _make_floats(self, ("probability",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Changeset(Identified):
    """A proposed set of active deltas, with all the evidence for it.

    `active` is the complete list in force if it is applied: weights = base + the sum of these, in this order.
    `number` is given by the ledger, counts from 1, and is not part of the identity.
    """

    beside_identity: ClassVar[frozenset[str]] = frozenset({"id", "number"})
    id: str = ""
    number: int | None = None
    model: str
    kind: Literal["edit", "revert"]
    parent_version: str
    candidate_version: str
    base_digest: str
    active: tuple[ActiveDelta, ...]
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision(Identified):
    """What a named person decided about a changeset, and why."""

    id: str = ""
    changeset_id: str
    verdict: Literal["approve", "reject"]
    reviewer: str
    reason: str
    decided_at: str


@dataclass(frozen=True, slots=True)
class HeadMove(Shown):
    """The weights in force from `moved_at` on. Position 0 is the base model and has no changeset."""

    model: str
    position: int
    version: str
    changeset_id: str | None
    moved_at: str
    moved_by: str


Record = Correction | Quarantined | Changeset | Decision | HeadMove
