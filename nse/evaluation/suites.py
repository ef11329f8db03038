"""Regression suites: what a model must still know, and the gates that a changeset has to pass. A YAML file and what it names."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from transformers import PreTrainedTokenizerBase

from nse.chat import chat_context, needed_chat_context
from nse.errors import RequestError, SuiteError, TokenError
from nse.evaluation.gates import (
    ENDS,
    OF_CORRECTIONS,
    Gate,
    GateResult,
    Measured,
    gate_results,
    kind_of,
    not_measured,
    read_gates,
)
from nse.evaluation.harness import Harness
from nse.evaluation.misleading import MISLEADING
from nse.evaluation.probes import IN_CHAT, KnownFact, Rule, asking_order, shuffled
from nse.evaluation.retention import stratified
from nse.fingerprint import file_digest, json_digest
from nse.request import EditRequest, read_requests, read_text
from nse.subjects import HeldFact

__all__ = ["Canary", "Gate", "GateResult", "KeptFact", "Suite", "held_facts", "read_suite"]

T = TypeVar("T", bound=list[Any] | dict[Any, Any])
NAMED = ("facts", "templates", "text")
NEED_TEXT = frozenset({"perplexity", "perplexity_ratio", "hidden_drift", "hidden_cosine", "text_entropy"})
NEED_NO_FACTS = frozenset({"reversed", "running_text", "chat"})
OF_CANARIES: tuple[Rule, ...] = ("equals", "contains", "lacks")
NUMBERS = ("neighbours", "untouched", "retention", "per_kind")
KEYS = {"schema", *NAMED, *NUMBERS, "keep", "misleading", "chat", "canaries", "gates", "harness"}


@dataclass(frozen=True, slots=True)
class Canary:
    """A prompt whose answer must always be `expected`, or have it in it, or lack it."""

    prompt: str
    expected: str
    rule: Rule = "equals"


@dataclass(frozen=True, slots=True)
class KeptFact:
    """A fact that must stay whatever is corrected: it is asked every time, and a correction that contradicts it fails.

    Attributes:
        name: What it is called in the evidence.
        prompt: The question.
        expected: The answer.
        foil: A wrong answer to compare probabilities with, if there is one.
    """

    name: str
    prompt: str
    expected: str
    foil: str | None = None


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
    retention: int | None = None
    """How many past corrections are asked again, a sample in which each round has its share; all of them if not given."""
    kept: tuple[KeptFact, ...] = ()
    misleading: tuple[str, ...] = ()
    """Kinds of misleading probes that are asked of each correction."""
    per_kind: int = 2
    """How many of each of these kinds."""
    harness: Harness | None = None
    chat: bool | None = None
    """Whether corrections and facts are asked in the chat format as well; where the tokenizer has one, if not given."""

    def gate(self, candidate: Measured, head: Measured | None = None) -> tuple[GateResult, ...]:
        """Compares metrics with the gates, those against the head with the head's; see `gates.gate_results`."""
        return gate_results(self.gates, candidate, head)

    def asked_again(self, rounds: Sequence[Sequence[EditRequest]]) -> tuple[EditRequest, ...]:
        """Of past corrections, those of one round together, the ones that are asked: always the same of the same ones."""
        if self.retention is None:
            return tuple(request for corrections in rounds for request in corrections)
        return stratified(rounds, self.retention, seed="retention")

    def not_measured(self, candidate: Measured, head: Measured | None = None) -> tuple[Gate, ...]:
        """The gates that `gate` has no result for; see `gates.not_measured`."""
        return not_measured(self.gates, candidate, head)

    @property
    def judges_corrections(self) -> bool:
        """Whether it asks, or a gate is on, what only corrections under judgement give."""
        return bool(self.misleading) or any(kind_of(gate.name) in OF_CORRECTIONS for gate in self.gates)

    def chat_context(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """The chat format in which it asks besides prose, as a context; None if it does not.

        Raises:
            SuiteError: If it or one of its gates demands the chat format, and the tokenizer has none.
        """
        if self.chat is False:
            return None
        gate = next((gate.name for gate in self.gates if kind_of(gate.name) in IN_CHAT.values()), None)
        try:
            return needed_chat_context(tokenizer) if self.chat or gate else chat_context(tokenizer)
        except TokenError as error:
            what = f"gate {gate} is on what is never measured" if gate else "`chat: true` cannot be done"
            raise SuiteError(f"{self.files[0]}: {what}: {error}") from error

    @property
    def relative(self) -> bool:
        """Whether a gate is against the head."""
        return any(gate.against == "head" for gate in self.gates)


def read_suite(path: Path) -> Suite:
    """Reads a suite file.

    Raises:
        SuiteError: If it or a file it names is missing or malformed, or a gate is on what it never measures; the message says
            which and where.
    """
    try:
        data = _yaml(path)
        if not isinstance(data, Mapping):
            raise SuiteError(f"{path} is not a mapping: see the suite section of the README")
        if unknown := set(data) - KEYS:
            raise SuiteError(f"{path}: key {min(unknown)!r} is unknown: use {', '.join(sorted(KEYS))}")
        named = {key: _inside(path, str(data[key])) for key in NAMED if data.get(key)}
        keep = [_inside(path, name) for name in _texts(data, "keep", path)]
        templates = _templates(named["templates"]) if "templates" in named else {}
        facts = _facts(named["facts"], templates) if "facts" in named else ()
        texts = tuple(line for line in read_text(named["text"]).splitlines() if line.strip()) if "text" in named else ()
        kept = tuple(fact for file in keep for fact in _kept(file, templates))
        harness = _harness(data["harness"], path) if data.get("harness") else None
    except RequestError as error:
        raise SuiteError(str(error)) from error
    misleading = tuple(_texts(data, "misleading", path))
    if unknown_kind := next((kind for kind in misleading if kind not in MISLEADING), None):
        raise SuiteError(f"{path}: misleading kind {unknown_kind!r} is unknown: use {', '.join(MISLEADING)}")
    files = (path, *named.values(), *keep)
    tasks = _task_files(harness)
    home = path.parent.resolve()
    digest = [[f.name, file_digest(f)] for f in files] + [[str(f.relative_to(home)), file_digest(f)] for f in tasks]
    suite = Suite(
        facts=facts,
        templates=templates,
        texts=texts,
        neighbours=_count(data.get("neighbours", 5), "neighbours", path),
        canaries=tuple(_canary(c, path) for c in _kind(data, "canaries", list, path)),
        gates=tuple(
            gate
            for name, given in _kind(data, "gates", dict, path).items()
            for gate in read_gates(str(name), given, str(path))
        ),
        files=(*files, *tasks),
        digest=json_digest(digest),
        untouched=_count(data["untouched"], "untouched", path) if "untouched" in data else None,
        retention=_count(data["retention"], "retention", path) if "retention" in data else None,
        kept=kept,
        misleading=misleading,
        per_kind=_count(data.get("per_kind", 2), "per_kind", path),
        harness=harness,
        chat=_chat(data, path),
    )
    for gate in suite.gates:
        if lacking := _lacking(suite, gate.name):
            raise SuiteError(f"{path}: gate {gate.name} is on what the suite never measures: {lacking}")
    return suite


def held_facts(suite: Suite) -> tuple[HeldFact, ...]:
    """The known facts as an editor holds them, in one wording each: not the one the suite asks, if there is another."""
    held = []
    for fact in suite.facts:
        wordings = asking_order(suite.templates[fact.relation], fact.subject)
        held.append(HeldFact(fact.subject, wordings[-1], fact.object, fact.relation))
    return tuple(held)


def _lacking(suite: Suite, metric: str) -> str | None:
    """What a suite needs and lacks to measure a metric; None if it can, be there corrections."""
    kind = kind_of(metric) or ""
    if kind in IN_CHAT.values():
        if suite.chat is False:
            return "leave `chat` true"
        kind = next(own for own, chat in IN_CHAT.items() if chat == kind)
    if metric.startswith("harness."):
        # which metrics a group of tasks gives is known when it was asked: nse.evaluation.harness
        return None if suite.harness else f"list the task {metric.split('.')[1]} in `harness.tasks`"
    if metric in NEED_TEXT:
        return None if suite.texts else "name a `text` that has a line"
    if kind in MISLEADING:
        asked = kind in suite.misleading and suite.per_kind and (suite.facts or kind in NEED_NO_FACTS)
        return None if asked else f"list {kind} in `misleading`, `per_kind` above 0, and name `facts`"
    if metric.endswith(ENDS) and suite.retention is None:
        return "write `retention: N`, how many past corrections to ask"
    has = {
        # the corrections of a ledger bring no other wordings and no neighbours
        "generalization": (suite.templates, "name `templates`"),
        "specificity": (suite.facts and suite.neighbours, "name `facts`, and leave `neighbours` above 0"),
        "retention": (suite.retention != 0, "leave `retention` above 0"),
        "untouched": (suite.facts and suite.untouched != 0, "name `facts`, and leave `untouched` above 0"),
        "kept": (suite.kept, "name files to `keep`"),
        "canary": (suite.canaries, "write `canaries`"),
    }
    there, advice = has.get(kind, (True, ""))
    return None if there else advice


def _chat(data: Mapping[str, Any], path: Path) -> bool | None:
    value = data.get("chat")
    if value is not None and not isinstance(value, bool):
        raise SuiteError(f"{path}: chat is {value!r}: write true or false")
    return value


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


def _texts(data: Mapping[str, Any], key: str, path: Path) -> list[str]:
    """A text or a list of texts."""
    value = data.get(key) or []
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise SuiteError(f"{path}: {key} is {value!r}: write a name, or a list of names")
    return found


def _kept(path: Path, templates: Mapping[str, tuple[str, ...]]) -> list[KeptFact]:
    """The facts of a file: columns subject, relation, object, or any layout of requests, where `target_true` is what stays."""
    if path.suffix == ".csv" and "object" in (csv.DictReader(io.StringIO(read_text(path))).fieldnames or ()):
        facts = _facts(path, templates)
        return [_kept_fact(fact, facts, templates[fact.relation]) for fact in facts]
    requests = read_requests(path)
    if without := next((r.case_id for r in requests if r.target_true is None), None):
        raise SuiteError(f"{path}: case {without} has no target_true: it is the object that stays")
    return [
        KeptFact(f"{path.stem} {r.case_id}: {r.subject}", r.prompt, r.target_true or "", r.target_new) for r in requests
    ]


def _kept_fact(fact: KnownFact, others: tuple[KnownFact, ...], templates: tuple[str, ...]) -> KeptFact:
    objects = (o.object for o in others if o.relation == fact.relation and o.object != fact.object)
    prompt = asking_order(templates, fact.subject)[0].replace("{}", fact.subject)
    foil = next(iter(shuffled(objects, fact.subject)), None)
    return KeptFact(f"{fact.subject} / {fact.relation}", prompt, fact.object, foil)


def _canary(data: Any, path: Path) -> Canary:
    rules = [rule for rule in OF_CANARIES if isinstance(data, Mapping) and rule in data]
    if len(rules) != 1 or set(data) != {"prompt", rules[0]} or not str(data[rules[0]]).strip():
        problem = "a canary needs exactly `prompt` and `equals`, `contains` or `lacks`"
        raise SuiteError(f"{path}: {problem}: {data!r}")
    return Canary(str(data["prompt"]), str(data[rules[0]]), rules[0])


def _harness(data: Any, path: Path) -> Harness:
    if not isinstance(data, Mapping) or set(data) - {"tasks", "include", "limit"}:
        raise SuiteError(
            f"{path}: harness is {data!r}: write tasks: [name, ...], and include: FOLDER, limit: N if wanted"
        )
    tasks = _texts(data, "tasks", path)
    if not tasks:
        raise SuiteError(f"{path}: harness has no tasks: name some")
    include = _inside(path, str(data["include"])) if data.get("include") else None
    if include is not None and not include.is_dir():
        raise SuiteError(f"{path}: harness.include {data['include']!r} is no folder: put the task files in one")
    limit = _count(data["limit"], "limit", path) if "limit" in data else None
    return Harness(tuple(tasks), include, limit)


def _task_files(harness: Harness | None) -> list[Path]:
    folder = harness.include if harness is not None else None
    return [] if folder is None else sorted(file for file in folder.rglob("*") if file.is_file())
