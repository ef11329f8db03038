"""MEMIT (arXiv 2210.07229), as published and with the keys of earlier rounds in its solve."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nse.architecture import EditableModel
from nse.editors.base import EditContext, EditResult, Need, own_settings
from nse.hyperparameters import Hyperparameters
from nse.request import EditRequest
from nse.rounds import Policy, System, edit_round
from nse.solve import solve_update
from nse.writing import as_published


@dataclass(frozen=True, slots=True)
class MemitSettings:
    """What only MEMIT has.

    Attributes:
        rewind: Whether z is computed under the base weights; no in the paper, which takes those that the round starts from.
    """

    rewind: bool = False


class Memit:
    """z at the last of several layers, spread over them in one pass: Delta_l = R_l K^T (lambda C0 + K K^T)^-1.

    R_l is what z lacks still, divided by the layers left. Earlier rounds are in the weights and nowhere else: a stream of them
    wears the model. Each z is computed alone, and under the weights that the round starts from.

    References:
        arXiv 2210.07229, algorithm 1 and equation 14.
    """

    name: str = "memit"
    settings: type[Any] = MemitSettings
    needs: frozenset[Need] = frozenset(("second_moments",))

    def edit(self, editable: EditableModel, requests: Sequence[EditRequest], context: EditContext) -> EditResult:
        """See `Editor.edit`."""
        own = own_settings(MemitSettings, context.hyperparameters.own, method=self.name)
        policy = Policy(self.name, _solve, own.rewind, earlier_keys=False)
        return edit_round(editable, requests, as_published(context), policy)


class MemitSequential:
    """MEMIT with K_p K_p^T of all earlier rounds beside lambda C0, the sequential variant that AlphaEdit's authors compare with.

    References:
        AlphaEdit (arXiv 2410.02355), appendix: the objective of MEMIT with a term for the facts updated before.
    """

    name: str = "memit_seq"
    settings: type[Any] = MemitSettings
    needs: frozenset[Need] = frozenset(("second_moments",))

    def edit(self, editable: EditableModel, requests: Sequence[EditRequest], context: EditContext) -> EditResult:
        """See `Editor.edit`."""
        own = own_settings(MemitSettings, context.hyperparameters.own, method=self.name)
        return edit_round(editable, requests, as_published(context), Policy(self.name, _solve, own.rewind))


def _solve(system: System, hyperparameters: Hyperparameters) -> tuple[torch.Tensor, torch.Tensor]:
    """The update of all neurons."""
    return solve_update(
        system.keys,
        system.residual,
        second_moment=system.second_moment,
        previous_keys=system.converged,
        past=system.past,
        neurons=torch.arange(system.keys.shape[0]),
        mom2_update_weight=hyperparameters.mom2_update_weight,
        previous_keys_weight=hyperparameters.previous_keys_weight,
        ridge=hyperparameters.ridge,
    )
