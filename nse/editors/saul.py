"""SAUL: fine-tuning on each new fact followed by a random true one, so that the model goes on speaking (arXiv 2410.02433)."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nse.architecture import EditableModel
from nse.contexts import sample_contexts
from nse.editors.base import CaseReport, EditContext, EditResult, Need, own_settings
from nse.errors import HyperparameterError
from nse.finetuning import Recipe, text_of, train, tuned_round
from nse.increments import Increments
from nse.patch import base_in_force
from nse.request import EditRequest
from nse.subjects import fact_key
from nse.tokens import TokenizedPrompt, join

OWN_TEXT = 12
"""Tokens of a sentence that the base model says, where no known fact is given."""


@dataclass(frozen=True, slots=True)
class SAULSettings:
    """Settings of SAUL.

    Attributes:
        lr: Learning rate of Adam.
        epochs: Passes over the texts.
        batch_size: Texts of one step.
        facts_per_edit: Texts of each request, each ending in another true fact.
        loss_target: Done when the mean -log p per scored token is below this, in nats; the true facts keep it from 0.
    """

    lr: float = 5e-4
    epochs: int = 15
    batch_size: int = 64
    facts_per_edit: int = 4
    loss_target: float = 0.0


class SAUL:
    """Trains on "prompt target. true fact." and scores all tokens after the prompt, the true fact's too.

    The true facts are drawn from `EditContext.held`, less those that the round corrects; without any, they are sentences that the
    base model says itself, which it holds for true. A request's neighbourhood prompts are for evaluation and are not used.

    References:
        arXiv 2410.02433, section 3 (generation regularization by concatenation with random facts).

    Deviation: layer, learning rate, passes and the number of true facts per request are not public in what we read; they are
    found by measurement. `EditContext.seed` decides which facts are drawn.
    """

    name: str = "saul"
    settings: type[Any] = SAULSettings
    needs: frozenset[Need] = frozenset()

    def edit(self, editable: EditableModel, requests: Sequence[EditRequest], context: EditContext) -> EditResult:
        """See `Editor.edit`."""
        own = own_settings(SAULSettings, context.hyperparameters.own, method=self.name)
        if own.facts_per_edit < 1:
            raise HyperparameterError(f"saul: facts_per_edit = {own.facts_per_edit} is out of range: give 1 or more")
        recipe = Recipe(own.lr, own.epochs, own.batch_size, own.loss_target)

        def write(increments: Increments) -> Mapping[str, Any]:
            train(
                editable,
                increments,
                _texts(editable, requests, _true_sentences(editable, requests, context), own, context.seed),
                recipe,
                seed=context.seed,
                memory=context.memory,
                progress=context.progress,
            )
            return {}

        tuned = tuned_round(editable, requests, context, method=self.name, write=write)
        return EditResult(tuned.delta, tuned.values, tuple(CaseReport(*case) for case in tuned.cases), tuned.seconds)


def _true_sentences(editable: EditableModel, requests: Sequence[EditRequest], context: EditContext) -> list[str]:
    """Sentences of known facts that the round leaves alone, or the base model's own; at least one, without full stops."""
    corrected = {fact_key(request) for request in requests}
    held = {
        join(fact.prompt_template.replace("{}", fact.subject), fact.object)
        for fact in context.held
        if fact_key(fact) not in corrected
    }
    if held:
        return sorted(held)
    with base_in_force(editable):
        _, said = sample_contexts(editable, seed=context.seed, length=OWN_TEXT)
    return [text.removesuffix(". {}") for text in said]


def _texts(
    editable: EditableModel, requests: Sequence[EditRequest], sentences: Sequence[str], own: SAULSettings, seed: int
) -> list[TokenizedPrompt]:
    """`facts_per_edit` texts of each request; the same true fact twice only where there are too few."""
    generator, texts = random.Random(seed), []
    for request in requests:
        count = min(own.facts_per_edit, len(sentences))
        for sentence in generator.sample(sentences, count):
            texts.append(text_of(editable, request.prompt, f"{request.target_new}. {sentence}."))
    return texts
