"""The reference for the fast code: one fact at a time, the whole model at every step, dense systems, straight from the paper.

Shares nothing with `nse` but the loaded model and the settings: tokens are found by re-tokenised prefixes, which is right for the
byte-level tokenizers of these tests. Beside it stands `compute_z_as_published`: the same z in the layout of the published code.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from nse.architecture import EditableModel
from nse.hyperparameters import Hyperparameters
from nse.request import EditRequest

Contexts = Sequence[Sequence[str]]


def ids_of(editable: EditableModel, text: str) -> list[int]:
    """Token ids as the tokenizer gives them."""
    return list(editable.tokenizer(text)["input_ids"])


def wrapped(context: str, request: EditRequest, fact_token: str = "subject_last") -> tuple[str, int]:
    """The prompt inside a context, and where in it what ends with the fact's token does."""
    before = context.split("{}")[0] + request.prompt_template.split("{}")[0] + request.subject
    text = context.replace("{}", request.prompt_template).replace("{}", request.subject)
    return text, len(before) if fact_token == "subject_last" else len(text)


def subject_last(editable: EditableModel, text: str, end: int) -> int:
    """Index of the last token of the text's first `end` characters."""
    before = ids_of(editable, text[:end])
    assert ids_of(editable, text)[: len(before)] == before
    return len(before) - 1


def located(editable: EditableModel, text: tuple[str, int] | tuple[list[int], int]) -> tuple[list[int], int]:
    """Token ids and an index among them, of a text and a number of its characters, or of just these."""
    content, end = text
    return (
        (ids_of(editable, content), subject_last(editable, content, end))
        if isinstance(content, str)
        else (content, end)
    )


def placed(editable: EditableModel, context: str, fact: EditRequest, fact_token: str) -> tuple[list[int], int]:
    """Token ids up to where a fact, or a further token of its target, is written in a context, and the index of that place."""
    text, end = wrapped(context, fact, fact_token)
    if not (step := getattr(fact, "step", 0)):
        return located(editable, (text, end))
    ids = ids_of(editable, f"{text} {fact.target_new}")
    place = len(ids_of(editable, text)) - 1 + step
    return ids[: place + 1], place


@contextmanager
def output_shifted(module: nn.Module, positions: int | list[int], shift: torch.Tensor) -> Iterator[None]:
    """Adds `shift` to the module's output at one position of each row, by a hook."""

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        mask = torch.zeros_like(hidden)
        mask[torch.arange(len(mask)), positions] = 1.0
        shifted = hidden + mask * shift
        return (shifted, *output[1:]) if isinstance(output, tuple) else shifted

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def log_probabilities(model: nn.Module, ids: list[int]) -> torch.Tensor:
    """log p of the next token at every position (t, vocabulary), the whole model, one text."""
    return torch.log_softmax(model(input_ids=on_device(model, [ids])).logits[0].float(), dim=-1)


def on_device(model: nn.Module, ids: list[list[int]]) -> torch.Tensor:
    """Token ids (n, t) where the model is."""
    return torch.tensor(ids, device=next(model.parameters()).device)


def target_score(editable: EditableModel, prompt: str, target: str) -> tuple[torch.Tensor, int]:
    """Sum of the target's log-probabilities after the prompt, and its number of tokens."""
    before, ids = ids_of(editable, prompt), ids_of(editable, f"{prompt} {target}")
    assert ids[: len(before)] == before
    logs = log_probabilities(editable.model, ids)
    picked = [logs[i - 1, ids[i]] for i in range(len(before), len(ids))]
    return torch.stack(picked).sum(), len(picked)


