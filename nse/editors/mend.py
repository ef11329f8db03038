"""MEND: a trained network turns the gradient of an edit into the update of the weights (arXiv 2110.11309)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nse.architecture import EditableModel
from nse.editors.base import CaseReport, EditContext, EditResult, Need, own_settings
from nse.finetuning import texts_of, tuned_round
from nse.hypernetwork import Hypernetwork, token_gradients
from nse.increments import Increments
from nse.request import EditRequest
from nse.training.files import read_trained
from nse.training.mend import MendSettings


class MEND:
    """One step along what the trained network makes of the gradient: the sum over all tokens of the round's facts.

    Every column of the patch is a token's and belongs to its fact. In a stream the gradients are those of the weights in force,
    while the network knows the base model's alone: it wears out, as published.

    Deviation: edited are output projections alone; the paper takes both maps of an MLP.

    References:
        arXiv 2110.11309, section 3, algorithm 2.
    """

    name: str = "mend"
    settings: type[Any] = MendSettings
    needs: frozenset[Need] = frozenset(("trained",))

    def edit(self, editable: EditableModel, requests: Sequence[EditRequest], context: EditContext) -> EditResult:
        """See `Editor.edit`."""
        layers = context.hyperparameters.layers
        editable.check_layers(layers)
        own = own_settings(MendSettings, context.hyperparameters.own, method=self.name)
        trained = read_trained(context.trained, editable, method=self.name, layers=layers)
        rank = own_settings(MendSettings, trained.settings, method=self.name).rank
        network = Hypernetwork(editable, layers, rank, 0.0, torch.Generator()).load(trained.tensors)

        @torch.no_grad()
        def write(increments: Increments) -> Mapping[str, Any]:
            found = token_gradients(editable, texts_of(editable, requests), layers)
            for layer in layers:
                left, right = (part.double() for part in network(layer, found[layer]))
                increments.divide(editable.parameter_name(layer), own.edit_scale * left, right, found[layer].fact)
            return {}

        tuned = tuned_round(editable, requests, context, method=self.name, write=write)
        return EditResult(tuned.delta, tuned.values, tuple(CaseReport(*case) for case in tuned.cases), tuned.seconds)
