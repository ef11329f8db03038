"""UltraEdit: one gradient and one solve, with statistics over all edits in place of C0 and z (arXiv 2505.14679)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nse.architecture import EditableModel
from nse.batch import halved
from nse.delta import Delta
from nse.editors.base import CaseReport, EditContext, EditResult, Need, own_settings
from nse.errors import DeltaError, HyperparameterError
from nse.finetuning import memory_batches, surprises, texts_of, tuned_round
from nse.increments import Increments
from nse.request import EditRequest
from nse.tokens import TokenizedPrompt
from nse.trace import capture_inputs, capture_outputs

EPSILON = 1e-7
"""Added to a standard deviation before something is divided by it."""


@dataclass(frozen=True, slots=True)
class UltraEditSettings:
    """Settings of UltraEdit.

    Attributes:
        lr: Length of a step, against normalised keys and gradients.
    """

    lr: float = 1e-6


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and spread of n rows, float64, so that those of two sets give those of both.

    Attributes:
        count: n.
        mean: (d,).
        squares: (d,) sums of squared distances from the mean.
    """

    count: int
    mean: torch.Tensor
    squares: torch.Tensor

    @classmethod
    def of(cls, rows: torch.Tensor) -> "Moments":
        """Those of rows (n, d)."""
        mean = rows.mean(dim=0)
        return cls(len(rows), mean, (rows - mean).square().sum(dim=0))

    def joined(self, other: "Moments") -> "Moments":
        """Those of both sets of rows (Chan, Golub and LeVeque 1979)."""
        count, apart = self.count + other.count, other.mean - self.mean
        mean = self.mean + apart * (other.count / count)
        return Moments(count, mean, self.squares + other.squares + apart.square() * (self.count * other.count / count))

    def normalised(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows (m, d) less the mean, over the standard deviation."""
        deviation = (self.squares / max(self.count - 1, 1)).sqrt()
        return (rows - self.mean) / (deviation + EPSILON)


class UltraEdit:
    """Moves each output projection so that, at the facts' answer positions, its outputs go down the gradient of the loss.

    With H (t, d_mlp) the inputs of a projection at the t answer positions and G (t, d_model) the loss's gradients there, and
    h, g their rows normalised by the mean and standard deviation over all edits so far: V = -lr |h|^2 g, row by row, and the
    update is the ridge regression of V on the raw H, (H^T H + I)^-1 H^T V. A row is a fact's own, so a fact can be left out.

    Each delta's metadata hold the moments of its own round; a round joins those of the active deltas, so that what is
    reverted no longer counts. After single facts are left out of a round, its moments are still those of the whole round.

    References:
        arXiv 2505.14679, equations of section 3: normalisation, pseudo-values, regularised least squares.

    Deviation: moments are kept per layer; the published code shares them among layers whose weights have one shape. A fact's
    loss is the mean over its target tokens; there it is the mean over a batch, which the normalisation makes nearly the
    same. The solve is over positions (t, t), by the identity (H^T H + I)^-1 H^T = H^T (H H^T + I)^-1.
    """

    name: str = "ultraedit"
    settings: type[Any] = UltraEditSettings
    needs: frozenset[Need] = frozenset()

    def edit(self, editable: EditableModel, requests: Sequence[EditRequest], context: EditContext) -> EditResult:
        """See `Editor.edit`."""
        own = own_settings(UltraEditSettings, context.hyperparameters.own, method=self.name)
        if not own.lr > 0:
            raise HyperparameterError(f"ultraedit: lr = {own.lr!r} is out of range: give a number above 0")

        def write(increments: Increments) -> Mapping[str, Any]:
            texts = texts_of(editable, requests)
            layers = {editable.parameter_name(layer): layer for layer in context.hyperparameters.layers}
            seen = _answer_positions(editable, texts, layers, context.memory)
            owner = torch.tensor([i for i, text in enumerate(texts) for _ in text.target_ids])
            moments = {}
            for name, (keys, gradients) in seen.items():
                both = torch.cat([keys, gradients], dim=1)
                moments[name] = fresh = Moments.of(both)
                for delta in context.previous:
                    fresh = fresh.joined(earlier) if (earlier := _moments_in(delta, name, both.shape[1])) else fresh
                usual = fresh.normalised(both)
                h, g = usual[:, : keys.shape[1]], usual[:, keys.shape[1] :]
                values = -own.lr * h.square().sum(dim=1, keepdim=True) * g  # (t, d_model)
                system = keys @ keys.T + torch.eye(len(keys), dtype=keys.dtype)
                increments.divide(name, values.T, torch.linalg.solve(system, keys), owner)
            return {
                "moments": {
                    n: {"count": m.count, "mean": m.mean.tolist(), "squares": m.squares.tolist()}
                    for n, m in moments.items()
                }
            }

        tuned = tuned_round(editable, requests, context, method=self.name, write=write)
        return EditResult(tuned.delta, tuned.values, tuple(CaseReport(*case) for case in tuned.cases), tuned.seconds)


def _answer_positions(
    editable: EditableModel, texts: Sequence[TokenizedPrompt], layers: Mapping[str, int], memory: int | None
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Per weight, inputs (t, d_mlp) of its projection where a target token is predicted, and the loss's gradients (t, d_model).

    Text after text, float64 on the CPU; the loss of a text is the mean -log p per token of its target.
    """
    found: dict[str, dict[int, tuple[torch.Tensor, torch.Tensor]]] = {name: {} for name in layers}

    def run(group: Sequence[int]) -> list[int]:
        chosen = [texts[i] for i in group]
        modules = {name: editable.projection(layer) for name, layer in layers.items()}
        with capture_inputs(modules) as entering, capture_outputs(modules) as leaving:
            total = surprises(editable, chosen).sum()
        gradients = torch.autograd.grad(total, [leaving[name] for name in layers])
        for name, gradient in zip(layers, gradients, strict=True):
            for row, place in enumerate(group):
                at = slice(chosen[row].prompt_length - 1, len(chosen[row].ids) - 1)
                found[name][place] = tuple(  # type: ignore[assignment]
                    tensor[row, at].detach().double().cpu() for tensor in (entering[name], gradient)
                )
        return list(group)

    for group in memory_batches(editable, texts, memory, lowest=min(layers.values())):
        halved(run, group, what="texts")
    return {
        name: tuple(torch.cat([own[i][part] for i in range(len(texts))]) for part in (0, 1))  # type: ignore[misc]
        for name, own in found.items()
    }


def _moments_in(delta: Delta, name: str, width: int) -> Moments | None:
    """Moments (width,) of one weight in a delta's metadata, or nothing of another method's delta, or one all left out.

    Raises:
        DeltaError: If they are not what this method writes.
    """
    held = delta.metadata.get("moments", {}).get(name)
    if held is None or not delta.case_ids:
        return None
    try:
        mean, squares = (torch.tensor(held[part], dtype=torch.float64) for part in ("mean", "squares"))
        if not mean.shape == squares.shape == (width,):
            raise ValueError(f"{tuple(mean.shape)} numbers, not {width}")
        return Moments(int(held["count"]), mean, squares)
    except (KeyError, TypeError, ValueError) as error:
        raise DeltaError(f"a delta's moments of {name} are broken ({error}): restore it with `dvc pull`") from error
