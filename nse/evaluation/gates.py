"""Gates: bounds on metrics, absolute or relative to the head, that block a candidate or warn about it. Measures nothing."""

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from nse.errors import SuiteError
from nse.evaluation.probes import IN_CHAT, Kind

Severity = Literal["block", "warn"]
Against = Literal["absolute", "head"]
COMPARE = {">=": operator.ge, "<=": operator.le}
KINDS = frozenset(get_args(Kind))
_OF_BEFORE: tuple[Kind, ...] = ("retention", "untouched", "kept")
OF_CORRECTIONS = KINDS - {*_OF_BEFORE, *(IN_CHAT[kind] for kind in _OF_BEFORE), "canary"}
"""Kinds of probes that belong to the corrections under judgement; the others are about what the model knew before."""
WAYS = ("_generation", "_accuracy")
ENDS = ("_low", "_high")
"""Of the interval of retention, where a sample of the past corrections is asked."""
METRICS = frozenset(f"{kind}{way}" for kind in KINDS for way in ("", *WAYS)) | {
    *(f"retention{way}{end}" for way in ("", *WAYS) for end in ENDS),
    *("perplexity", "perplexity_ratio", "delta_norm", "hidden_drift", "hidden_cosine", "text_entropy"),
}
_NUMBERED = re.compile(r"delta_norm\.[\w.]+|harness\.[\w-]+\.[\w-]+")
_BOUND = re.compile(r"^(>=|<=)\s*(-?(?:\d+\.?\d*|\.\d+))$")
_DIGITS = 12
"""Decimals to which a bound against the head is rounded, so that 0.93 - 0.02 is 0.91."""


class Measured(Protocol):
    """Anything with metrics."""

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics by name."""
        ...


@dataclass(frozen=True, slots=True)
class Gate:
    """A bound on a metric.

    Attributes:
        name: The metric.
        op: `>=` or `<=`: `value op bound` must hold.
        bound: The bound; of a gate against the head what the candidate may differ from the head's value.
        severity: Whether a candidate that fails it is stopped, or people are told.
        against: What the bound is counted from: zero, or the head's value.
    """

    name: str
    op: str
    bound: float
    severity: Severity = "block"
    against: Against = "absolute"

    def __str__(self) -> str:
        """The gate as people read it."""
        return f"{self.name} {self.op} {self.bound:g}{'' if self.against == 'absolute' else ' against head'}"


@dataclass(frozen=True, slots=True)
class GateResult:
    """A gate with what was measured; the bound is absolute, whatever it was counted from."""

    name: str
    op: str
    bound: float
    value: float
    passed: bool
    severity: Severity = "block"


def gate_results(gates: tuple[Gate, ...], candidate: Measured, head: Measured | None) -> tuple[GateResult, ...]:
    """Compares metrics with gates, less those that do not apply (`not_measured`)."""
    return tuple(result for gate in gates if (result := _result(gate, candidate, head)) is not None)


def not_measured(gates: tuple[Gate, ...], candidate: Measured, head: Measured | None) -> tuple[Gate, ...]:
    """The gates that do not apply: on what was not measured, for there was nothing to ask, or against a head where it was not."""
    return tuple(gate for gate in gates if _result(gate, candidate, head) is None)


def _result(gate: Gate, candidate: Measured, head: Measured | None) -> GateResult | None:
    start = 0.0 if gate.against == "absolute" else (head.metrics if head is not None else {}).get(gate.name)
    if start is None or gate.name not in candidate.metrics:
        return None
    bound = gate.bound if gate.against == "absolute" else round(start + gate.bound, _DIGITS)
    value = candidate.metrics[gate.name]
    return GateResult(gate.name, gate.op, bound, value, COMPARE[gate.op](value, bound), gate.severity)


def kind_of(metric: str) -> str | None:
    """The kind of probes that a metric is a share of, or an end of its interval; None for others, such as perplexity."""
    kind = metric
    for suffix in (*ENDS, *WAYS):
        kind = kind.removesuffix(suffix)
    return kind if kind in KINDS else None


def read_gates(name: str, data: Any, where: str) -> list[Gate]:
    """The gates on one metric: a bound, a mapping of `bound`, `severity` and `against`, or a list of those.

    Raises:
        SuiteError: If the metric is unknown or a gate is malformed; `where` is the file.
    """
    if name not in METRICS and not _NUMBERED.fullmatch(name):
        names = f"{', '.join(sorted(METRICS))}, delta_norm.LAYER or harness.TASK.METRIC"
        raise SuiteError(f"{where}: gate {name!r} is on no metric: use one of {names}")
    return [_gate(name, one, where) for one in (data if isinstance(data, list) else [data])]


def _gate(name: str, data: Any, where: str) -> Gate:
    given: Mapping[str, Any] = data if isinstance(data, Mapping) else {"bound": data}
    if unknown := set(given) - {"bound", "severity", "against"}:
        raise SuiteError(f"{where}: gate {name}: key {min(unknown)!r} is unknown: use bound, severity, against")
    bound = str(given.get("bound", ""))
    match = _BOUND.match(bound.strip())
    if match is None:
        raise SuiteError(f'{where}: gate {name}: {bound!r} is no bound: write e.g. ">= 0.9" or "<= 1.1"')
    severity, against = given.get("severity", "block"), given.get("against", "absolute")
    if severity not in get_args(Severity):
        raise SuiteError(f"{where}: gate {name}: severity is {severity!r}: write block or warn")
    if against not in get_args(Against):
        raise SuiteError(f"{where}: gate {name}: against is {against!r}: write absolute or head")
    return Gate(name, match[1], float(match[2]), severity, against)
