"""LocFT-BF: plain fine-tuning of one output projection, breadth first (arXiv 2509.22072)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nse.architecture import EditableModel
from nse.editors.base import CaseReport, EditContext, EditResult, Need, own_settings
from nse.finetuning import Recipe, texts_of, train, tuned_round
from nse.increments import Increments
from nse.request import EditRequest


@dataclass(frozen=True, slots=True)
class LocFTSettings:
    """Settings of LocFT-BF; the paper's for Llama 3 8B, whose layer is 22.

    Attributes:
        lr: Learning rate of Adam.
        epochs: Passes over all facts of the round.
        batch_size: Facts of one step.
        append_eos: Whether a target ends with EOS, so that the model learns to stop after it.
    """

    lr: float = 5e-4
    epochs: int = 25
    batch_size: int = 100
    append_eos: bool = True


class LocFTBF:
    """Passes over shuffled mini-batches of all facts of the round; each pass sees every fact before any is seen again.

    The rewrite layers are trained; the paper trains one.

    References:
        arXiv 2509.22072: fine-tuning fails as an editor where it is run depth first, fact by fact, and on too many weights.

    Deviation: the mean over a mini-batch is one over facts of the mean over their target tokens, so that a fact weighs the same
    whatever its length and its companions. Adam without weight decay.
    """

    name: str = "locft_bf"
    settings: type[Any] = LocFTSettings
    needs: frozenset[Need] = frozenset()

    def edit(self, editable: EditableModel, requests: Sequence[EditRequest], context: EditContext) -> EditResult:
        """See `Editor.edit`."""
        own = own_settings(LocFTSettings, context.hyperparameters.own, method=self.name)
        recipe = Recipe(own.lr, own.epochs, own.batch_size)

        def write(increments: Increments) -> Mapping[str, Any]:
            train(
                editable,
                increments,
                texts_of(editable, requests, end=own.append_eos),
                recipe,
                seed=context.seed,
                memory=context.memory,
                progress=context.progress,
            )
            return {}

        tuned = tuned_round(editable, requests, context, method=self.name, write=write)
        return EditResult(tuned.delta, tuned.values, tuple(CaseReport(*case) for case in tuned.cases), tuned.seconds)
