"""ROME (arXiv 2202.05262): one layer, one fact after another, each a rank-one update that its key meets exactly."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from nse.architecture import EditableModel
from nse.delta import Delta
from nse.editors.base import CaseReport, EditContext, EditResult, Need, own_settings
from nse.errors import HyperparameterError, StatisticsError
from nse.factors import Factor
from nse.keys import Measurement, measure
from nse.postnorm import change_before_norm
from nse.request import EditRequest
from nse.writing import as_published, check_round, in_force, timed, values_of


@dataclass(frozen=True, slots=True)
class RomeSettings:
    """What only ROME has.

    Attributes:
        rewind: Whether every v* is computed under the base weights; no in the paper: each fact is written on top of those before.
    """

    rewind: bool = False


class Rome:
    """W += (v* - W k*) (C0^-1 k*)^T / ((C0^-1 k*)^T k*) at the first of the settings' layers, for one request after the other.

    Deviation: v*, what the MLP shall put out, is W k* + (z - h) with z the hidden state that is found after the layer; the
    published code optimises the output itself, which is the same shift of the same sum. Deviation: k* is the same mean over all
    contexts wherever it stands (r-ROME, arXiv 2403.07175); the published code takes it from the bare prompt in one place, and
    single edits then wreck the model. The settings of a round of many facts (`write_layers`, `protected_directions`,
    `z_norm_limit`, `ridge`, `mom2_update_weight`) mean nothing here.

    References:
        arXiv 2202.05262, equations 2 (the update), 3 (k*) and 4 (v*).
    """

    name: str = "rome"
    settings: type[Any] = RomeSettings
    needs: frozenset[Need] = frozenset(("second_moments",))

    def edit(self, editable: EditableModel, requests: Sequence[EditRequest], context: EditContext) -> EditResult:
        """See `Editor.edit`."""
        own = own_settings(RomeSettings, context.hyperparameters.own, method=self.name)
        check_round(editable, requests, context)
        if context.hyperparameters.fact_token != "subject_last":
            raise HyperparameterError("rome writes at the subject's last token: leave fact_token out")
        settings = replace(context.hyperparameters, layers=context.hyperparameters.layers[:1])
        context = as_published(replace(context, hyperparameters=settings))
        layer, seconds = settings.z_layer, defaultdict[str, float](float)
        factor, norm = _factor(editable, context, layer), editable.post_norm(layer)

        def seen(facts: Sequence[EditRequest]) -> Measurement:
            with timed(seconds, "keys"):
                return measure(editable, facts, context.contexts, key_layers=(layer,), hidden_layer=layer)

        with in_force(editable, context, (layer,)) as columns:
            values, before = [], []
            ahead = values_of(editable, requests, context, rewind=True) if own.rewind else None
            for place, request in enumerate(requests):
                with timed(seconds, "values"):
                    z = values_of(editable, [request], context, rewind=False)[0] if ahead is None else ahead[place]
                state = seen([request])
                residual = z.double()[:, None] - state.hidden
                values.append(z)
                before.append(float(residual.norm()))
                if norm is not None:
                    residual = change_before_norm(state.outputs[layer], residual, norm)
                with timed(seconds, "solve"):
                    columns[layer].write(editable, residual, _direction(state.keys[layer], factor), [place])
                context.progress("edits", place + 1, len(requests))
            state = seen(requests)
        names = tuple(request.case_id for request in requests)
        written = columns[layer].delta({i: i for i in range(len(names))}, state.keys[layer].T)
        after = torch.linalg.vector_norm(torch.stack(values).double().T - state.hidden, dim=0).tolist()
        cases = tuple(
            CaseReport(name, "edited" if late <= settings.alpha else "unconverged", early, late)
            for name, early, late in zip(names, before, after, strict=True)
        )
        delta = Delta({columns[layer].name: written}, names, editable.base_digest, {"method": self.name})
        return EditResult(delta, torch.stack(values), cases, dict(seconds))


def _factor(editable: EditableModel, context: EditContext, layer: int) -> Factor:
    """The kept factor of the layer's C0.

    Raises:
        StatisticsError: If there is none for the layer, or it has another shape than its keys, or is singular.
    """
    second_moment = context.second_moments.of(editable.projection_name(layer))
    width = editable.base_weight(editable.parameter_name(layer)).shape[1]
    if tuple(second_moment.shape) != (width, width):
        shape = tuple(second_moment.shape)
        raise StatisticsError(f"second moment is {shape}, keys need {(width, width)}: run `nse stats` for this model")
    return context.factors.whitened(second_moment, ()).factor


def _direction(key: torch.Tensor, factor: Factor) -> torch.Tensor:
    """(C0^-1 k)^T / (k^T C0^-1 k), (1, d_mlp), of a key (d_mlp, 1): 1 at the key, and the least on what C0 has seen."""
    row = key.T.double().to(factor.upper.device)
    inverse = factor.unwhiten(factor.whiten(row))
    return (inverse / (inverse * row).sum()).to(key.device)
