"""AlphaEdit (arXiv 2410.02355): MEMIT's round, its updates confined to the null space of C0."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nse.architecture import EditableModel
from nse.editors.base import EditContext, EditResult, Need, own_settings
from nse.errors import HyperparameterError, StatisticsError
from nse.fingerprint import tensor_digest
from nse.hyperparameters import Hyperparameters
from nse.request import EditRequest
from nse.rounds import Policy, System, edit_round
from nse.solve import solve_in_null_space
from nse.spectrum import standing_directions
from nse.writing import as_published


@dataclass(frozen=True, slots=True)
class AlphaEditSettings:
    """What only AlphaEdit has.

    Attributes:
        nullspace_threshold: An eigenvalue of C0 below this counts as zero; the published value is for
            models of some billion weights.
        null_share: Share of C0's directions that are free instead, those with the smallest eigenvalues: for models whose keys
            have another scale. 0 leaves it to the threshold.
        L2: Weight of the identity in the solve.
        rewind: Whether z is computed under the base weights; no in the paper.
    """

    nullspace_threshold: float = 2e-2
    null_share: float = 0.0
    L2: float = 10.0
    rewind: bool = False

    def __post_init__(self) -> None:
        """Checks ranges.

        Raises:
            HyperparameterError: If a value is out of its range; the message names it.
        """
        checks = {
            "nullspace_threshold": self.nullspace_threshold > 0,
            "null_share": 0 <= self.null_share <= 1,
            "L2": self.L2 > 0,
        }
        if bad := next((name for name, fine in checks.items() if not fine), None):
            raise HyperparameterError(f"alphaedit: {bad} = {getattr(self, bad)!r} is out of range")


class AlphaEdit:
    """Delta = R K^T P (K_p K_p^T P + K K^T P + L2 I)^-1, P the projector on the eigenvectors of C0 with eigenvalue near zero.

    z, keys and residuals are MEMIT's; C0 has no weight (`mom2_update_weight` and `ridge` mean nothing here), for P leaves what
    it knows untouched.

    References:
        arXiv 2410.02355, sections 3.2 (P) and 3.3 (the update); the weight of the identity is 1 there, 10 in the published code.
    """

    name: str = "alphaedit"
    settings: type[Any] = AlphaEditSettings
    needs: frozenset[Need] = frozenset(("second_moments",))

    def edit(self, editable: EditableModel, requests: Sequence[EditRequest], context: EditContext) -> EditResult:
        """See `Editor.edit`."""
        own = own_settings(AlphaEditSettings, context.hyperparameters.own, method=self.name)

        def solve(system: System, hyperparameters: Hyperparameters) -> tuple[torch.Tensor, torch.Tensor]:
            return _solve(system, hyperparameters, own)

        return edit_round(editable, requests, as_published(context), Policy(self.name, solve, own.rewind))


def _solve(
    system: System, hyperparameters: Hyperparameters, own: AlphaEditSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """The update of all neurons beside what C0 knows."""
    width = system.keys.shape[0]
    if tuple(system.second_moment.shape) != (width, width):
        shape = tuple(system.second_moment.shape)
        raise StatisticsError(f"second moment is {shape}, keys need {(width, width)}: run `nse stats` for this model")
    threshold, share = own.nullspace_threshold, own.null_share
    found = system.past.store.remembered(
        f"standing {threshold!r} {share!r} {tensor_digest(system.second_moment)}",
        lambda: {"standing": standing_directions(system.second_moment, threshold=threshold, free_share=share)},
    )
    earlier = system.past.keys() * hyperparameters.previous_keys_weight**0.5
    return system.residual.double(), solve_in_null_space(system.keys, earlier, found["standing"], ridge=own.L2)
