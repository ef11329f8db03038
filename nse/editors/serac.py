"""SERAC: edits remembered as texts, told to a counterfactual model where a prompt is in their scope (arXiv 2206.06520)."""

import time
from collections.abc import Sequence
from typing import Any

import torch

from nse.architecture import EditableModel
from nse.delta import Delta, Memory
from nse.editors.base import CaseReport, EditContext, EditResult, Need, own_settings
from nse.errors import RequestError, TrainingError
from nse.memories import serac
from nse.patch import Weights, compose, patched
from nse.request import EditRequest
from nse.targets import target_states
from nse.training.files import read_trained
from nse.training.serac import SeracSettings


class SERAC:
    """Adds edits to a memory; what is in force answers all other prompts as before.

    The trained parts are in every round's delta, so that a ledger needs nothing else.

    Deviation: an edit is embedded by its prompt without the target, and by the same map as the prompts that are asked;
    `nse.training.serac` says which models the parts are.

    References:
        arXiv 2206.06520, section 3.
    """

    name: str = "serac"
    settings: type[Any] = SeracSettings
    needs: frozenset[Need] = frozenset(("trained",))

    def edit(self, editable: EditableModel, requests: Sequence[EditRequest], context: EditContext) -> EditResult:
        """See `Editor.edit`."""
        begun, layers = time.perf_counter(), context.hyperparameters.layers
        editable.check_layers(layers)
        own = own_settings(SeracSettings, context.hyperparameters.own, method=self.name)
        if not requests:
            raise RequestError("a round needs at least one request: there is nothing to edit")
        prompts = [request.checked().prompt for request in requests]
        trained = read_trained(context.trained, editable, method=self.name, layers=layers)
        scope = trained.tensors.get("scope")
        block = own_settings(SeracSettings, trained.settings, method=self.name).scope_block(editable)
        if scope is None or scope.shape[1:] != (int(editable.model.config.hidden_size),):
            raise TrainingError(f"{context.trained} holds no scope of serac: make it with `nse train --method serac`")
        start = compose(editable, context.previous)
        with patched(editable, start):
            before = target_states(editable, requests)
        memory = Memory(
            serac.KIND,
            {"embeddings": serac.embeddings(editable, prompts, block, scope)},
            torch.arange(len(requests), dtype=torch.int32),
            trained.tensors,
            {"layer": block, "scale": own.scale},
            tuple([request.prompt, serac.statement(request)] for request in requests),
        )
        names = tuple(request.case_id for request in requests)
        delta = Delta({}, names, editable.base_digest, {"method": self.name}, memory)
        with patched(editable, Weights(start, (*start.memories, memory))):
            after = target_states(editable, requests)
        cases = tuple(
            CaseReport(name, "edited" if new.right else "unconverged", old.loss, new.loss)
            for name, old, new in zip(names, before, after, strict=True)
        )
        values = torch.zeros(len(requests), int(editable.model.config.hidden_size))
        return EditResult(delta, values, cases, {"edit": time.perf_counter() - begun})
