"""Reading and replacing activations: what goes into and comes out of modules, by hooks that leave no trace."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from nse.architecture import EditableModel

Name = TypeVar("Name")


def hidden_of(output: Any) -> torch.Tensor:
    """The hidden state (n, t, d) in a block's output, which is a tensor in most families and a tuple in some."""
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


@contextmanager
def capture_inputs(modules: Mapping[Name, nn.Module]) -> Iterator[dict[Name, torch.Tensor]]:
    """Records the first input of each module, (n, t, d), at the latest forward pass inside the block."""
    seen: dict[Name, torch.Tensor] = {}

    def hook(name: Name) -> Callable[..., None]:
        def keep(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            seen[name] = inputs[0]

        return keep

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_pre_hook(hook(name)).remove)
        yield seen


@contextmanager
def capture_outputs(modules: Mapping[Name, nn.Module]) -> Iterator[dict[Name, torch.Tensor]]:
    """Records the hidden state in the output of each module, (n, t, d), at the latest forward pass inside the block."""
    seen: dict[Name, torch.Tensor] = {}

    def hook(name: Name) -> Callable[..., None]:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            seen[name] = hidden_of(output)

        return keep

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(hook(name)).remove)
        yield seen


@contextmanager
def resumed_above(editable: EditableModel, layer: int, state: Callable[[], torch.Tensor]) -> Iterator[None]:
    """Inside, a forward pass skips the blocks up to `layer` and goes on from `state()`, the hidden state after it.

    Args:
        editable: The model.
        layer: Index of the block whose output is given.
        state: Called once per forward pass; returns (n, t, d).
    """

    def replacement(index: int) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda hidden: state() if index == layer else hidden

    with _replaced(editable, {index: replacement(index) for index in range(layer + 1)}):
        yield


@contextmanager
def stopped_after(editable: EditableModel, layer: int) -> Iterator[None]:
    """Inside, a forward pass skips the blocks above `layer`: nothing that they compute is wanted."""
    with _replaced(editable, dict.fromkeys(range(layer + 1, editable.layers), lambda hidden: hidden)):
        yield


@contextmanager
def _replaced(
    editable: EditableModel, functions: Mapping[int, Callable[[torch.Tensor], torch.Tensor]]
) -> Iterator[None]:
    """Inside, the blocks with the given indices do nothing but pass the hidden state through their function."""
    wrapped = editable.wrapped_output

    def forward(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
        def run(hidden_states: torch.Tensor, *_args: Any, **_kwargs: Any) -> Any:
            hidden = function(hidden_states)
            return (hidden, None) if wrapped else hidden

        return run

    with ExitStack() as stack:
        for index, function in functions.items():
            block = editable.block(index)
            stack.callback(_restore, block, vars(block).get("forward"))
            block.forward = forward(function)  # an instance attribute that shadows the method
        yield


def _restore(block: nn.Module, forward: Any) -> None:
    """Gives a block back the `forward` of its own that it had (accelerate sets one), or its class's."""
    if forward is None:
        del block.forward
    else:
        block.forward = forward
