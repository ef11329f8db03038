"""Asking probes: every answer by probability, by argmax and by greedy free generation, and the metrics of the answers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from typing import Any

from transformers import PreTrainedTokenizerBase

from nse.architecture import EditableModel
from nse.batch import Progress, silent
from nse.evaluation.answers import answer, satisfies
from nse.evaluation.collapse import check_places, norm_signs, vital_signs
from nse.evaluation.generate import ANSWER_TOKENS, CHAT_TOKENS
from nse.evaluation.metrics import shares
from nse.evaluation.misleading import World, misleading_probes
from nse.evaluation.outcomes import SCHEMA, CaseOutcome, OutcomeStore
from nse.evaluation.probes import Probe, Rule, chat_probes, request_probes, untouched_probes
from nse.evaluation.questions import Question, Reply, reply
from nse.evaluation.retention import sample_metrics
from nse.evaluation.score import perplexity
from nse.evaluation.suites import Suite
from nse.fingerprint import json_digest
from nse.patch import base_in_force
from nse.request import EditRequest

__all__ = ["CaseOutcome", "Evaluation", "OutcomeStore", "ask", "ask_once", "evaluate", "probes_of", "unasked"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Metrics by name, in [0, 1] where they are shares, and the outcome of every probe."""

    metrics: dict[str, float]
    cases: tuple[CaseOutcome, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"metrics": self.metrics, "cases": [asdict(c) for c in self.cases]}


