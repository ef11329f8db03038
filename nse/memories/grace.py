"""GRACE's memory: a codebook at one layer that answers for the layer where what enters it is near a key.

Entries are only ever added to; which radius each has follows from all entries in force, in ledger order, so that a correction
that is left out is as if it had never been made.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nse.architecture import EditableModel
from nse.delta import Memory
from nse.errors import DeltaError
from nse.trace import hidden_of

KIND = "grace"
SAME = 0.01
"""Keys nearer than this share of `eps` are one key but for rounding: the same prompt, corrected again."""
MARGIN = 1.001
"""A radius that is grown up to a key reaches a little beyond it, for rounding."""


@dataclass(frozen=True, slots=True)
class Codebook:
    """What is in force.

    Attributes:
        keys: (m, d_model) float32, what enters the layer.
        values: (m, d_model) float32, what leaves it instead.
        radii: (m,) float32, how far from its key each value holds.
    """

    keys: torch.Tensor
    values: torch.Tensor
    radii: torch.Tensor

    def to(self, device: torch.device) -> "Codebook":
        """The same on a device."""
        return Codebook(self.keys.to(device), self.values.to(device), self.radii.to(device))

    def looked_up(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Whether each state (n, d_model) is within the radius of its nearest key (n,), and that key's value (n, d_model)."""
        # not by matrix products: they lose the digits of small distances
        distances = torch.cdist(states.float(), self.keys, compute_mode="donot_use_mm_for_euclid_dist")
        nearest, place = distances.min(dim=1)
        return nearest <= self.radii[place], self.values[place]


def folded(memories: Sequence[Memory]) -> Codebook:
    """The codebook that a stream of entries gives.

    A new key gets the radius `eps`. If it lies within `eps` and the nearest key's radius of that key: with the same target that
    key's radius grows up to it and nothing is added; with another, both radii are at most half the distance.

    Deviation: a radius never grows by a conflict, and a correction of a prompt that already has a key takes its place; with the
    published rule both would have the radius 0. Targets are compared as texts, not by their mean token id as in the public code.

    References:
        GRACE (arXiv 2211.11031), algorithm 1.

    Raises:
        DeltaError: If the memories were made with different settings.
    """
    eps = float(settings_of(memories)["eps"])
    keys = torch.cat([memory.entries["keys"] for memory in memories]).float()
    values = torch.cat([memory.entries["values"] for memory in memories]).float()
    targets = [text for memory in memories for text in memory.texts]
    radii, held = torch.full((len(keys),), eps), torch.zeros(len(keys), dtype=torch.bool)
    for place in range(len(keys)):
        held[place] = True
        if place == 0:
            continue
        distances = torch.linalg.vector_norm(keys[:place] - keys[place], dim=1)
        distance, at = (float(x) for x in distances.masked_fill(~held[:place], float("inf")).min(dim=0))
        nearest = int(at)
        if distance <= SAME * eps:
            held[nearest], radii[place] = False, radii[nearest]
        elif distance <= eps + float(radii[nearest]):
            if targets[nearest] == targets[place]:
                held[place] = False
                radii[nearest] = max(float(radii[nearest]), distance * MARGIN)
            else:
                radii[place] = distance / 2 if distance / 2 < eps else eps
                radii[nearest] = min(float(radii[nearest]), distance / 2)
    return Codebook(keys[held], values[held], radii[held])


def settings_of(memories: Sequence[Memory]) -> dict[str, Any]:
    """The settings of all memories.

    Raises:
        DeltaError: If they differ.
    """
    first = dict(memories[0].settings)
    if any(dict(memory.settings) != first for memory in memories):
        raise DeltaError(
            f"rounds of {memories[0].kind} were made with different settings: replay them with the settings of one"
        )
    return first


@contextmanager
def recalled(editable: EditableModel, memories: Sequence[Memory]) -> Iterator[None]:
    """Inside, the layer's output is replaced wherever what enters it is within the radius of its nearest key.

    Deviation: the match is made at every token, by that token's state alone; the public code makes it at the prompt's last
    token and needs to be told where that is. So neither a batch, nor padding, nor a prefix that is kept changes an answer.

    Raises:
        DeltaError: If the memories do not fit the model or each other.
    """
    layer, width = int(settings_of(memories)["layer"]), int(editable.model.config.hidden_size)
    if any(memory.entries["keys"].shape[1] != width for memory in memories) or not 0 <= layer < editable.layers:
        raise DeltaError(f"a codebook of grace does not fit the model (layer {layer}): load the model it was made for")
    block, mine = editable.block(layer), editable.memories
    book = folded(memories).to(next(block.parameters()).device)

    def recall(_module: nn.Module, inputs: tuple[torch.Tensor, ...], output: Any) -> Any:
        if editable.memories is not mine:  # others, or none, are in force inside
            return None
        hidden = hidden_of(output)
        near, values = book.looked_up(inputs[0].reshape(-1, width))
        if not bool(near.any()):
            return None
        replaced = torch.where(near.view(*hidden.shape[:-1], 1), values.view_as(hidden).to(hidden.dtype), hidden)
        return (replaced, *output[1:]) if isinstance(output, tuple) else replaced

    handle = block.register_forward_hook(recall)
    try:
        yield
    finally:
        handle.remove()
