"""GRACE: a codebook of hidden states at one layer (arXiv 2211.11031). The weights stay as they are."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from nse.architecture import EditableModel
from nse.delta import Delta, Memory
from nse.editors.base import CaseReport, EditContext, EditResult, Need, own_settings
from nse.errors import HyperparameterError, RequestError
from nse.memories import grace
from nse.memories.states import entering
from nse.objective import minimise
from nse.patch import Weights, compose, patched
from nse.request import EditRequest
from nse.rows import Text
from nse.targets import target_states
from nse.tokens import TokenizedPrompt, tokenize


@dataclass(frozen=True, slots=True)
class GraceSettings:
    """Settings of GRACE; the codebook is at the last of `layers`.

    Attributes:
        eps: Radius of a new key, in the units of the model's hidden states there: find it by measurement.
        lr: Learning rate of Adam for a value.
        steps: Steps of Adam for a value.
        loss_target: A value is done when its loss is below this, in nats per token; 0 in the paper.
    """

    eps: float = 1.0
    lr: float = 1.0
    steps: int = 100
    loss_target: float = 0.0

    def __post_init__(self) -> None:
        """Checks ranges.

        Raises:
            HyperparameterError: If a value is out of its range.
        """
        if not (self.eps > 0 and self.lr > 0 and self.steps >= 1 and self.loss_target >= 0):
            raise HyperparameterError(f"grace: {self} is out of range: eps, lr and steps are above 0")


class GRACE:
    """Keeps, per correction, what enters a layer at the prompt's last token and what shall leave it there.

    The value is the layer's output, trained by Adam from what the layer gives, so that the target follows the prompt. It is
    trained with no codebook in force: an entry depends on no other.

    Deviation: the layer is a whole block, as in the paper's equations; the public code has one linear map of its MLP.
    `nse.memories.grace` says how radii and matches differ.

    References:
        arXiv 2211.11031, section 2 and algorithm 1.
    """

    name: str = "grace"
    settings: type[Any] = GraceSettings
    needs: frozenset[Need] = frozenset()

    def edit(self, editable: EditableModel, requests: Sequence[EditRequest], context: EditContext) -> EditResult:
        """See `Editor.edit`."""
        begun, layer = time.perf_counter(), context.hyperparameters.z_layer
        editable.check_layers(context.hyperparameters.layers)
        settings = own_settings(GraceSettings, context.hyperparameters.own, method=self.name)
        if not requests:
            raise RequestError("a round needs at least one request: there is nothing to edit")
        prompts = [
            tokenize(editable.tokenizer, request.checked().prompt, target=request.target_new) for request in requests
        ]
        start = compose(editable, context.previous)
        with patched(editable, start):
            before = target_states(editable, requests)
        with patched(editable, Weights(start)):  # no memory: keys and values are those of the weights
            keys = entering(editable, [p.ids[: p.prompt_length] for p in prompts], layer)
            values = _values(editable, prompts, settings, context)
        memory = Memory(
            grace.KIND,
            {"keys": keys, "values": values},
            torch.arange(len(requests), dtype=torch.int32),
            settings={"layer": layer, "eps": settings.eps},
            texts=tuple(request.target_new for request in requests),
        )
        names = tuple(request.case_id for request in requests)
        delta = Delta({}, names, editable.base_digest, {"method": self.name}, memory)
        with patched(editable, Weights(start, (*start.memories, memory))):
            after = target_states(editable, requests)
        cases = tuple(
            CaseReport(name, "edited" if new.right else "unconverged", old.loss, new.loss)
            for name, old, new in zip(names, before, after, strict=True)
        )
        return EditResult(delta, torch.zeros_like(values), cases, {"edit": time.perf_counter() - begun})


def _values(
    editable: EditableModel, prompts: Sequence[TokenizedPrompt], settings: GraceSettings, context: EditContext
) -> torch.Tensor:
    """(n, d_model) float32: what the layer shall give at each prompt's last token, so that its target follows."""
    objective = replace(
        context.hyperparameters,
        v_num_grad_steps=settings.steps,
        v_lr=settings.lr,
        v_weight_decay=0.0,
        clamp_norm_factor=float("inf"),
        v_loss_target=settings.loss_target,
    )
    texts = []
    for prompt in prompts:
        at, share = prompt.prompt_length - 1, 1 / len(prompt.target_ids)
        here = TokenizedPrompt(prompt.ids, prompt.prompt_length, at)
        texts.append([Text(here, range(at, len(prompt.ids) - 1), share, kept=False, member=0)])
    return torch.cat(minimise(editable, texts, objective, memory=context.memory))
