"""NSE: Neuron-level Sequential Editing (arXiv 2410.04045), the default method."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nse.architecture import EditableModel
from nse.editors.base import EditContext, EditResult, Need, own_settings
from nse.hyperparameters import Hyperparameters
from nse.neurons import select_neurons
from nse.request import EditRequest
from nse.rounds import Policy, System, edit_round
from nse.solve import solve_update


@dataclass(frozen=True, slots=True)
class NseSettings:
    """What only NSE has.

    Attributes:
        rewind: Whether z is computed under the base weights, as the paper does; if not, under those that the round starts from.
    """

    rewind: bool = True


class NSE:
    """Weights rewinding, neuron selection, closed form with C0 and all earlier keys, iterative multi-layer passes.

    Deviation: a fact at or above `upper_bound` is reported as `skipped` and its key does not enter K_p; the published code
    drops it silently and keeps the key. Deviation: in the second and later passes the facts of the round that have already
    converged count as earlier keys, so that writing the stragglers does not undo them. Deviation: with `joint_values` (the
    default) the corrections of one subject share a delta, and those of earlier rounds are written again with a new one, their
    earlier keys left out of K_p; the published code lets the later take the earlier away. Option: with `subject_share` above 0 a
    key is measured on the subject alone as well, as ROME's equation 3 has it (docs/method.md has the effect). Option: with
    `prompt_keys_weight` above 0 the solve is also told to change nothing at the other tokens of the facts' prompts. Option: with
    `context_spread_weight` above 0 it is told to act alike on the key of every context, not only on their mean. Option: with
    `known_keys_weight` above 0 it is told to change nothing at the keys of known facts of other subjects. Option: with
    `fact_token: last` a fact is written at its prompt's last token and, token by token, where its target is said (`nse.steps`).

    References:
        arXiv 2410.04045, sections 3.1 (rewinding), 3.2 (neurons), 3.3 (multi-layer passes).
    """

    name: str = "nse"
    settings: type[Any] = NseSettings
    needs: frozenset[Need] = frozenset(("second_moments", "values"))

    def edit(self, editable: EditableModel, requests: Sequence[EditRequest], context: EditContext) -> EditResult:
        """See `Editor.edit`."""
        own = own_settings(NseSettings, context.hyperparameters.own, method=self.name)
        return edit_round(editable, requests, context, Policy(self.name, _solve, own.rewind))


def _solve(system: System, hyperparameters: Hyperparameters) -> tuple[torch.Tensor, torch.Tensor]:
    """The update of the chosen neurons, with C0, earlier keys, converged facts and kept prompts in its way."""
    return solve_update(
        system.keys,
        system.residual,
        second_moment=system.second_moment,
        previous_keys=system.converged,
        kept=system.kept,
        past=system.past,
        neurons=select_neurons(system.keys, threshold=hyperparameters.neuron_threshold),
        mom2_update_weight=hyperparameters.mom2_update_weight,
        previous_keys_weight=hyperparameters.previous_keys_weight,
        ridge=hyperparameters.ridge,
    )
