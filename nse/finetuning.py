"""Training of output projections on (prompt, target) texts by gradient, and the round around it that methods without z share.

It owns the loss, the optimiser and what is measured before and after; which texts a method trains on, and how, is its editor's.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from nse.architecture import EditableModel
from nse.batch import Progress, by_length, halved, pad, silent
from nse.delta import Delta
from nse.errors import HyperparameterError, RequestError, TokenError
from nse.increments import Increments
from nse.keys import measure
from nse.objective import default_memory
from nse.patch import rewritable
from nse.request import EditRequest
from nse.tokens import TokenizedPrompt, tokenize

if TYPE_CHECKING:  # the editors import this module
    from nse.editors.base import EditContext


@dataclass(frozen=True, slots=True)
class Recipe:
    """How weights are trained.

    Attributes:
        lr: Learning rate of Adam.
        epochs: Passes over the texts.
        batch_size: Texts of one step; the texts are shuffled before each pass.
        loss_target: A mini-batch whose loss is below this makes no step, and a pass whose mean loss is below it is the last.
        norm_constraint: No entry of a weight moves by more than this; nothing is bounded if not given.
    """

    lr: float
    epochs: int
    batch_size: int
    loss_target: float = 0.0
    norm_constraint: float | None = None

    def __post_init__(self) -> None:
        """Checks ranges.

        Raises:
            HyperparameterError: If a value is out of its range; the message names it.
        """
        checks = (
            ("lr", self.lr, 0 < self.lr < math.inf),
            ("epochs or num_steps", self.epochs, self.epochs >= 1),
            ("batch_size", self.batch_size, self.batch_size >= 1),
            ("loss_target", self.loss_target, self.loss_target >= 0),
            ("norm_constraint", self.norm_constraint, self.norm_constraint is None or self.norm_constraint > 0),
        )
        if bad := next(((name, value) for name, value, right in checks if not right), None):
            raise HyperparameterError(f"{bad[0]} = {bad[1]!r} is out of range: mend it in the method's settings")


Case = tuple[str, Literal["edited", "unconverged"], float, float]
"""A request's name, how it came out, and the mean -log p per token of its target in nats, before and after."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a round gives: what an `EditResult` is made of.

    Attributes:
        delta: The patch.
        values: Zeros (n, d_model): there is no z.
        cases: Of each request.
        seconds: By stage.
    """

    delta: Delta
    values: torch.Tensor
    cases: tuple[Case, ...]
    seconds: dict[str, float] = field(default_factory=dict)


def tuned_round(
    editable: EditableModel,
    requests: Sequence[EditRequest],
    context: "EditContext",
    *,
    method: str,
    write: Callable[[Increments], Mapping[str, Any]],
) -> Tuned:
    """A round of a method that writes by gradient: `write` fills the increments and says what the delta's metadata shall hold.

    It is called with the weights of `context.previous` in force and able to take a gradient; afterwards the model is what it was.

    Raises:
        NseError: If a request or the settings do not fit the model, or training diverged.
    """
    hp = context.hyperparameters
    editable.check_layers(hp.layers)
    if not requests:
        raise RequestError("a round needs at least one request: there is nothing to edit")
    texts = texts_of(editable, [request.checked() for request in requests])
    names = {layer: editable.parameter_name(layer) for layer in hp.layers}
    with _trainable(editable, list(names.values()), context) as increments:
        before = answers(editable, texts, memory=context.memory)
        begun = time.perf_counter()
        metadata = {"method": method, **write(increments)}
        seconds = {"training": time.perf_counter() - begun}
        increments.put()
        after = answers(editable, texts, memory=context.memory)
        if not all(math.isfinite(loss) for loss, _ in after):
            raise HyperparameterError(f"{method}: the loss is no number any more: lower lr")
        begun = time.perf_counter()
        seen = measure(
            editable,
            requests,
            context.contexts,
            key_layers=hp.layers,
            hidden_layer=hp.z_layer,
            subject_share=hp.subject_share,
            fact_token=hp.fact_token,
        )
        seconds["keys"] = time.perf_counter() - begun
        layers = {name: increments.layer(name, seen.keys[layer].T) for layer, name in names.items()}
    cases: tuple[Case, ...] = tuple(
        (request.case_id, "edited" if right else "unconverged", first, last)
        for request, (first, _), (last, right) in zip(requests, before, after, strict=True)
    )
    delta = Delta(layers, tuple(request.case_id for request in requests), editable.base_digest, metadata)
    return Tuned(delta, torch.zeros(len(requests), int(editable.model.config.hidden_size)), cases, seconds)


@contextmanager
def _trainable(editable: EditableModel, names: Sequence[str], context: "EditContext") -> Iterator[Increments]:
    """The weights of the deltas so far in force, those called `names` able to take a gradient; taken back afterwards."""
    parameters = [editable.model.get_parameter(name) for name in names]
    with rewritable(editable, names, context.previous) as earlier:
        try:
            for parameter in parameters:
                parameter.requires_grad_(True)
            yield Increments(editable, names, earlier)
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False)


def texts_of(editable: EditableModel, requests: Sequence[EditRequest], *, end: bool = False) -> list[TokenizedPrompt]:
    """The requests' prompts with their targets in tokens, and an EOS at the end if asked.

    Raises:
        TokenError: If a text cannot be tokenised, a target is nothing that the model can produce, or there is no EOS.
    """
    return [text_of(editable, request.prompt, request.target_new, end=end) for request in requests]


def text_of(editable: EditableModel, prompt: str, target: str, *, end: bool = False) -> TokenizedPrompt:
    """A prompt with its target in tokens; see `texts_of`."""
    text = tokenize(editable.tokenizer, prompt, target=target)
    if text.prompt_length == 0:
        raise TokenError(f"target {target!r} begins in the first token of {prompt!r}: put a word before it")
    if max(text.target_ids) >= editable.vocabulary:
        raise TokenError(
            f"target {target!r} has a token beyond the model's {editable.vocabulary}: it cannot produce it"
        )
    if not end:
        return text
    eos = editable.tokenizer.eos_token_id
    if eos is None:
        raise TokenError("the tokenizer has no EOS to end a target with: set append_eos to false")
    return TokenizedPrompt((*text.ids, int(eos)), text.prompt_length)


def target_logits(editable: EditableModel, texts: Sequence[TokenizedPrompt]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (m, vocabulary) float32 before each target token of a batch, text after text, and those tokens (m,)."""
    batch = pad(editable, [text.ids[:-1] for text in texts])  # the last token predicts nothing
    row = torch.tensor([i for i, text in enumerate(texts) for _ in text.target_ids])
    column = torch.tensor([at for text in texts for at in range(text.prompt_length - 1, len(text.ids) - 1)])
    hidden = editable.model.base_model(
        input_ids=batch.ids, attention_mask=batch.mask, use_cache=False
    ).last_hidden_state
    logits = editable.head(hidden[row.to(hidden.device), column.to(hidden.device)])
    return logits, torch.tensor([token for text in texts for token in text.target_ids], device=logits.device)


