"""The z-probe: how far z can get at a layer, before any weight is changed.

z itself is put in place at the subject's last token; what the model says then bounds what an edit there
can reach. It costs no solve.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import fmean, harmonic_mean, median
from typing import Any

import torch
from torch import nn

from nse.architecture import EditableModel
from nse.batch import by_length, pad
from nse.calibration.facts import Case
from nse.calibration.space import Candidate
from nse.evaluation.probes import Probe
from nse.tokens import TokenizedPrompt, tokenize, tokenize_template
from nse.trace import hidden_of


@dataclass(frozen=True, slots=True)
class Reached:
    """What z reaches with one choice of last layer, learning rate and clamp.

    Attributes:
        candidate: The choice.
        probability: Median p(target_new) after the correction's own prompt.
        generalization: Share of the other wordings where each token of target_new is the most probable; None without such.
        untouched: The same for the subject's other facts and their own objects; None without such.
        distance: Median |z - h|.
        seconds: Of all its z's.
    """

    candidate: Candidate
    probability: float
    generalization: float | None
    untouched: float | None
    distance: float
    seconds: float

    @property
    def score(self) -> float:
        """What choices are compared by: the harmonic mean of the three, as far as measured. Further is not better: it costs."""
        return harmonic_mean([v for v in (self.probability, self.generalization, self.untouched) if v is not None])

    def __str__(self) -> str:
        """One line for people."""
        c = self.candidate
        shares = {"other wordings": self.generalization, "subject's other facts": self.untouched}
        more = "".join(f", {name} {100 * share:.0f}" for name, share in shares.items() if share is not None)
        return (
            f"z at layer {c.last}, step {c.step:g} |h|, clamp {c.clamp:g}: p(target_new) {self.probability:.2f}{more}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the record."""
        return {**asdict(self), "score": self.score}


@dataclass(frozen=True, slots=True)
class _Question:
    tokens: TokenizedPrompt
    case: int
    kind: str


@torch.no_grad()
def in_place(
    editable: EditableModel,
    cases: Sequence[Case],
    z: torch.Tensor,
    hidden: torch.Tensor,
    candidate: Candidate,
    seconds: float,
) -> Reached:
    """Puts z (n, d_model) at the subjects' last tokens after the candidate's last layer and asks each case's questions.

    Args:
        editable: The model with its base weights.
        cases: n cases.
        z: Their target states.
        hidden: h (n, d_model) there.
        candidate: What z was made with.
        seconds: What z took.
    """
    questions = [q for i, case in enumerate(cases) for q in _questions(editable, case, i)]
    block = editable.block(candidate.last)
    probability: list[float] = []
    right: dict[str, list[bool]] = {"generalization": [], "untouched": []}
    for group in by_length([q.tokens for q in questions]):
        chosen = [questions[i] for i in group]
        batch = pad(editable, [q.tokens.ids for q in chosen])
        states = z[[q.case for q in chosen]]
        with _replaced(block, [q.tokens.fact_token for q in chosen], states):
            out = editable.model.base_model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
        for row, question in enumerate(chosen):
            target = torch.tensor(question.tokens.target_ids, device=editable.device)
            start = question.tokens.prompt_length - 1
            logs = editable.head(out.last_hidden_state[row, start : start + len(target)]).log_softmax(-1)
            if question.kind == "efficacy":
                probability.append(float(logs.gather(1, target[:, None]).sum().exp()))
            else:
                right[question.kind].append(bool((logs.argmax(-1) == target).all()))
    return Reached(
        candidate,
        median(probability),
        fmean(right["generalization"]) if right["generalization"] else None,
        fmean(right["untouched"]) if right["untouched"] else None,
        float((z.double() - hidden.double()).norm(dim=1).median()),
        seconds,
    )


def _questions(editable: EditableModel, case: Case, index: int) -> Iterator[_Question]:
    """The questions about one case whose text names its subject; where that is not as filed, z has no place."""
    request = case.request
    tokens = tokenize_template(editable.tokenizer, request.prompt_template, request.subject, target=request.target_new)
    yield _Question(tokens, index, "efficacy")
    for probe in case.probes:
        if probe.kind in ("generalization", "untouched") and request.subject in probe.prompt:
            yield _Question(_at_subject(editable, probe, request.subject), index, probe.kind)


def _at_subject(editable: EditableModel, probe: Probe, subject: str) -> TokenizedPrompt:
    start = probe.prompt.index(subject)
    return tokenize(editable.tokenizer, probe.prompt, target=probe.expected, span=(start, start + len(subject)))


@contextmanager
def _replaced(block: nn.Module, at: Sequence[int], states: torch.Tensor) -> Iterator[None]:
    """Inside, the block's output at position `at[i]` of row i is `states[i]`."""

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        hidden = hidden_of(output).clone()
        hidden[torch.arange(len(at)), torch.tensor(at)] = states.to(hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = block.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
