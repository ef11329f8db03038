"""What a model answers about a stream, as the metrics of the field. The only place where a benchmark judges anything."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from nse.architecture import EditableModel
from nse.batch import Progress, silent
from nse.bench.streams import Questions
from nse.evaluation.fluency import free_text_metrics
from nse.evaluation.metrics import WAYS, literature, shares
from nse.evaluation.outcomes import CaseOutcome
from nse.evaluation.probes import IN_CHAT
from nse.evaluation.run import ask
from nse.evaluation.score import perplexity
from nse.request import EditRequest

__all__ = ["WAYS", "Prose", "Right", "Scores", "perplexity_of", "score"]

Right = tuple[bool | None, bool, bool]
"""Whether a question is answered right in each of the `WAYS`; None by probability where there is no other object."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Metrics by name; of each case whether its own prompt is answered right; how many probes were put, in how many seconds."""

    metrics: dict[str, float]
    cases: dict[str, Right] = field(default_factory=dict)
    asked: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Prose:
    """What the model shall write on about, for fluency, and by case the texts to compare that with, for consistency."""

    requests: tuple[EditRequest, ...]
    references: Mapping[str, tuple[str, ...]]


def score(
    editable: EditableModel,
    cases: Sequence[str],
    questions: Questions,
    *,
    texts: Sequence[str] = (),
    prose: Prose | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Scores:
    """Asks everything about some cases under the weights in force.

    Args:
        editable: The model.
        cases: Names of the cases that are asked about.
        questions: The questions of all.
        texts: Fixed texts for perplexity.
        prose: What to write about, if anything.
        seed: Of what is written.
        progress: Called as `progress(stage, done, total)`.
    """
    probes = [probe for case in cases for probe in questions.cases[case]] + list(questions.untouched)
    begun = time.perf_counter()
    outcomes = ask(editable, probes, progress=progress)
    seconds = time.perf_counter() - begun
    metrics = judged(outcomes)
    if texts:
        metrics["perplexity"] = perplexity_of(editable, texts)
    told = [r for r in prose.requests if r.case_id in set(cases)] if prose else []
    if (
        prose and told and not math.isnan(metrics.get("perplexity", 0.0))
    ):  # where nothing is a number nothing is written
        metrics |= free_text_metrics(editable, told, references=prose.references, seed=seed)
    own: dict[str, Right] = {
        o.case_id: (o.preferred if o.foil_nats is not None else None, o.argmax, o.passed)
        for o in outcomes
        if o.kind == "efficacy"
    }
    return Scores(metrics, own, len(probes), seconds)


def judged(outcomes: Sequence[CaseOutcome]) -> dict[str, float]:
    """The metrics of answers, `chat_<name>` those in the chat format; by probability those alone that have another object."""
    found, compared = shares(outcomes), shares(o for o in outcomes if o.foil_nats is not None)
    for kind in dict.fromkeys(o.kind for o in outcomes):
        del found[kind]
        if kind in compared:
            found[kind] = compared[kind]
    in_chat = [replace(o, kind=kind) for kind, chat in IN_CHAT.items() for o in outcomes if o.kind == chat]
    return {**found, **literature(outcomes), **{f"chat_{name}": value for name, value in literature(in_chat).items()}}


def perplexity_of(editable: EditableModel, texts: Sequence[str]) -> float:
    """Perplexity of texts; infinite where a model that has collapsed gives a number beyond all numbers."""
    try:
        return perplexity(editable, texts)
    except OverflowError:
        return math.inf
