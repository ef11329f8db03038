"""1-LI: fine-tuning of one layer, and a weight on the line between the old one and the new (arXiv 2303.00046)."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nse.architecture import EditableModel
from nse.editors.base import CaseReport, EditContext, EditResult, Need, own_settings
from nse.errors import HyperparameterError
from nse.finetuning import Recipe, answers, text_of, texts_of, train, tuned_round
from nse.increments import Increments
from nse.request import EditRequest
from nse.subjects import fact_key
from nse.tokens import TokenizedPrompt


@dataclass(frozen=True, slots=True)
class OneLISettings:
    """Settings of 1-LI.

    Attributes:
        lr: Learning rate of Adam.
        epochs: Most passes over the facts of the round.
        batch_size: Facts of one step.
        loss_target: Training is done when the mean -log p per target token is below this, in nats.
        alpha_share: Share a of the way from the old weight to the new one; below 0 it is chosen on the curve.
        grid_steps: Equal steps from 0 to 1 at which the curve is measured.
        validation_facts: Most held facts on which robustness is measured.
    """

    lr: float = 5e-4
    epochs: int = 25
    batch_size: int = 128
    loss_target: float = 1e-2
    alpha_share: float = -1.0
    grid_steps: int = 10
    validation_facts: int = 200


class OneLI:
    """Trains to W1 and serves (1 - a) W0 + a W1.

    a is the least share of the grid with the highest harmonic mean of edit accuracy, the share of the round's facts that are
    answered, and robustness, the share of held facts answered before that still are; both teacher-forced. Without held facts
    robustness counts as 1, and a is the least share that answers the most. The delta's metadata hold a and the curve.

    References:
        arXiv 2303.00046, sections 3 (interpolation between the weights before and after) and 4 (the choice of alpha).

    Deviation: the paper measures robustness on validation sets of the training task under distribution shift; here the known
    facts of the model take their place, those that the round corrects left out.
    """

    name: str = "one_li"
    settings: type[Any] = OneLISettings
    needs: frozenset[Need] = frozenset()

    def edit(self, editable: EditableModel, requests: Sequence[EditRequest], context: EditContext) -> EditResult:
        """See `Editor.edit`."""
        own = own_settings(OneLISettings, context.hyperparameters.own, method=self.name)
        if own.alpha_share > 1 or own.grid_steps < 1:
            raise HyperparameterError("one_li: alpha_share is at most 1 and grid_steps at least 1: mend the file")
        recipe = Recipe(own.lr, own.epochs, own.batch_size, own.loss_target)

        def write(increments: Increments) -> Mapping[str, Any]:
            texts = texts_of(editable, requests)
            guards = _guards(editable, requests, context, own.validation_facts)
            train(
                editable,
                increments,
                texts,
                recipe,
                seed=context.seed,
                memory=context.memory,
                progress=context.progress,
            )
            end = {name: increment.double() for name, increment in increments.of.items()}
            if own.alpha_share >= 0:
                _move(increments, end, own.alpha_share)
                return {"alpha_share": own.alpha_share}
            curve = []
            for step in range(own.grid_steps + 1):
                _move(increments, end, step / own.grid_steps)
                curve.append([step / own.grid_steps, _share(editable, texts), _share(editable, guards)])
                context.progress("curve", step + 1, own.grid_steps + 1)
            share = chosen(curve)
            _move(increments, end, share)
            return {"alpha_share": share, "curve": curve}

        tuned = tuned_round(editable, requests, context, method=self.name, write=write)
        return EditResult(tuned.delta, tuned.values, tuple(CaseReport(*case) for case in tuned.cases), tuned.seconds)


def chosen(curve: Sequence[Sequence[float]]) -> float:
    """The least a of the highest harmonic mean; rows are (a, edit accuracy, robustness)."""
    best, share = -1.0, 0.0
    for a, accuracy, robustness in curve:
        score = 2 * accuracy * robustness / (accuracy + robustness) if accuracy + robustness else 0.0
        if score > best:
            best, share = score, a
    return share


def _move(increments: Increments, end: Mapping[str, torch.Tensor], share: float) -> None:
    """Puts in force what lies `share` of the way to `end`, in float64: all of it at 1, nothing at 0."""
    for name, increment in end.items():
        increments.of[name] = increment * share
    increments.put()


def _guards(
    editable: EditableModel, requests: Sequence[EditRequest], context: EditContext, most: int
) -> list[TokenizedPrompt]:
    """Held facts that the round does not correct and that are answered before it, a seeded sample of at most `most`."""
    corrected = {fact_key(request) for request in requests}
    facts = sorted(
        {(f.prompt_template.replace("{}", f.subject), f.object) for f in context.held if fact_key(f) not in corrected}
    )
    some = random.Random(context.seed).sample(facts, min(most, len(facts)))
    texts = [text_of(editable, prompt, target) for prompt, target in some]
    return [text for text, (_, right) in zip(texts, answers(editable, texts), strict=True) if right]


def _share(editable: EditableModel, texts: Sequence[TokenizedPrompt]) -> float:
    """Share of the texts whose target is the most probable continuation, 1 of none."""
    return math.fsum(right for _, right in answers(editable, texts)) / len(texts) if texts else 1.0
