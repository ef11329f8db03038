"""Training of SERAC's parts: which prompts are in the scope of an edit, and a model that says what an edit has told it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from nse.adapter import Factors, adapted
from nse.architecture import EditableModel
from nse.batch import Progress
from nse.errors import HyperparameterError, TrainingError
from nse.finetuning import surprises, text_of
from nse.memories.serac import statement
from nse.memories.states import entering
from nse.request import EditRequest
from nse.tokens import TokenizedPrompt, join, tokenize


@dataclass(frozen=True, slots=True)
class SeracSettings:
    """Settings of SERAC; all but `scale` are of its training.

    Attributes:
        scope_layer: The layer whose entering states tell prompts apart; a negative one counts from the last.
        width: Dimensions of the scope's embedding.
        scope_lr: Learning rate of Adam for the scope's map.
        rank: Of the counterfactual model's adapter, at every linear map of the blocks in `layers`.
        lr: Learning rate of Adam for the adapter.
        batch_size: Texts of one training step.
        steps: Training steps of each part, unless the command says otherwise.
        scale: How fast the scope of an edit ends around it: a prompt is in it if exp(-scale d^2) > 1/2.
    """

    scope_layer: int = -1
    width: int = 128
    scope_lr: float = 1e-3
    rank: int = 16
    lr: float = 1e-3
    batch_size: int = 32
    steps: int = 1000
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Checks ranges.

        Raises:
            HyperparameterError: If a value is out of its range.
        """
        counts, rates = (self.width, self.rank, self.batch_size, self.steps), (self.scope_lr, self.lr, self.scale)
        if min(counts) < 1 or min(rates) <= 0:
            raise HyperparameterError(f"serac: {self} is out of range: counts from 1, rates above 0")

    def scope_block(self, editable: EditableModel) -> int:
        """The number of the block that `scope_layer` names.

        Raises:
            HyperparameterError: If the model has no such layer.
        """
        number = self.scope_layer + (editable.layers if self.scope_layer < 0 else 0)
        if not 0 <= number < editable.layers:
            raise HyperparameterError(f"serac: scope_layer {self.scope_layer} is not in this model: mend the file")
        return number


