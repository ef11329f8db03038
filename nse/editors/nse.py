"""NSE: Neuron-level Sequential Editing (arXiv 2410.04045), the default method."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from nse.architecture import EditableModel
from nse.delta import Delta, LayerDelta
from nse.editors.base import CaseReport, EditContext, EditResult, Status
from nse.errors import RequestError
from nse.keys import Measurement, measure
from nse.neurons import select_neurons
from nse.patch import Weights, compose, patched, rounded
from nse.request import EditRequest
from nse.solve import solve_update
from nse.values import values_for


@dataclass
class _Columns:
    """Factors gathered for one weight, a block of columns per pass, on top of the update of earlier rounds."""

    earlier: torch.Tensor  # (d_out, d_in) float64
    left: list[torch.Tensor] = field(default_factory=list)
    right: list[torch.Tensor] = field(default_factory=list)
    case_index: list[torch.Tensor] = field(default_factory=list)

    def total(self) -> torch.Tensor:
        return self.earlier + sum((a @ b for a, b in zip(self.left, self.right, strict=True)), torch.zeros(()))


class NSE:
    """Weights rewinding, neuron selection, closed form with C0 and all earlier keys, iterative multi-layer passes.

    Deviation: a fact at or above `upper_bound` is reported as `skipped` and its key does not enter K_p; the published code
    drops it silently and keeps the key. Deviation: in the second and later passes the facts of the round that have already
    converged count as earlier keys, so that writing the stragglers does not undo them. Option: with `subject_share` above 0 a
    key is measured on the subject alone as well, as ROME's equation 3 has it (docs/method.md has the effect).

    References:
        arXiv 2410.04045, sections 3.1 (rewinding), 3.2 (neurons), 3.3 (multi-layer passes).
    """

    name: str = "nse"

    def edit(self, editable: EditableModel, requests: Sequence[EditRequest], context: EditContext) -> EditResult:
        """See `Editor.edit`."""
        seconds: dict[str, float] = defaultdict(float)
        editable.check_layers(context.hyperparameters.layers)
        if not requests:
            raise RequestError("a round needs at least one request: there is nothing to edit")
        for request in requests:
            request.checked()
        with _timed(seconds, "values"):
            values = values_for(
                editable,
                requests,
                contexts=context.contexts,
                hyperparameters=context.hyperparameters,
                store=context.values,
                progress=context.progress,
            )
        round_ = _Round(editable, requests, values.double().T, context, seconds)
        with patched(editable, compose(editable, context.previous) | round_.starting_weights()):
            delta, cases = round_.run()
        return EditResult(delta, values, cases, dict(seconds))


class _Round:
    """The state of one round of edits while its weights are in force in the model."""

    def __init__(
        self,
        editable: EditableModel,
        requests: Sequence[EditRequest],
        z: torch.Tensor,
        context: EditContext,
        seconds: dict[str, float],
    ) -> None:
        self.editable, self.requests, self.z, self.context, self.seconds = editable, requests, z, context, seconds
        self.hp = context.hyperparameters
        self.columns = {layer: _Columns(self._earlier_update(layer)) for layer in self.hp.layers}

    def starting_weights(self) -> Weights:
        """The rewritten weights as earlier rounds left them, so that what this round sets is taken back afterwards."""
        names = {self.editable.parameter_name(layer): columns for layer, columns in self.columns.items()}
        return {name: rounded(self.editable, name, columns.total()) for name, columns in names.items()}

    def run(self) -> tuple[Delta, tuple[CaseReport, ...]]:
        before = self._residual_norms()
        written = (before < self.hp.upper_bound).nonzero().squeeze(1)
        open_ = written
        for number in range(self.hp.max_passes):
            if open_.numel() == 0:
                break
            for done, layer in enumerate(self.hp.layers):
                self._write(layer, open_, written[~torch.isin(written, open_)], len(self.hp.layers) - done)
                self.context.progress(f"pass {number + 1}", done + 1, len(self.hp.layers))
            after = self._residual_norms()
            open_ = written[after[written] > self.hp.alpha]
        after = self._residual_norms()
        return self._delta(written), self._cases(written, before, after)

    def _residual_norms(self) -> torch.Tensor:
        norms: torch.Tensor = (self.z - self._measure(range(len(self.requests)), ()).hidden).pow(2).sum(dim=0).sqrt()
        return norms

    def _measure(self, facts: Sequence[int], layers: Sequence[int]) -> Measurement:
        with _timed(self.seconds, "keys"):
            return measure(
                self.editable,
                [self.requests[i] for i in facts],
                self.context.contexts,
                key_layers=layers,
                hidden_layer=self.hp.z_layer,
                subject_share=self.hp.subject_share,
            )

    def _write(self, layer: int, facts: torch.Tensor, converged: torch.Tensor, layers_left: int) -> None:
        """Writes one layer's share of the residual of `facts` and puts the new weight in force."""
        known = torch.cat([facts, converged]).tolist()
        measured = self._measure(known, (layer,))
        keys, settled = measured.keys[layer][:, : len(facts)], measured.keys[layer][:, len(facts) :]
        with _timed(self.seconds, "solve"):
            left, right = solve_update(
                keys,
                (self.z[:, facts] - measured.hidden[:, : len(facts)]) / layers_left,
                second_moment=self.context.second_moments.of(self.editable.projection_name(layer)),
                previous_keys=torch.cat([self._previous_keys(layer), settled], dim=1),
                neurons=select_neurons(keys, threshold=self.hp.neuron_threshold),
                mom2_update_weight=self.hp.mom2_update_weight,
                previous_keys_weight=self.hp.previous_keys_weight,
            )
            columns = self.columns[layer]
            columns.left.append(left)
            columns.right.append(right)
            columns.case_index.append(facts)
            name = self.editable.parameter_name(layer)
            weight = rounded(self.editable, name, columns.total())
            self.editable.model.get_parameter(name).data = weight.to(self.editable.model.get_parameter(name).device)

    def _previous_keys(self, layer: int) -> torch.Tensor:
        """K_p (d_mlp, m): keys of every fact in the active deltas."""
        name = self.editable.parameter_name(layer)
        known = [d.layers[name].keys.T.double() for d in self.context.previous if name in d.layers]
        width = self.editable.base_weight(name).shape[1]
        return torch.cat([torch.zeros(width, 0, dtype=torch.float64), *known], dim=1)

    def _earlier_update(self, layer: int) -> torch.Tensor:
        name = self.editable.parameter_name(layer)
        update = torch.zeros(self.editable.base_weight(name).shape, dtype=torch.float64)
        for delta in self.context.previous:
            if name in delta.layers:
                update = update + delta.layers[name].product()
        return update

    def _delta(self, written: torch.Tensor) -> Delta:
        place = {int(fact): i for i, fact in enumerate(written)}
        keys = self._measure(written.tolist(), self.hp.layers).keys if place else {}
        layers = {}
        for layer, columns in self.columns.items():
            if columns.left:
                index = [place[int(f)] for f in torch.cat(columns.case_index)]
                layers[self.editable.parameter_name(layer)] = LayerDelta(
                    torch.cat(columns.left, dim=1),
                    torch.cat(columns.right, dim=0),
                    torch.tensor(index, dtype=torch.int32),
                    keys[layer].T.float().contiguous(),
                )
        names = tuple(self.requests[i].case_id for i in place)
        return Delta(layers, names, self.editable.base_digest, {"method": "nse"})

    def _cases(self, written: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> tuple[CaseReport, ...]:
        chosen = set(written.tolist())
        reports = []
        for i, request in enumerate(self.requests):
            status: Status = (
                "skipped" if i not in chosen else ("edited" if after[i] <= self.hp.alpha else "unconverged")
            )
            reports.append(CaseReport(request.case_id, status, float(before[i]), float(after[i])))
        return tuple(reports)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    seconds[name] += time.perf_counter() - begun