def probes_of(
    suite: Suite,
    requests: Sequence[EditRequest],
    retained: Sequence[Sequence[EditRequest]],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[Probe]:
    """All questions of a suite about a model that shall hold `requests` (new) and `retained` (earlier corrections).

    Args:
        suite: What to ask.
        requests: Corrections under judgement.
        retained: Earlier corrections, those of one round together; the suite asks all of them or a sample.
        tokenizer: Whose chat format is used, if the suite asks in it.

    Raises:
        SuiteError: If the suite demands the chat format, and the tokenizer has none.
    """
    edited = {(r.subject.casefold(), r.relation or "") for r in chain(requests, *retained)}
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
    world = World.of(suite.facts, suite.templates, edited=edited, tokenizer=tokenizer)
    probes += misleading_probes(requests, world, kinds=suite.misleading, per_kind=suite.per_kind)
    probes += [
        Probe("retention", r.case_id, r.prompt, r.target_new, r.target_true) for r in suite.asked_again(retained)
    ]
    probes += untouched_probes(suite.facts, templates=suite.templates, edited=edited, sample=suite.untouched)
    probes += [Probe("kept", fact.name, fact.prompt, fact.expected, fact.foil) for fact in suite.kept]
    probes += [
        Probe("canary", f"canary {i + 1}", c.prompt, c.expected, rule=c.rule) for i, c in enumerate(suite.canaries)
    ]
    context = suite.chat_context(tokenizer) if tokenizer is not None else None
    return probes if context is None else [*probes, *chat_probes(probes, context)]


def ask_once(
    editable: EditableModel,
    probes: Sequence[Probe],
    *,
    store: OutcomeStore,
    version: str,
    progress: Progress = silent,
) -> tuple[CaseOutcome, ...]:
    """Asks each probe under the weights in force, which must be `version`; what that version has answered is not asked again."""
    keys, known = _names(editable, probes), store.read(version)
    new = [i for i, key in enumerate(keys) if key not in known]
    if new:
        known |= {
            keys[i]: o for i, o in zip(new, ask(editable, [probes[i] for i in new], progress=progress), strict=True)
        }
        store.write(version, known)
    return tuple(known[key] for key in keys)


def unasked(
    editable: EditableModel, probes: Sequence[Probe], *, store: OutcomeStore, version: str
) -> tuple[Probe, ...]:
    """The probes that `ask_once` would ask: those that `version` has not answered."""
    known = store.read(version)
    return tuple(p for p, name in zip(probes, _names(editable, probes), strict=True) if name not in known)


def _names(editable: EditableModel, probes: Sequence[Probe]) -> list[str]:
    """Per probe, the digest of everything that its answer depends on beside the weights."""
    # what else ends an answer counts where it is not the tokenizer's EOS alone
    ends = sorted(editable.end_tokens - {editable.tokenizer.eos_token_id})
    made_by = [SCHEMA, editable.tokenizer_digest, *([ends] if ends else [])]
    return [json_digest([*made_by, asdict(probe)]) for probe in probes]


def ask(editable: EditableModel, probes: Sequence[Probe], *, progress: Progress = silent) -> tuple[CaseOutcome, ...]:
    """Asks each probe under the weights in force; probes with one prompt share what is computed for it."""
    targets: dict[str, dict[str, None]] = {}
    expected: dict[str, dict[tuple[str, Rule], None]] = {}
    for probe in probes:
        targets.setdefault(probe.prompt, {})[probe.expected] = None
        expected.setdefault(probe.prompt, {})[probe.expected, probe.rule] = None
    for probe in probes:  # after what is expected: the first target is taken for a draft of the generated text
        if probe.foil is not None:
            targets[probe.prompt][probe.foil] = None
    questions = [Question(prompt, tuple(texts), tuple(expected[prompt])) for prompt, texts in targets.items()]
    replies = _replies(editable, questions, progress)
    found = {
        question.prompt: (dict(zip(question.targets, zip(r.scores, r.right, strict=True), strict=True)), r)
        for question, r in zip(questions, replies, strict=True)
    }
    return tuple(_outcome(probe, *found[probe.prompt]) for probe in probes)


def _replies(editable: EditableModel, questions: Sequence[Question], progress: Progress) -> list[Reply]:
    """Asks questions; where the answer is a sentence there is room for one."""

    def told(before: int, _stage: str, done: int, _total: int) -> None:
        progress("probes", before + done, len(questions))

    sentences = [any(rule == "states" for _, rule in question.expected) for question in questions]
    found: dict[int, Reply] = {}
    for wanted, tokens in ((False, ANSWER_TOKENS), (True, CHAT_TOKENS)):
        places = [i for i, sentence in enumerate(sentences) if sentence == wanted]
        own = [questions[i] for i in places]
        said = reply(editable, own, max_new_tokens=tokens, progress=partial(told, len(found)))
        found |= dict(zip(places, said, strict=True))
    return [found[i] for i in range(len(questions))]


def _outcome(probe: Probe, scores: Mapping[str, tuple[tuple[float, int], bool]], said: Reply) -> CaseOutcome:
    """Judges a reply; `scores` are by target: log-probability in nats and number of tokens, whether all are the most probable."""
    generated = said.judged_by(probe.expected, probe.rule)
    (score, tokens), argmax = scores[probe.expected]
    foil, length = scores[probe.foil][0] if probe.foil is not None else (math.log(0.5), 1)
    preferred = score / tokens > foil / length
    lacks = probe.rule == "lacks"
    return CaseOutcome(
        kind=probe.kind,
        case_id=probe.case_id,
        prompt=probe.prompt,
        expected=probe.expected if probe.rule == "equals" else f"{probe.rule} {probe.expected}",
        probability=math.exp(score),
        preferred=preferred != lacks,
        generated=answer(generated, probe.expected, rule=probe.rule, question=probe.prompt),
        passed=satisfies(generated, probe.expected, rule=probe.rule, question=probe.prompt, foil=probe.foil),
        nats=-score / tokens,
        foil_nats=None if probe.foil is None else -foil / length,
        argmax=argmax != lacks,
    )


def _signs(editable: EditableModel, suite: Suite, *, store: OutcomeStore | None, version: str) -> dict[str, float]:
    """The vital signs that a suite has texts for, or only the norms if it has none and gates on them.

    A layer that a gate is on and that no delta changes has the norm 0.
    """
    gated = [gate.name for gate in suite.gates if gate.name.startswith("delta_norm")]
    if suite.texts:
        found = _vital_signs(editable, suite.texts, store=store, version=version)
    elif gated:
        measure = partial(norm_signs, editable)
        found = measure() if store is None else store.measured(version, "norms", measure)
    else:
        found = {}
    return dict.fromkeys(gated, 0.0) | found


def _vital_signs(
    editable: EditableModel, texts: Sequence[str], *, store: OutcomeStore | None, version: str
) -> dict[str, float]:
    """The vital signs of the weights in force; with a store each version is measured once, and so is the base model."""
    if store is None:
        return vital_signs(editable, texts)
    of_texts = json_digest(list(texts))[:16]

    def base() -> dict[str, float]:
        with base_in_force(editable):
            return {"perplexity": perplexity(editable, texts)}

    def signs() -> dict[str, float]:
        known = store.measured(editable.base_digest, f"perplexity-{of_texts}", base)
        return vital_signs(editable, texts, base_perplexity=known["perplexity"])

    return store.measured(version, f"signs-{of_texts}", signs)


def evaluate(
    editable: EditableModel,
    suite: Suite,
    *,
    requests: Sequence[EditRequest] = (),
    retained: Sequence[Sequence[EditRequest]] = (),
    store: OutcomeStore | None = None,
    version: str = "",
    progress: Progress = silent,
) -> Evaluation:
    """Runs a suite on the weights in force.

    Args:
        editable: The model.
        suite: What to ask.
        requests: Corrections under judgement: efficacy, generalization, specificity.
        retained: Corrections of earlier rounds that must still hold, those of one round together.
        store: Answers given before, if any are kept.
        version: Digest of the weights in force; needed with `store`.
        progress: Called as `progress(stage, done, total)`.

    Returns:
        Metrics `<kind>` (by probability), `<kind>_accuracy` and `<kind>_generation` for each kind that had probes, `chat_<kind>`
        those of the same questions in the chat format, where the tokenizer has one and the suite asks in it; what a sample
        of `retained` leaves open, if the suite asks one (`nse.evaluation.retention`); the vital signs if the suite has texts
        (`nse.evaluation.collapse`), of these `delta_norm` also if a gate is on it.

    Raises:
        TokenError: If a prompt does not fit the model.
        SuiteError: If a gate is on the norm of a layer that the model does not have, or the suite demands the chat format and the
            tokenizer has none.
    """
    check_places(editable, [gate.name for gate in suite.gates if gate.name.startswith("delta_norm.")])
    probes = probes_of(suite, requests, retained, tokenizer=editable.tokenizer)
    if store is not None:
        cases = ask_once(editable, probes, store=store, version=version, progress=progress)
    else:
        cases = ask(editable, probes, progress=progress)
    metrics = shares(cases)
    if suite.retention is not None:
        asked = sum(case.kind == "retention" for case in cases)
        metrics |= sample_metrics(metrics, asked=asked, total=sum(map(len, retained)))
    return Evaluation(metrics | _signs(editable, suite, store=store, version=version), cases)