def train_serac(
    editable: EditableModel,
    requests: Sequence[EditRequest],
    *,
    layers: tuple[int, ...],
    settings: SeracSettings,
    steps: int,
    seed: int,
    progress: Progress,
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Trains the scope's map and the counterfactual model's adapter, each alone.

    Args:
        editable: The base model.
        requests: Edits to learn from: their rewordings are in scope, neighbourhood prompts and each other's prompts are not.
        layers: Blocks that the adapter reaches.
        settings: Of the method.
        steps: Steps of Adam for each part.
        seed: Of what is random at the start, and of what makes a step.
        progress: Called per step.

    Returns:
        The trained tensors, and the sum of both parts' losses at each step.

    References:
        SERAC (arXiv 2206.06520), section 3.

    Deviation: the scope is judged by the base model's own states through a linear map, and the counterfactual model is the base
    model with a low-rank adapter: what a night's artifact holds stays small. The paper trains two further models.
    """
    scope, missed = _train_scope(editable, requests, settings, steps, seed, progress)
    adapter, surprised = _train_adapter(editable, requests, layers, settings, steps, seed, progress)
    tensors = {"scope": scope}
    for name, (left, right) in adapter.items():
        tensors |= {f"{name}.up": left, f"{name}.down": right}
    return tensors, [a + b for a, b in zip(missed, surprised, strict=True)]


def _train_scope(
    editable: EditableModel,
    requests: Sequence[EditRequest],
    settings: SeracSettings,
    steps: int,
    seed: int,
    progress: Progress,
) -> tuple[torch.Tensor, list[float]]:
    """The map (width, d_model) by which exp(-d^2) tells whether a prompt asks for an edit, and the cross-entropy of each step."""
    prompts, owner = _scope_prompts(requests)
    texts = [tokenize(editable.tokenizer, prompt).ids for prompt in prompts]
    states = entering(editable, texts, settings.scope_block(editable), weights=editable.base_tensors)
    deviation = states.std(dim=0).clamp_min(1e-6)
    states = (states - states.mean(dim=0)) / deviation
    generator, n = torch.Generator().manual_seed(seed), len(requests)
    start = (
        torch.randn(settings.width, states.shape[1], generator=generator) / (settings.width * states.shape[1]) ** 0.5
    )
    scope = start.requires_grad_(True)
    optimizer = torch.optim.Adam([scope], lr=settings.scope_lr)
    losses = []
    for step in range(steps):
        edits = torch.randperm(n, generator=generator)[: 8 * settings.batch_size]
        with torch.enable_grad():
            embedded = states @ scope.T
            # (edits, prompts): an edit's own prompt is as near as can be and teaches nothing
            square = torch.cdist(embedded[edits], embedded[n:]).square().clamp_min(1e-6)
            inside = owner[None, n:] == edits[:, None]
            loss = torch.where(inside, square, -torch.log(-torch.expm1(-square))).sum() / len(edits)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        progress("training scope", step + 1, steps)
    return scope.detach() / deviation, losses


def _scope_prompts(requests: Sequence[EditRequest]) -> tuple[list[str], torch.Tensor]:
    """The edits' prompts, then all others; and the edit (m,) whose scope each is in, -1 for none.

    Raises:
        TrainingError: If there is nothing to tell apart.
    """
    found = [(request.prompt, i) for i, request in enumerate(requests)]
    found += [(prompt, i) for i, request in enumerate(requests) for prompt in request.paraphrase_prompts]
    known = {prompt for prompt, _ in found}
    around = dict.fromkeys(prompt for request in requests for prompt in request.neighborhood_prompts)
    found += [(prompt, -1) for prompt in around if prompt not in known]
    if not any(request.paraphrase_prompts for request in requests):
        raise TrainingError("no request has paraphrase_prompts: serac learns from them what is in scope")
    return [prompt for prompt, _ in found], torch.tensor([i for _, i in found])


def _train_adapter(
    editable: EditableModel,
    requests: Sequence[EditRequest],
    layers: Sequence[int],
    settings: SeracSettings,
    steps: int,
    seed: int,
    progress: Progress,
) -> tuple[dict[str, Factors], list[float]]:
    """An adapter under which a target follows a statement of the edit and its prompt or a rewording; the loss of each step.

    Half of the texts state another target of the same relation, so that the statement is read and no fact is learned by heart.
    """
    factors = _new_adapter(editable, layers, settings.rank, torch.Generator().manual_seed(seed))
    optimizer = torch.optim.Adam([part for pair in factors.values() for part in pair], lr=settings.lr)
    targets: dict[str | None, list[str]] = {}
    for request in requests:
        targets.setdefault(request.relation, []).append(request.target_new)
    chance, losses = random.Random(seed), []
    for step in range(steps):
        texts = []
        for request in chance.choices(requests, k=settings.batch_size):
            target = request.target_new if chance.random() < 0.5 else chance.choice(targets[request.relation])
            texts.append(_told(editable, replace(request, target_new=target), chance))
        with torch.enable_grad(), adapted(editable, factors):
            loss = surprises(editable, texts).mean()
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        progress("training counterfactual model", step + 1, steps)
    return {name: (left.detach(), right.detach()) for name, (left, right) in factors.items()}, losses


def _told(editable: EditableModel, request: EditRequest, chance: random.Random) -> TokenizedPrompt:
    """A statement of the edit, one of its wordings, and the target with a full stop, so that the model ends there."""
    wording = chance.choice((request.prompt, *request.paraphrase_prompts))
    return text_of(editable, join(statement(request), wording), f"{request.target_new.rstrip('.')}.")


def _new_adapter(
    editable: EditableModel, layers: Sequence[int], rank: int, generator: torch.Generator
) -> dict[str, Factors]:
    """An adapter that adds nothing yet, at the linear maps of some blocks."""
    factors = {}
    for layer in layers:
        block = editable.architecture.block.format(layer)
        for name, module in editable.model.get_submodule(block).named_modules():
            if not isinstance(module, nn.Linear | Conv1D):
                continue
            d_in, d_out = module.weight.shape if isinstance(module, Conv1D) else module.weight.shape[::-1]
            right = torch.randn(rank, d_in, generator=generator) * d_in**-0.5
            device = editable.device
            factors[f"{block}.{name}"] = (
                torch.zeros(d_out, rank, device=device, requires_grad=True),
                right.to(device).requires_grad_(True),
            )
    return factors
