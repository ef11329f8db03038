"""Increments: what a round that trains weights adds to them, kept beside them while they are in force."""

from collections.abc import Mapping, Sequence

import torch

from nse.architecture import EditableModel
from nse.delta import LayerDelta


class Increments:
    """What a round adds to the weights that it trains, by parameter name, while they are in force.

    The optimiser works on the increments, in float32 at least, and not on the weights: steps too small for a half-precision
    weight add up, and the delta is what was trained, to the bit.

    Attributes:
        of: (d_out, d_in), or its transpose where the family stores that: zeros at first.
        factors: Left (d_out, r) and right (r, d_in) float64 and `case_index` (r,) of increments that can be divided among facts.
    """

    def __init__(self, editable: EditableModel, names: Sequence[str], earlier: Mapping[str, torch.Tensor]) -> None:
        """Starts at nothing.

        Args:
            editable: The model, the round's first weights in force.
            names: The parameters that are trained.
            earlier: Sums (d_out, d_in) float64 of the deltas in force, of the parameters that have any.
        """
        self._editable = editable
        self.parameters = {name: editable.model.get_parameter(name) for name in names}
        self._base = {name: editable.base_tensors[name].to(p.device) for name, p in self.parameters.items()}
        self._earlier = {name: editable.canonical(total).to(self._base[name].device) for name, total in earlier.items()}
        self.of = {
            name: torch.zeros_like(base, dtype=torch.promote_types(base.dtype, torch.float32))
            for name, base in self._base.items()
        }
        self.factors: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def put(self) -> None:
        """Puts the weights with their increments in force, rounded as `nse.patch.compose` will round them."""
        for name, parameter in self.parameters.items():
            added = self.of[name].double() + self._earlier.get(name, 0.0)
            parameter.data = (self._base[name].double() + added).to(parameter.dtype)

    def divide(self, name: str, left: torch.Tensor, right: torch.Tensor, case_index: torch.Tensor) -> None:
        """Sets an increment to left (d_out, r) @ right (r, d_in), each column a fact's."""
        self.factors[name] = (left.cpu().contiguous(), right.cpu().contiguous(), case_index.to(torch.int32).cpu())
        self.of[name] = self._editable.canonical(left @ right).to(self.of[name].device)

    def layer(self, name: str, keys: torch.Tensor) -> LayerDelta:
        """The delta of one weight; `keys` (n, d_in) are those after the round."""
        if name in self.factors:
            return LayerDelta(*self.factors[name], keys.float().contiguous())
        return LayerDelta.of_whole_round(self._editable.canonical(self.of[name]), keys)