def compute_z(
    editable: EditableModel, request: EditRequest, *, contexts: Contexts, hyperparameters: Hyperparameters
) -> torch.Tensor:
    """z of one fact under the weights that the model holds."""
    hp, model = hyperparameters, editable.model
    block = editable.block(hp.z_layer)
    texts = [wrapped(context, request) for group in contexts for context in group]
    kl_text = f"{request.subject} is a"
    kl_ids, kl_at = ids_of(editable, kl_text), subject_last(editable, kl_text, len(request.subject))
    h = hidden_at(editable, model, texts[0], hp.z_layer).float()
    with torch.no_grad():
        reference = log_probabilities(model, kl_ids)[kl_at]

    def loss_of(delta: torch.Tensor) -> torch.Tensor:
        losses = []
        for text, end in texts:
            with output_shifted(block, subject_last(editable, text, end), delta):
                score, count = target_score(editable, text, request.target_new)
            losses.append(-score / count)
        with output_shifted(block, kl_at, delta):
            logs = log_probabilities(model, kl_ids)[kl_at]
        return torch.stack(losses).mean() + hp.kl_factor * (logs.exp() * (logs - reference)).sum()

    return minimised(loss_of, h, hp)


def compute_z_of_step(
    editable: EditableModel, fact: EditRequest, *, contexts: Contexts, hyperparameters: Hyperparameters
) -> torch.Tensor:
    """z of one token of a target, written where it is said, under the weights that the model holds."""
    hp, model = hyperparameters, editable.model
    block = editable.block(hp.z_layer)
    places = [placed(editable, context, fact, "last") for group in contexts for context in group]
    token = ids_of(editable, f"{fact.prompt} {fact.target_new}")[places[0][1] + 1]

    def loss_of(delta: torch.Tensor) -> torch.Tensor:
        losses = []
        for ids, place in places:
            with output_shifted(block, place, delta):
                losses.append(-log_probabilities(model, ids)[place, token])
        return torch.stack(losses).mean()

    return minimised(loss_of, hidden_at(editable, model, places[0], hp.z_layer).float(), hp)


def compute_z_as_published(
    editable: EditableModel, request: EditRequest, *, contexts: Contexts, hyperparameters: Hyperparameters
) -> torch.Tensor:
    """The same z in the layout of the published code: the contexts of a fact and its KL prompt in one padded batch.

    At every step the whole model is run on all tokens but the target's last, and log-probabilities are taken everywhere.
    """
    hp, model = hyperparameters, editable.model
    texts = [wrapped(context, request) for group in contexts for context in group]
    kl_text = f"{request.subject} is a"
    ends = [subject_last(editable, *text) for text in texts] + [subject_last(editable, kl_text, len(request.subject))]
    whole = [ids_of(editable, f"{text} {request.target_new}") for text, _ in texts]
    rows = [ids[:-1] for ids in whole] + [ids_of(editable, kl_text)]
    wanted = torch.full((len(rows), max(map(len, rows))), -100)
    for row, ((text, _), ids) in enumerate(zip(texts, whole, strict=True)):
        before = len(ids_of(editable, text))
        wanted[row, before - 1 : len(ids) - 1] = torch.tensor(ids[before:])
    width = wanted.shape[1]
    batch = on_device(model, [ids + [0] * (width - len(ids)) for ids in rows])
    mask = on_device(model, [[1] * len(ids) + [0] * (width - len(ids)) for ids in rows])
    wanted = wanted.to(batch.device)
    scored = wanted != -100
    h = hidden_at(editable, model, texts[0], hp.z_layer).float()
    reference: list[torch.Tensor] = []

    def loss_of(delta: torch.Tensor) -> torch.Tensor:
        with output_shifted(editable.block(hp.z_layer), ends, delta):
            logs = torch.log_softmax(model(input_ids=batch, attention_mask=mask).logits.float(), dim=-1)
        nll = -logs.gather(2, wanted.clamp_min(0)[:, :, None]).squeeze(2) * scored
        losses = nll[:-1].sum(dim=1) / scored[:-1].sum(dim=1)
        kept = logs[-1, ends[-1]]
        reference.append(reference[0] if reference else kept.detach())
        return losses.mean() + hp.kl_factor * (kept.exp() * (kept - reference[0])).sum()

    return minimised(loss_of, h, hp)


