"""Low-rank adapters beside the weights: what they add to the outputs of modules, by hooks that leave no trace."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from nse.architecture import EditableModel

Factors = tuple[torch.Tensor, torch.Tensor]
"""left (d_out, r) and right (r, d_in) in canonical orientation."""


@contextmanager
def adapted(editable: EditableModel, factors: Mapping[str, Factors]) -> Iterator[None]:
    """Inside, each named module gives what it gives with the weight W + left @ right; gradients reach the factors.

    Args:
        editable: The model.
        factors: By name of a module with one weight.
    """

    def hook(left: torch.Tensor, right: torch.Tensor) -> Callable[..., torch.Tensor]:
        def add(_module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            entering = inputs[0].to(left.dtype)
            return output + (entering @ right.T @ left.T).to(output.dtype)

        return add

    with ExitStack() as stack:
        for name, (left, right) in factors.items():
            stack.callback(editable.model.get_submodule(name).register_forward_hook(hook(left, right)).remove)
        yield
