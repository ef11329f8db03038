"""FT and FT-L: gradient steps on output projections, free or within a bound on each entry."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nse.architecture import EditableModel
from nse.editors.base import CaseReport, EditContext, EditResult, Need, own_settings
from nse.finetuning import Recipe, texts_of, train, tuned_round
from nse.increments import Increments
from nse.request import EditRequest


@dataclass(frozen=True, slots=True)
class FTSettings:
    """Settings of FT, the MEMIT repository's.

    Attributes:
        lr: Learning rate of Adam.
        num_steps: Most passes over the facts of a round.
        batch_size: Facts of one step.
        loss_target: Done when the mean -log p per target token is below this, in nats.
    """

    lr: float = 5e-4
    num_steps: int = 25
    batch_size: int = 128
    loss_target: float = 1e-2


@dataclass(frozen=True, slots=True)
class FTLSettings:
    """Settings of FT-L: those of FT, and the bound.

    Attributes:
        lr: Learning rate of Adam.
        num_steps: Most passes over the facts of a round.
        batch_size: Facts of one step.
        loss_target: Done when the mean -log p per target token is below this, in nats.
        norm_constraint: No entry of a weight moves by more than this in a round.
    """

    lr: float = 5e-4
    num_steps: int = 25
    batch_size: int = 128
    loss_target: float = 1e-2
    norm_constraint: float = 5e-4


class FT:
    """Adam on the output projections of the rewrite layers (one, in the papers), on the bare prompts and their targets.

    References:
        The baseline of ROME (arXiv 2202.05262) and MEMIT (arXiv 2210.07229), section 5 and appendix of each.

    Deviation: the loss is taken at every token of the target, each given the ones before; the published code asks for all of
    them at the prompt's last token. No weight decay: there it is 0 as well.
    """

    name: str = "ft"
    settings: type[Any] = FTSettings
    needs: frozenset[Need] = frozenset()

    def edit(self, editable: EditableModel, requests: Sequence[EditRequest], context: EditContext) -> EditResult:
        """See `Editor.edit`."""
        own = own_settings(FTSettings, context.hyperparameters.own, method=self.name)
        recipe = Recipe(own.lr, own.num_steps, own.batch_size, own.loss_target)
        return _edit(self.name, recipe, editable, requests, context)


class FTL:
    """FT within an L-infinity ball around the weights before the round: each step is followed by a projection on it.

    References:
        arXiv 2202.05262, section 4 (FT+L), after Zhu et al. (arXiv 2012.00363).

    Deviation: as FT.
    """

    name: str = "ft_l"
    settings: type[Any] = FTLSettings
    needs: frozenset[Need] = frozenset()

    def edit(self, editable: EditableModel, requests: Sequence[EditRequest], context: EditContext) -> EditResult:
        """See `Editor.edit`."""
        own = own_settings(FTLSettings, context.hyperparameters.own, method=self.name)
        recipe = Recipe(own.lr, own.num_steps, own.batch_size, own.loss_target, own.norm_constraint)
        return _edit(self.name, recipe, editable, requests, context)


def _edit(
    method: str, recipe: Recipe, editable: EditableModel, requests: Sequence[EditRequest], context: EditContext
) -> EditResult:
    def write(increments: Increments) -> Mapping[str, Any]:
        train(
            editable,
            increments,
            texts_of(editable, requests),
            recipe,
            seed=context.seed,
            memory=context.memory,
            progress=context.progress,
        )
        return {}

    tuned = tuned_round(editable, requests, context, method=method, write=write)
    return EditResult(tuned.delta, tuned.values, tuple(CaseReport(*case) for case in tuned.cases), tuned.seconds)
