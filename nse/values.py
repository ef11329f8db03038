"""Values: the target state z of a fact, optimised under the base weights alone (weights rewinding), and their cache.

The only place where z is computed. Because z depends on nothing but the base model, the request and the settings, it is
cached under the digest of exactly those and can be computed at any time, in any order.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load, save
from transformers import DynamicCache

from nse.architecture import EditableModel
from nse.batch import Progress, pad, silent
from nse.contexts import ContextTemplates, within
from nse.errors import TokenError
from nse.fingerprint import json_digest
from nse.hyperparameters import Hyperparameters
from nse.patch import base_in_force
from nse.request import EditRequest
from nse.tokens import tokenize_template
from nse.trace import capture_outputs, resumed_above

KL_TEMPLATE = "{} is a"
FACTS_PER_BATCH = 8


@dataclass(frozen=True, slots=True)
class ValueStore:
    """A folder of z's, one small file each, named by the digest of every input of the computation."""

    folder: Path

    def get(self, key: str) -> torch.Tensor | None:
        """The cached z (d_model,) float32, or nothing."""
        path = self.folder / f"{key}.safetensors"
        return load(path.read_bytes())["z"] if path.is_file() else None

    def put(self, key: str, z: torch.Tensor) -> None:
        """Keeps z; a reader never sees half a file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{key}.{os.getpid()}"
        temporary.write_bytes(save({"z": z.contiguous()}))
        temporary.replace(self.folder / f"{key}.safetensors")


def value_key(
    editable: EditableModel, request: EditRequest, contexts: ContextTemplates, hyperparameters: Hyperparameters
) -> str:
    """Digest of everything z depends on: base weights, tokenizer, subject, prompt, target, contexts, settings."""
    return json_digest(
        {
            "schema": 1,
            "base": editable.base_digest,
            "tokenizer": editable.tokenizer_digest,
            "request": [request.subject, request.prompt_template, request.target_new],
            "contexts": contexts,
            "settings": hyperparameters.value_settings(),
        }
    )


def values_for(
    editable: EditableModel,
    requests: Sequence[EditRequest],
    *,
    contexts: ContextTemplates,
    hyperparameters: Hyperparameters,
    store: ValueStore | None = None,
    progress: Progress = silent,
) -> torch.Tensor:
    """Returns z (n, d_model) float32 for `requests`, from the store where it has them; what is computed is stored.

    The base weights are put in force for it, whatever the model holds: that is the rewinding.

    Raises:
        TokenError: If a prompt cannot be tokenised or is too long.
    """
    keys = [value_key(editable, r, contexts, hyperparameters) for r in requests]
    known = {k: z for k in keys if store is not None and (z := store.get(k)) is not None}
    missing = [i for i, k in enumerate(keys) if k not in known]
    progress("values", len(requests) - len(missing), len(requests))
    for start in range(0, len(missing), FACTS_PER_BATCH):
        part = missing[start : start + FACTS_PER_BATCH]
        with base_in_force(editable):
            computed = compute_z(
                editable, [requests[i] for i in part], contexts=contexts, hyperparameters=hyperparameters
            )
        for i, z in zip(part, computed, strict=True):
            known[keys[i]] = z
            if store is not None:
                store.put(keys[i], z)
        progress("values", len(requests) - len(missing) + start + len(part), len(requests))
    width = int(editable.model.config.hidden_size)
    return torch.stack([known[k] for k in keys]) if keys else torch.zeros(0, width)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The texts of some facts (per fact its contexts with the target, then the KL prompt), from each subject's last token on.

    What stands before that token does not depend on delta: it is run once, and only its attention keys and values are kept.

    Attributes:
        ids: (rows, s) token ids, the subject's last token first.
        mask: (rows, p + s) which tokens are real, those before the subject's last one included.
        positions: (rows, s) places of the tokens in their texts.
        states: (rows, s, d_model) hidden states after z's layer, without delta.
        past: Per layer, attention keys and values (rows, heads, p, d_head) of the p tokens before.
        scored: (rows, s) target token id predicted at each position, -100 where none is.
        fact: (rows,) fact of each row.
        is_kl: (rows,) whether the row is a KL prompt.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    states: torch.Tensor
    past: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    scored: torch.Tensor
    fact: torch.Tensor
    is_kl: torch.Tensor

    def of(self, facts: torch.Tensor) -> torch.Tensor:
        """Indices of the rows that belong to `facts`."""
        return torch.isin(self.fact, facts).nonzero().squeeze(1)

    def cache(self, index: torch.Tensor) -> DynamicCache:
        """A fresh cache of what stands before, for the rows `index`."""
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.past):
            cache.update(keys[index], values[index], layer)
        return cache


@torch.no_grad()
def _rows(editable: EditableModel, requests: Sequence[EditRequest], templates: Sequence[str], z_layer: int) -> _Rows:
    prompts, facts, is_kl = [], [], []
    for fact, request in enumerate(requests):
        for template in templates:
            text = within(template, request.prompt_template)
            prompts.append(tokenize_template(editable.tokenizer, text, request.subject, target=request.target_new))
        prompts.append(tokenize_template(editable.tokenizer, KL_TEMPLATE, request.subject))
        facts += [fact] * (len(templates) + 1)
        is_kl += [False] * len(templates) + [True]
    vocabulary = editable.vocabulary
    batch = pad(editable, [p.ids for p in prompts])
    scored = torch.full(batch.ids.shape, -100)
    for row, prompt in enumerate(prompts):
        if prompt.target_ids:
            if max(prompt.target_ids) >= vocabulary:
                name = requests[facts[row]].target_new
                raise TokenError(
                    f"target {name!r} has a token beyond the model's {vocabulary}: the model cannot produce it"
                )
            scored[row, prompt.prompt_length - 1 : len(prompt.ids) - 1] = torch.tensor(prompt.target_ids)
    with capture_outputs({"h": editable.block(z_layer)}) as seen:
        out = editable.model.base_model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=True)
    device = editable.device
    start = torch.tensor([p.subject_last for p in prompts], device=device)
    before, length = int(start.max()), int((batch.mask.sum(dim=1) - start).max())
    positions = start[:, None] + torch.arange(length, device=device)
    real = positions < batch.mask.sum(dim=1, keepdim=True)
    places = positions.clamp_max(batch.ids.shape[1] - 1)
    return _Rows(
        ids=batch.ids.gather(1, places),
        mask=torch.cat([torch.arange(before, device=device) < start[:, None], real], dim=1).long(),
        positions=places,
        states=seen["h"].gather(1, places[:, :, None].expand(-1, -1, seen["h"].shape[-1])),
        past=tuple((layer.keys[:, :, :before], layer.values[:, :, :before]) for layer in out.past_key_values.layers),
        scored=scored.to(device).gather(1, places).masked_fill(~real, -100),
        fact=torch.tensor(facts),
        is_kl=torch.tensor(is_kl),
    )


def compute_z(
    editable: EditableModel,
    requests: Sequence[EditRequest],
    *,
    contexts: ContextTemplates,
    hyperparameters: Hyperparameters,
) -> torch.Tensor:
    """Optimises z = h + delta for several facts at once, each with its own Adam state and its own end.

    delta minimises, under the weights that the model holds (the base's), the mean over contexts of
    -log p(target_new) per token, + kl_factor * KL at "{subject} is a" + v_weight_decay * |delta| / |h|^2, projected to
    |delta| <= clamp_norm_factor * |h| after each step. Only the layers above z's are run, and only the tokens
    from the subject's last one on: the others do not depend on delta.

    Returns:
        z (n, d_model) float32 on the CPU.

    References:
        arXiv 2410.04045, step 1; the objective is MEMIT's (arXiv 2210.07229, appendix A).
    """
    hp = hyperparameters
    rows = _rows(editable, requests, [c for group in contexts for c in group], hp.z_layer)
    first = torch.tensor([int((rows.fact == i).nonzero()[0]) for i in range(len(requests))])
    h = rows.states[first, 0].float()  # (n, d), the bare prompt if it is the first context
    limit = hp.clamp_norm_factor * h.norm(dim=1, keepdim=True)
    delta = torch.zeros_like(h, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=hp.v_lr)
    active = torch.arange(len(requests))
    kl_reference: torch.Tensor | None = None
    for _ in range(hp.v_num_grad_steps):
        index = rows.of(active)
        loss, kl_logs = _loss(editable, rows, delta, index, hp)
        if kl_reference is None:
            kl_reference = kl_logs.detach()
        loss = loss + hp.kl_factor * _divergence(kl_reference[active], kl_logs)
        loss = loss + hp.v_weight_decay * delta[active].norm(dim=1) / h[active].norm(dim=1) ** 2
        open_ = (loss.detach() >= hp.v_loss_target).cpu()
        active, frozen = active[open_], delta.detach().clone()
        if active.numel() == 0:
            break
        optimizer.zero_grad()
        loss[open_.to(loss.device)].sum().backward()
        optimizer.step()
        with torch.no_grad():
            moved = torch.zeros(len(requests), 1, dtype=torch.bool, device=h.device)
            moved[active] = True
            projected = delta * (limit / delta.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
            delta.copy_(torch.where(moved, projected, frozen))
    return (h + delta.detach()).float().cpu()


def _loss(
    editable: EditableModel,
    rows: _Rows,
    delta: torch.Tensor,
    index: torch.Tensor,
    hp: Hyperparameters,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean negative log-likelihood per fact (n_active,), and log-probabilities (n_active, vocabulary) at the KL prompts."""
    fact = rows.fact[index]
    given = rows.states[index].clone()
    given[:, 0] += delta[fact].to(given.dtype)
    blocks = [editable.block(i) for i in range(editable.layers)]
    with resumed_above(blocks, hp.z_layer, lambda: given):
        out = editable.model.base_model(
            input_ids=rows.ids[index],
            attention_mask=rows.mask[index],
            position_ids=rows.positions[index],
            past_key_values=rows.cache(index),
            use_cache=True,
        ).last_hidden_state
    scored = rows.scored[index]
    where = (scored != -100).nonzero(as_tuple=True)
    logs = torch.log_softmax(editable.head(out[where]), dim=-1)
    nll = -logs.gather(1, scored[where][:, None]).squeeze(1)
    # per row: mean over target tokens; per fact: mean over its contexts
    length = (scored != -100).sum(dim=1)
    per_row = torch.zeros(len(index), device=nll.device).index_add(0, where[0], nll) / length.clamp_min(1)
    order, position = torch.unique(fact, return_inverse=True)
    position = position.to(nll.device)
    counts = torch.zeros(len(order), device=nll.device).index_add(0, position, (length > 0).float())
    per_fact = torch.zeros(len(order), device=nll.device).index_add(0, position, per_row) / counts
    kl_rows = rows.is_kl[index].to(out.device)
    kl_logs = torch.log_softmax(editable.head(out[kl_rows, 0]), dim=-1)
    return per_fact, kl_logs


def _divergence(reference: torch.Tensor, logs: torch.Tensor) -> torch.Tensor:
    """KL(reference || logs) per row, both log-probabilities (n, vocabulary)."""
    return (reference.exp() * (reference - logs)).sum(dim=1)
