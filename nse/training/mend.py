"""Training of MEND's network: on single edits of the base model, each judged by its rewordings and by what shall stay."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nse.adapter import Factors, adapted
from nse.architecture import EditableModel
from nse.batch import Progress
from nse.errors import HyperparameterError, TrainingError
from nse.finetuning import target_logits, text_of
from nse.hypernetwork import Hypernetwork, TokenGradients, token_gradients
from nse.request import EditRequest
from nse.tokens import TokenizedPrompt, tokenize

CLIP = 100.0
"""Largest norm of a step's gradient, as published."""


@dataclass(frozen=True, slots=True)
class MendSettings:
    """Settings of MEND; all but `edit_scale` are of its training.

    Attributes:
        rank: Of the network's matrices.
        lr: Learning rate of Adam for the network.
        edit_lr: What the learned learning rate of each layer starts from.
        edit_lr_lr: Learning rate of Adam for those.
        edit_weight: Weight of the loss of the edit beside that of what shall stay.
        batch_size: Edits of one training step.
        together: How many of them are written at once: as many as a round will have, if it is to hold in a round.
        steps: Training steps, unless the command says otherwise.
        edit_scale: The update is multiplied by this when a round is written.
    """

    rank: int = 1920
    lr: float = 1e-6
    edit_lr: float = 1e-4
    edit_lr_lr: float = 1e-4
    edit_weight: float = 0.1
    batch_size: int = 10
    together: int = 1
    steps: int = 1000
    edit_scale: float = 1.0

    def __post_init__(self) -> None:
        """Checks ranges.

        Raises:
            HyperparameterError: If a value is out of its range.
        """
        counts = (self.rank, self.batch_size, self.together, self.steps)
        rates = (self.lr, self.edit_lr, self.edit_weight)
        if min(counts) < 1 or min(rates) <= 0 or self.edit_lr_lr < 0:
            raise HyperparameterError(f"mend: {self} is out of range: counts from 1, rates above 0")


def train_mend(
    editable: EditableModel,
    requests: Sequence[EditRequest],
    *,
    layers: tuple[int, ...],
    settings: MendSettings,
    steps: int,
    seed: int,
    progress: Progress,
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Trains a network that turns gradients into edits.

    The loss of a step is the mean over its edits of `edit_weight` * -log p(target | rewording) per token + the divergence of the
    next token at prompts that shall stay, before against after, `together` edits at a time written on the base model.

    Args:
        editable: The base model.
        requests: Edits to learn from: their rewordings and neighbourhood prompts are the judges.
        layers: Whose output projections are edited.
        settings: Of the method.
        steps: Steps of Adam.
        seed: Of the network, and of which edits and judges make a step.
        progress: Called per step.

    Returns:
        The network's state, and the loss of each step.

    References:
        MEND (arXiv 2110.11309), section 3.2, equation 4.

    Deviation: the mean and deviation that normalise u and v are taken over all edits before the first step; there they run along.

    Raises:
        TrainingError: If no edit has prompts that shall stay, or the loss is no number any more.
    """
    around = [request for request in requests if request.neighborhood_prompts]
    if not around:
        raise TrainingError("no request has neighborhood_prompts: mend learns from them what shall stay")
    generator, chance = torch.Generator().manual_seed(seed), random.Random(seed)
    edits = [text_of(editable, request.prompt, request.target_new) for request in requests]
    seen = token_gradients(editable, edits, layers)
    network = Hypernetwork(editable, layers, settings.rank, settings.edit_lr, generator)
    network.normalise_by(seen)
    rates = [p for name, p in network.named_parameters() if name.endswith("edit_lr")]
    rest = [p for name, p in network.named_parameters() if not name.endswith("edit_lr")]
    groups: list[dict[str, Any]] = [{"params": rest}, {"params": rates, "lr": settings.edit_lr_lr}]
    optimizer = torch.optim.Adam(groups, lr=settings.lr)
    losses = []
    for step in range(steps):
        chosen = chance.sample(range(len(requests)), min(settings.batch_size, len(requests)))
        total = 0.0
        for start in range(0, len(chosen), settings.together):
            group = chosen[start : start + settings.together]
            judges = [_judges(editable, requests[i], around, chance) for i in group]
            own = {layer: _of_facts(seen[layer], group) for layer in layers}
            edited, kept = ([text for judge in judges for text in judge[part]] for part in (0, 1))
            with torch.enable_grad():
                loss = _loss(editable, _factors(editable, network, own), edited, kept, settings.edit_weight)
                loss = loss * len(group) / len(chosen)
            torch.autograd.backward(loss)
            total += loss.item()
        if not torch.isfinite(torch.tensor(total)):
            raise TrainingError("mend: the loss is no number any more: lower lr and edit_lr")
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
        progress("training", step + 1, steps)
    return network.state_dict(), losses


def _of_facts(tokens: TokenGradients, facts: Sequence[int]) -> TokenGradients:
    own = torch.isin(tokens.fact, torch.tensor(facts))
    return TokenGradients(tokens.inputs[own], tokens.gradients[own], tokens.fact[own])


def _judges(
    editable: EditableModel, request: EditRequest, around: Sequence[EditRequest], chance: random.Random
) -> tuple[list[TokenizedPrompt], list[TokenizedPrompt]]:
    """The edit itself and a rewording, with the target; and two prompts that shall stay, one of its own and one of any.

    Those have any token as their target: what the model says before it is what shall stay.
    """
    wordings = [request.prompt, *([chance.choice(request.paraphrase_prompts)] if request.paraphrase_prompts else [])]
    pools = [r.neighborhood_prompts for r in (request, chance.choice(around)) if r.neighborhood_prompts]
    kept = [tokenize(editable.tokenizer, chance.choice(pool)).ids for pool in pools]
    texts = [text_of(editable, wording, request.target_new) for wording in wordings]
    return texts, [TokenizedPrompt((*ids, ids[-1]), len(ids)) for ids in kept]


def _factors(
    editable: EditableModel, network: Hypernetwork, tokens: Mapping[int, TokenGradients]
) -> dict[str, Factors]:
    """The update that one edit's tokens give, by module."""
    made = {editable.projection_name(layer): network(layer, own) for layer, own in tokens.items()}
    return {name: (left.to(editable.device), right.to(editable.device)) for name, (left, right) in made.items()}


def _loss(
    editable: EditableModel,
    factors: Mapping[str, Factors],
    edited: Sequence[TokenizedPrompt],
    kept: Sequence[TokenizedPrompt],
    edit_weight: float,
) -> torch.Tensor:
    """The loss of the edits that `factors` write, a scalar."""
    with torch.no_grad():
        reference = target_logits(editable, kept)[0].log_softmax(dim=-1)
    with adapted(editable, factors):
        logits, tokens = target_logits(editable, [*edited, *kept])
    wanted = len(tokens) - len(kept)
    each = torch.nn.functional.cross_entropy(logits[:wanted], tokens[:wanted], reduction="none")
    surprise = torch.stack([own.mean() for own in torch.split(each, [len(text.target_ids) for text in edited])])
    divergence = (reference.exp() * (reference - logits[wanted:].log_softmax(dim=-1))).sum(dim=-1)
    return edit_weight * surprise.mean() + divergence.mean()
