"""Weights in force: base plus active deltas, composed in float64 and rounded once. The only place where weights are set."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from nse.architecture import EditableModel
from nse.delta import Delta
from nse.errors import DeltaError
from nse.fingerprint import tensor_digest, weights_digest

Weights = dict[str, torch.Tensor]
"""Parameter name -> weight in the model's own orientation and dtype."""


def compose(editable: EditableModel, deltas: Sequence[Delta]) -> Weights:
    """Adds deltas to the base weights, in their order, in float64, and rounds once to the model's dtype.

    Args:
        editable: The model with its base weights.
        deltas: Active deltas in ledger order; columns that are not in force are left out of them beforehand.

    Returns:
        The weights that differ from the base; every other weight is the base's own.

    Raises:
        DeltaError: If a delta was made for another base model, or a weight does not exist or has another shape.
    """
    sums: dict[str, torch.Tensor] = {}
    for delta in deltas:
        if delta.base_digest != editable.base_digest:
            raise DeltaError(
                f"delta was made for base {delta.base_digest[:12]}, the model is {editable.base_digest[:12]}: load that base"
            )
        for name, layer in delta.layers.items():
            if name not in editable.tensor_digests:
                raise DeltaError(
                    f"delta changes {name}, which this model does not have: load the model it was made for"
                )
            shape = editable.base_weight(name).shape
            if (layer.left.shape[0], layer.right.shape[1]) != tuple(shape):
                raise DeltaError(
                    f"delta of {name} is for another shape than {tuple(shape)}: load the model it was made for"
                )
            if layer.case_index.numel() == 0:
                continue  # all its columns were left out: the weight is the base's own, to the sign of its zeros
            update = layer.product()
            sums[name] = sums[name] + update if name in sums else update
    return {name: rounded(editable, name, update) for name, update in sums.items()}


def rounded(editable: EditableModel, name: str, update: torch.Tensor) -> torch.Tensor:
    """Base weight + update (d_out, d_in) in float64, rounded once, in the model's own orientation."""
    base = editable.base_weight(name)
    return editable.canonical((base.double().cpu() + update).to(base.dtype)).contiguous()


@contextmanager
def patched(editable: EditableModel, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Puts `weights` in force inside the block; afterwards the model holds the very tensors it held before."""
    held = {name: editable.model.get_parameter(name).data for name in weights}
    try:
        for name, weight in weights.items():
            editable.model.get_parameter(name).data = weight.to(held[name].device)
        yield
    finally:
        for name, data in held.items():
            editable.model.get_parameter(name).data = data


def version_digest(editable: EditableModel, weights: Mapping[str, torch.Tensor]) -> str:
    """Digest of the whole model with `weights` in force: the name of that version."""
    changed = {name: tensor_digest(weight) for name, weight in weights.items()}
    return weights_digest({**editable.tensor_digests, **changed})


@contextmanager
def base_in_force(editable: EditableModel) -> Iterator[None]:
    """Puts the base weights in force inside the block, whatever is in force around it."""
    with patched(editable, editable.base_tensors):
        yield