def minimised(loss_of: Callable[[torch.Tensor], torch.Tensor], h: torch.Tensor, hp: Hyperparameters) -> torch.Tensor:
    """h + the delta that Adam finds for `loss_of` with the weight decay of the paper, clamped after each step."""
    delta, first, second = torch.zeros_like(h), torch.zeros_like(h), torch.zeros_like(h)
    for step in range(1, hp.value_updates + 1):
        delta = delta.detach().requires_grad_(True)
        loss = loss_of(delta) + hp.v_weight_decay * delta.norm() / h.norm() ** 2
        if float(loss.detach()) < hp.v_loss_target:
            break
        (gradient,) = torch.autograd.grad(loss, delta)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        rate = hp.v_lr * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        delta = (delta - rate).detach()
        limit = hp.clamp_norm_factor * h.norm()
        if delta.norm() > limit:
            delta = delta * limit / delta.norm()
    return (h + delta.detach()).float().cpu()


@torch.no_grad()
def hidden_at(
    editable: EditableModel, model: nn.Module, text: tuple[str, int] | tuple[list[int], int], layer: int
) -> torch.Tensor:
    """The hidden state after `layer` at a place of a text."""
    ids, at = located(editable, text)
    out = model(input_ids=on_device(model, [ids]), output_hidden_states=True)
    hidden: torch.Tensor = out.hidden_states[layer + 1][0, at]
    return hidden


@torch.no_grad()
def key_at(
    editable: EditableModel, model: nn.Module, text: tuple[str, int] | tuple[list[int], int], layer: int
) -> torch.Tensor:
    """What the output projection of `layer` reads at a place of a text."""
    ids, at = located(editable, text)
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(editable.projection_name(layer)).register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0])
    )
    model(input_ids=on_device(model, [ids]))
    handle.remove()
    return seen[0][0, at].double()


def key_of(
    editable: EditableModel,
    model: nn.Module,
    request: EditRequest,
    contexts: Contexts,
    layer: int,
    subject_share: float = 0.0,
    fact_token: str = "subject_last",
) -> torch.Tensor:
    """Mean over groups of the mean within each group, a share of it measured on the subject without its prompt."""

    def mean(fact: EditRequest) -> torch.Tensor:
        groups = [
            [key_at(editable, model, placed(editable, c, fact, fact_token), layer) for c in group] for group in contexts
        ]
        return torch.stack([torch.stack(group).mean(dim=0) for group in groups]).mean(dim=0)

    if not subject_share:
        return mean(request)
    return (1 - subject_share) * mean(request) + subject_share * mean(replace(request, prompt_template="{}"))


@dataclass
class Round:
    """What the reference says of a round: weights (d_out, d_in), keys (d_in, n) after it, residuals, passes made."""

    weights: dict[str, torch.Tensor]
    keys: dict[str, torch.Tensor]
    before: list[float]
    after: list[float]
    written_per_pass: list[list[int]]


