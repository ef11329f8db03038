"""Reading and replacing activations: what goes into and comes out of modules, by hooks that leave no trace."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


def hidden_of(output: Any) -> torch.Tensor:
    """The hidden state (n, t, d) in a block's output, which is a tensor in most families and a tuple in some."""
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


@contextmanager
def capture_inputs(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, torch.Tensor]]:
    """Records the first input of each module, (n, t, d), at the latest forward pass inside the block."""
    seen: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def keep(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            seen[name] = inputs[0]

        return keep

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_pre_hook(hook(name)).remove)
        yield seen


@contextmanager
def capture_outputs(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, torch.Tensor]]:
    """Records the hidden state in the output of each module, (n, t, d), at the latest forward pass inside the block."""
    seen: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            seen[name] = hidden_of(output)

        return keep

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(hook(name)).remove)
        yield seen


@contextmanager
def resumed_above(blocks: list[nn.Module], layer: int, state: Callable[[], torch.Tensor]) -> Iterator[None]:
    """Inside, a forward pass skips the blocks up to `layer` and goes on from `state()`, the hidden state after it.

    Args:
        blocks: All blocks of the model, in order.
        layer: Index of the block whose output is given.
        state: Called once per forward pass; returns (n, t, d).
    """
    skipped = blocks[: layer + 1]

    def replacement(index: int) -> Callable[..., torch.Tensor]:
        def forward(hidden_states: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
            return state() if index == layer else hidden_states

        return forward

    for index, block in enumerate(skipped):
        block.forward = replacement(index)  # an instance attribute that shadows the method
    try:
        yield
    finally:
        for block in skipped:
            del block.forward
