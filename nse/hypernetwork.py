"""MEND's hypernetwork: from what a token brings into a weight and the gradient that comes back to what the edit makes of them.

Owns its shape, its state as tensors, and the gradients that it takes; it is trained in `nse.training.mend`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from nse.adapter import Factors
from nse.architecture import EditableModel
from nse.batch import by_length, halved
from nse.errors import TrainingError
from nse.finetuning import surprises
from nse.tokens import TokenizedPrompt
from nse.trace import capture_inputs


@dataclass(frozen=True, slots=True)
class TokenGradients:
    """What the tokens of some facts give at one weight, tokens as rows.

    Attributes:
        inputs: (m, d_in) float32, u: what enters the weight.
        gradients: (m, d_out) float32, v: the gradient of the token's fact's loss by what leaves the weight.
        fact: (m,) int64, the fact that each token belongs to.
    """

    inputs: torch.Tensor
    gradients: torch.Tensor
    fact: torch.Tensor


def token_gradients(
    editable: EditableModel, prompts: Sequence[TokenizedPrompt], layers: Sequence[int]
) -> dict[int, TokenGradients]:
    """u and v at the output projections of `layers`, under what is in force, for the loss of each prompt's target.

    The loss is the mean of -log p per token of the target. Tokens after the one that predicts the target's last have no gradient
    and are left out.

    Raises:
        TokenError: If a text is longer than the model's positions.
    """
    found: dict[int, dict[int, tuple[torch.Tensor, torch.Tensor]]] = {layer: {} for layer in layers}

    def run(group: Sequence[int]) -> list[int]:
        own = [prompts[i] for i in group]
        projections = {layer: editable.projection(layer) for layer in layers}
        with capture_inputs(projections) as entering, _leaves(projections) as leaves, torch.enable_grad():
            loss = surprises(editable, own).sum()
            gradients = torch.autograd.grad(loss, [leaves[layer] for layer in layers])
        for layer, gradient in zip(layers, gradients, strict=True):
            for row, i in enumerate(group):
                end = len(prompts[i].ids) - 1
                u, v = entering[layer][row, :end].detach(), gradient[row, :end]
                found[layer][i] = (u.float().cpu(), v.float().cpu())
        return list(group)

    for group in by_length(prompts):
        halved(run, group, what="facts")
    return {layer: _joined([own[i] for i in range(len(prompts))]) for layer, own in found.items()}


def _joined(parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> TokenGradients:
    index = torch.cat([torch.full((len(u),), i) for i, (u, _) in enumerate(parts)])
    return TokenGradients(torch.cat([u for u, _ in parts]), torch.cat([v for _, v in parts]), index)


@contextmanager
def _leaves(modules: Mapping[int, nn.Module]) -> Iterator[dict[int, torch.Tensor]]:
    """Adds a zero to each module's output, whose gradient is the output's."""
    leaves: dict[int, torch.Tensor] = {}

    def hook(layer: int) -> Callable[..., torch.Tensor]:
        def add(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
            leaves[layer] = torch.zeros_like(output, requires_grad=True)
            return output + leaves[layer]

        return add

    with ExitStack() as stack:
        for layer, module in modules.items():
            stack.callback(module.register_forward_hook(hook(layer)).remove)
        yield leaves


class _Shared(nn.Module):
    """Two residual low-rank layers over (u, v), shared by layers whose weights have one shape, with a scale and a shift for each.

    At the start it gives back the normalised u and v, so that an edit is a step along the normalised gradient.
    """

    def __init__(self, layers: int, width: int, rank: int, edit_lr: float, generator: torch.Generator) -> None:
        super().__init__()
        rank = min(rank, width)
        self.down = nn.Parameter(torch.randn(2, rank, width, generator=generator) * width**-0.5)
        self.up = nn.Parameter(torch.zeros(2, width, rank))
        self.bias = nn.Parameter(torch.zeros(2, width))
        self.scale = nn.Parameter(torch.ones(2, layers, width))
        self.shift = nn.Parameter(torch.zeros(2, layers, width))
        self.edit_lr = nn.Parameter(torch.full((layers,), edit_lr))
        self.register_buffer("mean", torch.zeros(layers, width))
        self.register_buffer("deviation", torch.ones(layers, width))

    def forward(self, place: int, both: torch.Tensor) -> torch.Tensor:
        """(u~, v~) (m, width) of tokens at the place-th layer."""
        state = (both - self.get_buffer("mean")[place]) / self.get_buffer("deviation")[place]
        for i in range(2):
            within = state @ self.down[i].T @ self.up[i].T + self.bias[i]
            # clamp and not relu: its gradient at 0, where training starts, is not 0
            state = state + (self.scale[i, place] * within + self.shift[i, place]).clamp(min=0)
        return state


class Hypernetwork(nn.Module):
    """What turns (u, v) of each edited layer into an update of its weight.

    References:
        MEND (arXiv 2110.11309), section 3.1, equation 3.
    """

    def __init__(
        self, editable: EditableModel, layers: Sequence[int], rank: int, edit_lr: float, generator: torch.Generator
    ) -> None:
        """Makes a network for the output projections of `layers`; only `generator` decides what is random."""
        super().__init__()
        self.shapes = {layer: editable.base_weight(editable.parameter_name(layer)).shape for layer in layers}
        alike: dict[str, list[int]] = {}
        for layer, (d_out, d_in) in self.shapes.items():
            alike.setdefault(f"{d_out}x{d_in}", []).append(layer)
        self.places = {layer: (name, place) for name, own in alike.items() for place, layer in enumerate(own)}
        self.shared = nn.ModuleDict(
            {name: _Shared(len(own), sum(self.shapes[own[0]]), rank, edit_lr, generator) for name, own in alike.items()}
        )

    def load(self, tensors: Mapping[str, torch.Tensor]) -> "Hypernetwork":
        """Takes its state from a trained file.

        Raises:
            TrainingError: If the tensors are not one's of these shapes.
        """
        try:
            self.load_state_dict(dict(tensors))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise TrainingError(
                f"the trained file holds no network for these layers ({reason}): make it with `nse train --method mend`"
            ) from error
        return self

    def normalise_by(self, seen: Mapping[int, TokenGradients]) -> None:
        """Takes mean and deviation of u and v, per layer, from what training has seen."""
        for layer, tokens in seen.items():
            network, place = self._of(layer)
            both = torch.cat([tokens.inputs, tokens.gradients], dim=1).double()
            network.get_buffer("mean")[place] = both.mean(dim=0).float()
            network.get_buffer("deviation")[place] = both.std(dim=0).clamp_min(1e-7).float()

    def forward(self, layer: int, tokens: TokenGradients) -> Factors:
        """The update that tokens give at the weight of a layer: -lr v~ (d_out, m) and u~ (m, d_in)."""
        network, place = self._of(layer)
        changed = network(place, torch.cat([tokens.inputs, tokens.gradients], dim=1))
        d_in = self.shapes[layer][1]
        return -network.edit_lr[place] * changed[:, d_in:].T, changed[:, :d_in]

    def _of(self, layer: int) -> tuple[_Shared, int]:
        name, place = self.places[layer]
        network = self.shared[name]
        assert isinstance(network, _Shared)
        return network, place