def nse_round(
    editable: EditableModel,
    requests: Sequence[EditRequest],
    *,
    z: torch.Tensor,
    contexts: Contexts,
    hyperparameters: Hyperparameters,
    second_moments: dict[int, torch.Tensor],
    earlier_updates: dict[int, torch.Tensor],
    previous_keys: dict[int, torch.Tensor],
) -> Round:
    """One round of NSE on a copy of the model; `z` is (n, d), `previous_keys` (d_in, m) by layer."""
    hp, model = hyperparameters, copy.deepcopy(editable.model)

    def weight(layer: int) -> torch.Tensor:
        return editable.canonical(model.get_parameter(editable.parameter_name(layer)).data)

    def residual(fact: int) -> torch.Tensor:
        text = placed(editable, "{}", requests[fact], hp.fact_token)
        return z[fact].double() - hidden_at(editable, model, text, hp.z_layer).double()

    def keys(facts: Sequence[int], layer: int) -> torch.Tensor:
        shared = hp.subject_share, hp.fact_token
        columns = [key_of(editable, model, requests[f], contexts, layer, *shared) for f in facts]
        return torch.stack(columns, dim=1) if columns else torch.zeros(weight(layer).shape[1], 0, dtype=torch.float64)

    for layer, update in earlier_updates.items():
        weight(layer).add_(update.to(weight(layer).dtype))
    everyone = range(len(requests))
    before = [float(residual(f).norm()) for f in everyone]
    written = [f for f in everyone if before[f] < hp.upper_bound]
    open_ = list(written)
    passes: list[list[int]] = []
    while open_ and len(passes) < hp.max_passes:
        passes.append(open_)
        for done, layer in enumerate(hp.layers):
            k = keys(open_, layer)
            earlier = torch.cat([previous_keys[layer], keys([f for f in written if f not in open_], layer)], dim=1)
            r = torch.stack([residual(f) for f in open_], dim=1) / (len(hp.layers) - done)
            s = most_active(k, hp.neuron_threshold)
            left_side = hp.mom2_update_weight * second_moments[layer].double()[s][:, s]
            left_side = left_side + hp.previous_keys_weight * earlier[s] @ earlier[s].T + k[s] @ k[s].T
            update = torch.zeros_like(weight(layer), dtype=torch.float64)
            update[:, s] = r @ torch.linalg.solve(left_side, k[s]).T
            weight(layer).add_(update.to(weight(layer).dtype))
        open_ = [f for f in written if float(residual(f).norm()) > hp.alpha]
    names = {layer: editable.parameter_name(layer) for layer in hp.layers}
    return Round(
        {name: weight(layer).clone() for layer, name in names.items()},
        {name: keys(written, layer) for layer, name in names.items()},
        before,
        [float(residual(f).norm()) for f in everyone],
        passes,
    )


def most_active(keys: torch.Tensor, threshold: float) -> list[int]:
    """Neurons in descending order of their summed activation until their share reaches `threshold`."""
    scores = [float(row.abs().sum()) for row in keys]
    chosen: list[int] = []
    for neuron in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if chosen and sum(scores[i] for i in chosen) >= threshold * sum(scores):
            break
        chosen.append(neuron)
    return sorted(chosen) if threshold < 1 else list(range(len(scores)))


def memit_round(
    editable: EditableModel,
    weights: dict[int, torch.Tensor],
    requests: Sequence[EditRequest],
    *,
    z: torch.Tensor,
    contexts: Contexts,
    hyperparameters: Hyperparameters,
    second_moments: dict[int, torch.Tensor],
    previous_keys: dict[int, torch.Tensor],
) -> dict[int, torch.Tensor]:
    """A round of sequential MEMIT on `weights` (d_out, d_in) by layer: arXiv 2210.07229, algorithm 1, K_p K_p^T added to C0.

    Returns:
        The keys (d_in, n) of the round under the weights that it leaves; `weights` are replaced by those.
    """
    hp, model = hyperparameters, copy.deepcopy(editable.model)
    for layer, weight in weights.items():
        model.get_parameter(editable.parameter_name(layer)).data = editable.canonical(weight)
    bare = [wrapped("{}", request) for request in requests]
    for layers_left, layer in zip(range(len(hp.layers), 0, -1), hp.layers, strict=True):
        k = torch.stack([key_of(editable, model, r, contexts, layer) for r in requests], dim=1)
        h = torch.stack([hidden_at(editable, model, text, hp.z_layer).double() for text in bare], dim=1)
        c = hp.mom2_update_weight * second_moments[layer].double() + previous_keys[layer] @ previous_keys[layer].T
        share = (z.double().T - h) / layers_left
        update = share @ k.T @ torch.linalg.inv(c + k @ k.T)
        weights[layer] = (weights[layer].double() + update).to(weights[layer].dtype)
        model.get_parameter(editable.parameter_name(layer)).data = editable.canonical(weights[layer])
    return {la: torch.stack([key_of(editable, model, r, contexts, la) for r in requests], dim=1) for la in hp.layers}
