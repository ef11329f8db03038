"""The judgement of a trial: greedy free generation, answered right or not, and the mean that settings are compared by."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nse.architecture import EditableModel
from nse.batch import Progress, silent
from nse.evaluation.answers import same_answer
from nse.evaluation.generate import generate
from nse.evaluation.probes import Probe
from nse.tokens import tokenize

COMPARED = ("efficacy", "generalization", "specificity")
"""Kinds whose harmonic mean is sought."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Shares in [0, 1] of questions answered right by free generation; None where there was none of the kind.

    Attributes:
        efficacy: The corrections' own prompts.
        generalization: Other wordings.
        specificity: The same question about other subjects, where the base model was right.
        untouched: Other facts of the corrected subjects, where the base model was right.
        retention: The corrections of earlier rounds, after the last one.
    """

    efficacy: float | None = None
    generalization: float | None = None
    specificity: float | None = None
    untouched: float | None = None
    retention: float | None = None

    @property
    def harmonic_mean(self) -> float:
        """Harmonic mean of efficacy, generalization and specificity, as far as they were measured."""
        found = [value for name in COMPARED if (value := getattr(self, name)) is not None]
        return statistics.harmonic_mean(found) if found else 0.0

    @property
    def guard(self) -> float:
        """Mean of retention and untouched, as far as measured: what decides between settings that are as good as each other."""
        found = [value for value in (self.untouched, self.retention) if value is not None]
        return statistics.fmean(found) if found else 1.0

    def to_dict(self) -> dict[str, Any]:
        """What was measured, with the harmonic mean, rounded for reading."""
        found = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: round(value, 4) for name, value in {**found, "harmonic_mean": self.harmonic_mean}.items()}


def right(editable: EditableModel, questions: Sequence[tuple[str, str]], *, progress: Progress = silent) -> list[bool]:
    """Whether the model, with the weights in force, answers each (prompt, expected) by greedy generation.

    No more tokens are generated than the longest right answer has, and two more that could end it.
    """
    if not questions:
        return []
    lengths = [len(tokenize(editable.tokenizer, prompt, target=answer).target_ids) for prompt, answer in questions]
    prompts, expected = [prompt for prompt, _ in questions], [answer for _, answer in questions]
    texts = generate(editable, prompts, expected=expected, max_new_tokens=max(lengths) + 2, progress=progress)
    return [same_answer(text, answer) for text, answer in zip(texts, expected, strict=True)]


@dataclass
class BaseAnswers:
    """What the base model answers right; every question is asked once, however many facts it belongs to."""

    editable: EditableModel
    _right: dict[tuple[str, str], bool] = field(default_factory=dict)

    def right(self, questions: Sequence[tuple[str, str]]) -> list[bool]:
        """Whether it answers each (prompt, expected), as the function `right`."""
        new = [question for question in dict.fromkeys(questions) if question not in self._right]
        self._right |= dict(zip(new, right(self.editable, new), strict=True))
        return [self._right[question] for question in questions]


def scores(
    editable: EditableModel,
    probes: Sequence[Probe],
    *,
    earlier: frozenset[str] = frozenset(),
    progress: Progress = silent,
) -> Scores:
    """Asks all probes under the weights in force; efficacy of the cases `earlier` is their retention as well."""
    passed = right(editable, [(p.prompt, p.expected) for p in probes], progress=progress)
    by_kind: dict[str, list[bool]] = {}
    for probe, good in zip(probes, passed, strict=True):
        by_kind.setdefault(probe.kind, []).append(good)
        if probe.kind == "efficacy" and probe.case_id in earlier:
            by_kind.setdefault("retention", []).append(good)
    return Scores(**{kind: sum(own) / len(own) for kind, own in by_kind.items()})