def surprises(editable: EditableModel, texts: Sequence[TokenizedPrompt]) -> torch.Tensor:
    """Mean -log p per target token (n,) of each text of a batch, in nats."""
    logits, tokens = target_logits(editable, texts)
    each = torch.nn.functional.cross_entropy(logits, tokens, reduction="none")
    return torch.stack([own.mean() for own in torch.split(each, [len(text.target_ids) for text in texts])])


def memory_batches(
    editable: EditableModel, texts: Sequence[TokenizedPrompt], memory: int | None, *, lowest: int = 0
) -> Iterator[list[int]]:
    """Places of texts of like length whose activations above layer `lowest` take about `memory` bytes."""
    width = int(editable.model.config.hidden_size)
    inner = editable.base_weight(editable.parameter_name(lowest)).shape[1]
    per_token = 4 * ((editable.layers - lowest) * (16 * width + 4 * inner) + 3 * editable.vocabulary)
    yield from by_length(texts, tokens=max(1, (memory or default_memory(editable)) // per_token))


@torch.no_grad()
def answers(
    editable: EditableModel, texts: Sequence[TokenizedPrompt], *, memory: int | None = None
) -> list[tuple[float, bool]]:
    """Per text the mean -log p per target token in nats, and whether each of them is the most probable one there."""
    found: dict[int, tuple[float, bool]] = {}

    def run(group: Sequence[int]) -> list[int]:
        chosen = [texts[i] for i in group]
        logits, tokens = target_logits(editable, chosen)
        each = torch.nn.functional.cross_entropy(logits, tokens, reduction="none")
        lengths = [len(text.target_ids) for text in chosen]
        hits = torch.split(logits.argmax(dim=-1) == tokens, lengths)
        for place, own, hit in zip(group, torch.split(each, lengths), hits, strict=True):
            found[place] = (float(own.mean()), bool(hit.all()))
        return list(group)

    for group in memory_batches(editable, texts, memory):
        halved(run, group, what="texts")
    return [found[i] for i in range(len(texts))]


def train(
    editable: EditableModel,
    increments: Increments,
    texts: Sequence[TokenizedPrompt],
    recipe: Recipe,
    *,
    seed: int = 0,
    memory: int | None = None,
    progress: Progress = silent,
) -> None:
    """Trains increments on texts with Adam: the mean over a mini-batch's texts of the mean -log p per target token.

    Args:
        editable: The model, the round's weights in force.
        increments: What is trained; the model ends with them in force.
        texts: Prompts with targets.
        recipe: Learning rate, passes, mini-batches, bounds.
        seed: Of the order of the texts.
        memory: Most bytes of activations at a time, by estimate; by the device if not given. Gradients are summed over parts.
        progress: Called as `progress("training", pass, passes)`.
    """
    generator = torch.Generator().manual_seed(seed)
    moving = list(increments.of.values())
    optimizer = torch.optim.Adam(moving, lr=recipe.lr)
    for epoch in range(recipe.epochs):
        order, losses = torch.randperm(len(texts), generator=generator).tolist(), []
        for start in range(0, len(texts), recipe.batch_size):
            # in the order of the list, so that one mini-batch of everything is the same in each pass
            chosen = [texts[i] for i in sorted(order[start : start + recipe.batch_size])]
            loss = _descend(editable, increments, chosen, memory)
            losses += [loss] * len(chosen)
            if loss >= recipe.loss_target:
                optimizer.step()
                if (bound := recipe.norm_constraint) is not None:
                    for increment in moving:
                        increment.clamp_(-bound, bound)
                increments.put()
        progress("training", epoch + 1, recipe.epochs)
        if math.fsum(losses) / len(losses) < recipe.loss_target:
            break


def _descend(
    editable: EditableModel, increments: Increments, texts: Sequence[TokenizedPrompt], memory: int | None
) -> float:
    """Sets the increments' gradients to that of the mean loss of `texts`, and returns the loss."""
    parameters = list(increments.parameters.values())
    gradients = [torch.zeros_like(increment) for increment in increments.of.values()]

    def run(group: Sequence[int]) -> list[float]:
        each = surprises(editable, [texts[i] for i in group])
        for total, part in zip(gradients, torch.autograd.grad(each.sum() / len(texts), parameters), strict=True):
            total += part
        shares: list[float] = each.detach().tolist()
        return shares

    lowest = min(layer for layer in range(editable.layers) if editable.parameter_name(layer) in increments.parameters)
    losses: list[float] = []
    for group in memory_batches(editable, texts, memory, lowest=lowest):
        losses += halved(run, group, what="texts")
    for increment, gradient in zip(increments.of.values(), gradients, strict=True):
        increment.grad = gradient
    return math.fsum(losses) / len(losses)
