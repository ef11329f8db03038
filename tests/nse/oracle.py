"""The reference for the fast code: one fact at a time, the whole model at every step, dense systems, straight from the paper.

Shares nothing with `nse` but the loaded model and the settings: tokens are found by re-tokenised prefixes, which is right for the
byte-level tokenizers of these tests.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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


def wrapped(context: str, request: EditRequest) -> tuple[str, int]:
    """The prompt inside a context, and where its subject ends in it."""
    before = context.split("{}")[0] + request.prompt_template.split("{}")[0] + request.subject
    return context.replace("{}", request.prompt_template).replace("{}", request.subject), len(before)


def subject_last(editable: EditableModel, text: str, end: int) -> int:
    """Index of the last token of the text's first `end` characters."""
    before = ids_of(editable, text[:end])
    assert ids_of(editable, text)[: len(before)] == before
    return len(before) - 1


@contextmanager
def output_shifted(module: nn.Module, position: int, shift: torch.Tensor) -> Iterator[None]:
    """Adds `shift` to the module's output at one position, by a hook."""

    def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros_like(output)
        mask[0, position] = 1.0
        return output + mask * shift

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def log_probabilities(model: nn.Module, ids: list[int]) -> torch.Tensor:
    """log p of the next token at every position (t, vocabulary), the whole model, one text."""
    return torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].float(), dim=-1)


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
    delta, first, second = torch.zeros_like(h), torch.zeros_like(h), torch.zeros_like(h)
    for step in range(1, hp.v_num_grad_steps + 1):
        delta = delta.detach().requires_grad_(True)
        losses = []
        for text, end in texts:
            with output_shifted(block, subject_last(editable, text, end), delta):
                score, count = target_score(editable, text, request.target_new)
            losses.append(-score / count)
        with output_shifted(block, kl_at, delta):
            logs = log_probabilities(model, kl_ids)[kl_at]
        loss = torch.stack(losses).mean() + hp.kl_factor * (reference.exp() * (reference - logs)).sum()
        loss = loss + hp.v_weight_decay * delta.norm() / h.norm() ** 2
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
    return (h + delta.detach()).float()


@torch.no_grad()
def hidden_at(editable: EditableModel, model: nn.Module, text: tuple[str, int], layer: int) -> torch.Tensor:
    """The hidden state after `layer` at the subject's last token."""
    out = model(input_ids=torch.tensor([ids_of(editable, text[0])]), output_hidden_states=True)
    return out.hidden_states[layer + 1][0, subject_last(editable, *text)]


@torch.no_grad()
def key_at(editable: EditableModel, model: nn.Module, text: tuple[str, int], layer: int) -> torch.Tensor:
    """What the output projection of `layer` reads at the subject's last token."""
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(editable.projection_name(layer)).register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0])
    )
    model(input_ids=torch.tensor([ids_of(editable, text[0])]))
    handle.remove()
    return seen[0][0, subject_last(editable, *text)].double()


def key_of(
    editable: EditableModel, model: nn.Module, request: EditRequest, contexts: Contexts, layer: int
) -> torch.Tensor:
    """Mean over groups of the mean within each group."""
    groups = [[key_at(editable, model, wrapped(c, request), layer) for c in group] for group in contexts]
    return torch.stack([torch.stack(group).mean(dim=0) for group in groups]).mean(dim=0)


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
        return z[fact].double() - hidden_at(editable, model, wrapped("{}", requests[fact]), hp.z_layer).double()

    def keys(facts: Sequence[int], layer: int) -> torch.Tensor:
        columns = [key_of(editable, model, requests[f], contexts, layer) for f in facts]
        return torch.stack(columns, dim=1) if columns else torch.zeros(weight(layer).shape[1], 0, dtype=torch.float64)

    for layer, update in earlier_updates.items():
        weight(layer).add_(update.to(weight(layer).dtype))
    everyone = range(len(requests))
    before = [float(residual(f).norm()) for f in everyone]
    written = [f for f in everyone if before[f] < hp.upper_bound]
    open_, passes = list(written), []
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
