"""Regression suites: what a model must still know, and the gates that a changeset has to pass. A YAML file and what it names."""

import csv
import io
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, get_args

import yaml

from nse.errors import RequestError, SuiteError
from nse.evaluation.probes import Kind, KnownFact, asking_order
from nse.fingerprint import file_digest, json_digest
from nse.request import read_text
from nse.subjects import HeldFact

BOUND = re.compile(r"^(>=|<=)\s*(\d+\.?\d*|\.\d+)$")
COMPARE = {">=": operator.ge, "<=": operator.le}
T = TypeVar("T", bound=list[Any] | dict[Any, Any])
METRICS = {f"{kind}{way}" for kind in get_args(Kind) for way in ("", "_generation")} | {
    "perplexity",
    "perplexity_ratio",
}
KEYS = {"schema", "facts", "templates", "text", "neighbours", "untouched", "canaries", "gates"}


class Measured(Protocol):
    """Anything with metrics."""

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics by name."""
        ...


@dataclass(frozen=True, slots=True)
class Canary:
    """A prompt whose answer must never change."""

    prompt: str
    equals: str


@dataclass(frozen=True, slots=True)
class Gate:
    """A bound on a metric: `value op bound` must hold."""

    name: str
    op: str
    bound: float


@dataclass(frozen=True, slots=True)
class GateResult:
    """A gate with what was measured."""

    name: str
    op: str
    bound: float
    value: float
    passed: bool


@dataclass(frozen=True, slots=True)
class Suite:
    """What to ask and what to demand; `files` are the suite file and all it names, `digest` that of their contents."""

    facts: tuple[KnownFact, ...]
    templates: dict[str, tuple[str, ...]]
    texts: tuple[str, ...]
    neighbours: int
    canaries: tuple[Canary, ...]
    gates: tuple[Gate, ...]
    files: tuple[Path, ...]
    digest: str
    untouched: int | None = None
    """How many known facts are asked, always the same ones; all of them if not given."""

    def gate(self, candidate: Measured) -> tuple[GateResult, ...]:
        """Compares metrics with the gates; a gate on a metric that was not measured (no such probes) does not apply."""
        results = []
        for gate in self.gates:
            if gate.name in candidate.metrics:
                value = candidate.metrics[gate.name]
                results.append(GateResult(gate.name, gate.op, gate.bound, value, COMPARE[gate.op](value, gate.bound)))
        return tuple(results)


def read_suite(path: Path) -> Suite:
    """Reads a suite file.

    Raises:
        SuiteError: If it or a file it names is missing or malformed; the message says which and where.
    """
    try:
        data = _yaml(path)
        if not isinstance(data, Mapping):
            raise SuiteError(f"{path} is not a mapping: see the suite section of the README")
        if unknown := set(data) - KEYS:
            raise SuiteError(f"{path}: key {min(unknown)!r} is unknown: use {', '.join(sorted(KEYS))}")
        files = [path] + [_inside(path, str(data[key])) for key in ("facts", "templates", "text") if data.get(key)]
        named = dict(zip([k for k in ("facts", "templates", "text") if data.get(k)], files[1:], strict=True))
        templates = _templates(named["templates"]) if "templates" in named else {}
        facts = _facts(named["facts"], templates) if "facts" in named else ()
        texts = tuple(line for line in read_text(named["text"]).splitlines() if line.strip()) if "text" in named else ()
    except RequestError as error:
        raise SuiteError(str(error)) from error
    neighbours = _count(data.get("neighbours", 5), "neighbours", path)
    untouched = _count(data["untouched"], "untouched", path) if "untouched" in data else None
    canaries = tuple(_canary(c, path) for c in _kind(data, "canaries", list, path))
    gates = tuple(_gate(str(n), str(b), path) for n, b in _kind(data, "gates", dict, path).items())
    digest = json_digest([[f.name, file_digest(f)] for f in files])
    return Suite(facts, templates, texts, neighbours, canaries, gates, tuple(files), digest, untouched)


def held_facts(suite: Suite) -> tuple[HeldFact, ...]:
    """The known facts as an editor holds them, in one wording each: not the one the suite asks, if there is another."""
    held = []
    for fact in suite.facts:
        wordings = asking_order(suite.templates[fact.relation], fact.subject)
        held.append(HeldFact(fact.subject, wordings[-1], fact.object, fact.relation))
    return tuple(held)


def _count(value: Any, key: str, path: Path) -> int:
    if not isinstance(value, int) or value < 0:
        raise SuiteError(f"{path}: {key} is {value!r}: give a number of {key}, 0 or more")
    return value


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(read_text(path)) or {}
    except yaml.YAMLError as error:
        raise SuiteError(f"{path} is not YAML ({' '.join(str(error).split())}): mend it there") from error


def _kind(data: Mapping[str, Any], key: str, kind: type[T], path: Path) -> T:
    value = data.get(key) or kind()
    if not isinstance(value, kind):
        word = "mapping" if kind is dict else "list"
        raise SuiteError(f"{path}: {key} is not a {word}: see the suite section of the README")
    return value


def _inside(suite: Path, name: str) -> Path:
    path = (suite.parent / name).resolve()
    if not path.is_relative_to(suite.parent.resolve()):
        raise SuiteError(f"{suite}: {name!r} lies outside the suite's folder: put it beside the suite")
    return path


def _templates(path: Path) -> dict[str, tuple[str, ...]]:
    data = _yaml(path)
    if not isinstance(data, Mapping):
        raise SuiteError(f"{path} is not a mapping: write relation: [template, ...]")
    for relation, texts in data.items():
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
            raise SuiteError(f"{path}: {relation} needs a list of templates, at least one")
        if bad := next((t for t in texts if t.count("{}") != 1), None):
            raise SuiteError(f"{path}: template {bad!r} of {relation} must have exactly one '{{}}'")
    return {str(relation): tuple(texts) for relation, texts in data.items()}


def _facts(path: Path, templates: Mapping[str, Any]) -> tuple[KnownFact, ...]:
    reader = csv.DictReader(io.StringIO(read_text(path)))
    if missing := {"subject", "relation", "object"} - set(reader.fieldnames or ()):
        raise SuiteError(f"{path} has no column {min(missing)!r}: name the columns subject, relation, object")
    facts = tuple(KnownFact(row["subject"] or "", row["relation"] or "", row["object"] or "") for row in reader)
    for number, fact in enumerate(facts, 1):
        if not (fact.subject.strip() and fact.relation.strip() and fact.object.strip()):
            raise SuiteError(f"{path} record {number}: a fact needs subject, relation and object: fill them in")
    if without := next((f.relation for f in facts if f.relation not in templates), None):
        raise SuiteError(f"{path}: relation {without!r} has no template: add it to the suite's templates file")
    return facts


def _canary(data: Any, path: Path) -> Canary:
    if not isinstance(data, Mapping) or set(data) != {"prompt", "equals"}:
        raise SuiteError(f"{path}: a canary needs exactly `prompt` and `equals`: {data!r}")
    return Canary(str(data["prompt"]), str(data["equals"]))


def _gate(name: str, bound: str, path: Path) -> Gate:
    match = BOUND.match(bound.strip())
    if match is None:
        raise SuiteError(f'{path}: gate {name}: {bound!r} is no bound: write e.g. ">= 0.9" or "<= 1.1"')
    if name not in METRICS:
        raise SuiteError(f"{path}: gate {name!r} is on no metric: use one of {', '.join(sorted(METRICS))}")
    return Gate(name, match[1], float(match[2]))
