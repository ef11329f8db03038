"""Steps: the tokens of a correction's target, each written where the model has to say it.

A vector at its prompt's last token (`fact_token: last`) makes a model say one token. The further tokens of a target that the base
model does not say by itself are written where those before them stand, each with a key and a z of its own; what is written for
them belongs to their correction.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from transformers import PreTrainedTokenizerBase

from nse.architecture import EditableModel
from nse.batch import by_length, halved, pad
from nse.hyperparameters import Hyperparameters
from nse.patch import base_in_force
from nse.request import EditRequest
from nse.subjects import HeldFact, companions
from nse.tokens import TokenizedPrompt, tokenize_template


@dataclass(frozen=True, slots=True)
class Step(EditRequest):
    """One further token of a correction's target, to be said after the prompt and the first `step` tokens of the target."""

    step: int = 0


SURE = 0.2
"""A token whose loss under the base model is below this share of `v_loss_target` is said whatever a round writes elsewhere."""


def further_steps(editable: EditableModel, requests: Sequence[EditRequest], loss: float) -> list[Step]:
    """The tokens of the requests' targets that need writing, the first of each aside.

    A name once begun mostly goes on by itself: of the demo's further tokens three in four.

    Args:
        editable: The model; its base weights are put in force to ask it.
        requests: n corrections.
        loss: `v_loss_target`. A token whose -log p in nats, after the prompt and the tokens before it, is below `SURE` times
            this needs no writing.

    Raises:
        TokenError: If a prompt or target cannot be tokenised, or is too long.
    """
    prompts = [
        tokenize_template(editable.tokenizer, r.prompt_template, r.subject, target=r.target_new) for r in requests
    ]
    losses: dict[int, list[float]] = {}

    def run(group: Sequence[int]) -> Sequence[int]:
        batch = pad(editable, [prompts[i].ids for i in group])
        out = editable.model.base_model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
        for row, i in enumerate(group):
            said = out.last_hidden_state[row, prompts[i].prompt_length - 1 : len(prompts[i].ids) - 1]
            target = torch.tensor(prompts[i].target_ids, device=editable.device)
            logs = editable.head(said).to(target.device).log_softmax(dim=-1)
            losses[i] = (-logs.gather(1, target[:, None])).squeeze(1).tolist()
        return group

    with base_in_force(editable), torch.no_grad():
        for group in by_length(prompts):
            halved(run, group, what="prompts")
    return [
        Step(**{field.name: getattr(request, field.name) for field in fields(EditRequest)}, step=step)
        for i, request in enumerate(requests)
        for step, lacking in enumerate(losses[i])
        if step and lacking >= SURE * loss
    ]


def facts_of_round(
    editable: EditableModel,
    requests: Sequence[EditRequest],
    earlier: Iterable[EditRequest],
    hyperparameters: Hyperparameters,
) -> list[EditRequest]:
    """What a round writes: its requests, then what belongs to them, further steps or companions, as the settings say."""
    if hyperparameters.fact_token == "last":
        return [*requests, *further_steps(editable, requests, hyperparameters.v_loss_target)]
    return [*requests, *(companions(requests, earlier) if hyperparameters.one_z_per_subject else ())]


def step_of(fact: EditRequest | HeldFact) -> int:
    """How many tokens of its target stand before the one that a fact is about."""
    return fact.step if isinstance(fact, Step) else 0


def written_in(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    fact: EditRequest | HeldFact,
    *,
    fact_token: str,
    target: str = "",
) -> TokenizedPrompt:
    """A fact's text, with the token where it is written.

    Args:
        tokenizer: A fast tokenizer.
        template: The fact's prompt template, perhaps inside a context.
        fact: The fact, or a step of it.
        fact_token: As in `Hyperparameters`.
        target: Text of the target, empty for none; a further step has its own in any case.

    Raises:
        TokenError: If the text cannot be tokenised.
    """
    if not (step := step_of(fact)):
        return tokenize_template(tokenizer, template, fact.subject, target=target, fact_token=fact_token)
    assert isinstance(fact, Step)
    prompt = tokenize_template(tokenizer, template, fact.subject, target=fact.target_new, fact_token=fact_token)
    return replace(prompt, fact_token=prompt.prompt_length - 1 + step)
