"""Asking probes: every answer once by probability and once by greedy free generation, and the metrics of the answers."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nse.architecture import EditableModel
from nse.batch import Progress, silent
from nse.evaluation.generate import ANSWER_TOKENS, answer, same_answer
from nse.evaluation.probes import Probe, request_probes, untouched_probes
from nse.evaluation.questions import Question, reply
from nse.evaluation.score import perplexity
from nse.evaluation.suites import Suite
from nse.fingerprint import json_digest
from nse.patch import base_in_force
from nse.request import EditRequest

SCHEMA = 1
"""Part of the key of a kept answer: raise it when the rule by which a text is an answer changes."""


@dataclass(frozen=True, slots=True)
class CaseOutcome:
    """The answer to one probe.

    Attributes:
        kind: What it measures.
        case_id: The request, fact or canary that it belongs to.
        prompt: The question.
        expected: The right answer.
        probability: p(expected | prompt), all its tokens.
        preferred: Whether `expected` is more probable per token than the foil (over one half, if there is no foil).
        generated: The answer by greedy free generation.
        passed: Whether that answer is `expected`.
    """

    kind: str
    case_id: str
    prompt: str
    expected: str
    probability: float
    preferred: bool
    generated: str
    passed: bool


@dataclass(frozen=True, slots=True)
class OutcomeStore:
    """Answers that a version has given before, one JSON file per version: tonight's head was judged as last night's candidate."""

    folder: Path

    def read(self, version: str) -> dict[str, CaseOutcome]:
        """Known outcomes of a version by the digest of their probe."""
        path = self._path(version)
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return {key: CaseOutcome(**value) for key, value in known.items()}

    def write(self, version: str, outcomes: Mapping[str, CaseOutcome]) -> None:
        """Keeps outcomes; a reader never sees half a file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{version}.{os.getpid()}"
        temporary.write_text(json.dumps({key: asdict(o) for key, o in sorted(outcomes.items())}), encoding="utf-8")
        temporary.replace(self._path(version))

    def _path(self, version: str) -> Path:
        return self.folder / f"{version}.json"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Metrics by name, in [0, 1] where they are shares, and the outcome of every probe."""

    metrics: dict[str, float]
    cases: tuple[CaseOutcome, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"metrics": self.metrics, "cases": [asdict(c) for c in self.cases]}


def probes_of(suite: Suite, requests: Sequence[EditRequest], retained: Sequence[EditRequest]) -> list[Probe]:
    """All questions of a suite about a model that shall hold `requests` (new) and `retained` (earlier corrections)."""
    edited = {(r.subject.casefold(), r.relation or "") for r in (*requests, *retained)}
    probes = []
    for request in requests:
        relation = request.relation or ""
        probes += request_probes(
            request,
            facts=[f for f in suite.facts if f.relation == relation],
            templates=suite.templates.get(relation, ()),
            edited=edited,
            neighbours=suite.neighbours,
        )
    probes += [Probe("retention", r.case_id, r.prompt, r.target_new, r.target_true) for r in retained]
    probes += untouched_probes(suite.facts, templates=suite.templates, edited=edited, sample=suite.untouched)
    probes += [Probe("canary", f"canary {i + 1}", c.prompt, c.equals) for i, c in enumerate(suite.canaries)]
    return probes


def ask_once(
    editable: EditableModel,
    probes: Sequence[Probe],
    *,
    store: OutcomeStore,
    version: str,
    progress: Progress = silent,
) -> tuple[CaseOutcome, ...]:
    """Asks each probe under the weights in force, which must be `version`; what that version has answered is not asked again."""
    keys = [json_digest([SCHEMA, editable.tokenizer_digest, asdict(probe)]) for probe in probes]
    known = store.read(version)
    new = [i for i, key in enumerate(keys) if key not in known]
    if new:
        known |= {
            keys[i]: o for i, o in zip(new, ask(editable, [probes[i] for i in new], progress=progress), strict=True)
        }
        store.write(version, known)
    return tuple(known[key] for key in keys)


def ask(editable: EditableModel, probes: Sequence[Probe], *, progress: Progress = silent) -> tuple[CaseOutcome, ...]:
    """Asks each probe under the weights in force; probes with one prompt share what is computed for it."""
    targets: dict[str, dict[str, None]] = {}
    for probe in probes:
        targets.setdefault(probe.prompt, {})[probe.expected] = None
    for probe in probes:  # after what is expected: the first target is taken for a draft of the generated text
        if probe.foil is not None:
            targets[probe.prompt][probe.foil] = None
    questions = [Question(prompt, tuple(texts)) for prompt, texts in targets.items()]
    replies = reply(editable, questions, max_new_tokens=ANSWER_TOKENS, stage="probes", progress=progress)
    found = {
        question.prompt: (dict(zip(question.targets, r.scores, strict=True)), r.generated)
        for question, r in zip(questions, replies, strict=True)
    }
    return tuple(_outcome(probe, *found[probe.prompt]) for probe in probes)


def _outcome(probe: Probe, scores: Mapping[str, tuple[float, int]], generated: str) -> CaseOutcome:
    """Judges a reply; `scores` are by target: log-probability in nats, number of tokens."""
    score, tokens = scores[probe.expected]
    foil, length = scores[probe.foil] if probe.foil is not None else (math.log(0.5), 1)
    return CaseOutcome(
        kind=probe.kind,
        case_id=probe.case_id,
        prompt=probe.prompt,
        expected=probe.expected,
        probability=math.exp(score),
        preferred=score / tokens > foil / length,
        generated=answer(generated),
        passed=same_answer(generated, probe.expected),
    )


def evaluate(
    editable: EditableModel,
    suite: Suite,
    *,
    requests: Sequence[EditRequest] = (),
    retained: Sequence[EditRequest] = (),
    store: OutcomeStore | None = None,
    version: str = "",
    progress: Progress = silent,
) -> Evaluation:
    """Runs a suite on the weights in force.

    Args:
        editable: The model.
        suite: What to ask.
        requests: Corrections under judgement: efficacy, generalization, specificity.
        retained: Corrections of earlier rounds that must still hold.
        store: Answers given before, if any are kept.
        version: Digest of the weights in force; needed with `store`.
        progress: Called as `progress(stage, done, total)`.

    Returns:
        Metrics `<kind>` (by probability) and `<kind>_generation` for each kind that had probes, `perplexity`, and
        `perplexity_ratio` to the base model.

    Raises:
        TokenError: If a prompt does not fit the model.
    """
    probes = probes_of(suite, requests, retained)
    if store is not None:
        cases = ask_once(editable, probes, store=store, version=version, progress=progress)
    else:
        cases = ask(editable, probes, progress=progress)
    metrics: dict[str, float] = {}
    for kind in dict.fromkeys(c.kind for c in cases):
        own = [c for c in cases if c.kind == kind]
        metrics[kind] = sum(c.preferred for c in own) / len(own)
        metrics[f"{kind}_generation"] = sum(c.passed for c in own) / len(own)
    if suite.texts:
        metrics["perplexity"] = perplexity(editable, suite.texts)
        with base_in_force(editable):
            metrics["perplexity_ratio"] = metrics["perplexity"] / perplexity(editable, suite.texts)
    return Evaluation(metrics, cases)
