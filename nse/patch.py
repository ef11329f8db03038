"""Weights in force: base plus active deltas, composed in float64 and rounded once. The only place where weights are set."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nse.architecture import EditableModel
from nse.batch import Progress, silent
from nse.delta import Delta, Memory
from nse.errors import DeltaError
from nse.fingerprint import json_digest, tensor_digest, weights_digest
from nse.memories import memory_digest, remembering


class Weights(dict[str, torch.Tensor]):
    """Parameter name -> weight in the model's own orientation and dtype; with them, what methods keep beside the weights.

    Attributes:
        memories: Memories of the active deltas, in ledger order.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor] | None = None, memories: Sequence[Memory] = ()) -> None:
        """Takes weights as they are."""
        super().__init__(weights or {})
        self.memories = tuple(memories)


BLOCK = 128
"""Columns that are multiplied at once, at least. It decides how a sum is grouped, so a change of it changes versions' digests."""

ROWS = 256
METADATA_KEY = "nse.snapshot"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SnapshotStore:
    """A folder of sums of deltas, one float64 weight a file, so that a late version need not start at the first round.

    A file is named by the digest of the weight's name and the exact list of deltas that it is the sum of, and holds a digest of
    its content: a damaged one is left aside. Deleting the folder costs only time.

    Attributes:
        folder: Where the files are.
        every: About how many deltas lie between two snapshots of a weight; each takes 8 d_out d_in bytes.
    """

    folder: Path
    every: int = 50

    def get(self, key: str, shape: tuple[int, ...]) -> torch.Tensor | None:
        """A sum (d_out, d_in) float64 that may be written into, or nothing if it is not there or not whole."""
        path = self.folder / f"{key}.safetensors"
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                digest, total = (file.metadata() or {}).get(METADATA_KEY), file.get_tensor("sum")
        except (OSError, SafetensorError) as error:
            logger.warning("%s cannot be read (%s): it is made again", path, error)
            return None
        if total.dtype != torch.float64 or tuple(total.shape) != shape or tensor_digest(total) != digest:
            logger.warning("%s is damaged: it is made again", path)
            return None
        writable: torch.Tensor = total.clone()
        return writable

    def put(self, key: str, total: torch.Tensor) -> None:
        """Keeps a sum; a reader never sees half a file, and a full disk is no reason to stop."""
        temporary = self.folder / f".{key}.{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({"sum": total}, temporary, {METADATA_KEY: tensor_digest(total)})
            temporary.replace(self.folder / f"{key}.safetensors")
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                temporary.unlink()
            logger.warning("%s cannot keep a snapshot (%s): it will be made again", self.folder, error)


def compose(
    editable: EditableModel,
    deltas: Iterable[Delta],
    *,
    known: Mapping[str, torch.Tensor] | None = None,
    identities: Sequence[str] = (),
    snapshots: SnapshotStore | None = None,
    progress: Progress = silent,
) -> Weights:
    """Adds deltas to the base weights, in their order, in float64, and rounds once to the model's dtype.

    One weight after the other, so that one float64 weight is in memory at a time; deltas that `Delta.load` gave are memory
    maps, of which only that weight's factors are read. `summed` says in which order numbers are added.

    Args:
        editable: The model with its base weights.
        deltas: Active deltas in ledger order; columns that are not in force are left out of them beforehand.
        known: Sums of these deltas at some weights, as `summed` gave them: they are not made again.
        identities: Per delta a digest of its content, what was left out included; needed with snapshots.
        snapshots: Sums of earlier versions. With or without them the result is the same to the bit.
        progress: Called per weight with deltas done.

    Returns:
        The weights that differ from the base; every other weight is the base's own.

    Raises:
        DeltaError: If a delta was made for another base model, or a weight does not exist or has another shape.
    """
    active = tuple(deltas)
    for delta in active:
        _check(editable, delta)
    weights = Weights(memories=[delta.memory for delta in active if delta.memory is not None])
    for name in dict.fromkeys(name for delta in active for name in delta.layers):
        update = (known or {}).get(name)
        if update is None:
            update = summed(name, active, identities=identities, snapshots=snapshots, progress=progress)
        if update is not None:
            weights[name] = rounded(editable, name, update)
    return weights


def summed(
    name: str,
    deltas: Sequence[Delta],
    *,
    identities: Sequence[str] = (),
    snapshots: SnapshotStore | None = None,
    progress: Progress = silent,
) -> torch.Tensor | None:
    """The sum of left @ right over the deltas of one weight, (d_out, d_in) float64, or nothing where they have no columns.

    The bytes of a version depend on the order of additions, so it is fixed: deltas in their order are put together until a block
    has at least `BLOCK` columns; each block's product is added to the sum of those before it by one matrix product that
    accumulates. A block ends where it does whatever follows it, so the sum of the first rounds is a step on the way to the
    sum of all, and a snapshot holds exactly that. Another numerical library may still round a product otherwise.

    Raises:
        DeltaError: If snapshots are asked for without an identity for each delta.
    """
    if snapshots is not None and len(identities) != len(deltas):
        raise DeltaError(f"{len(deltas)} deltas have {len(identities)} identities: give one digest per delta")
    blocks = _blocks([d.layers[name].case_index.numel() if name in d.layers else 0 for d in deltas])
    if not blocks:
        return None
    first = next(d.layers[name] for d in deltas if name in d.layers)
    shape = (first.left.shape[0], first.right.shape[1])
    total, start = None, 0
    if snapshots is not None:
        total, start = _nearest(name, shape, blocks, identities, snapshots)
    if total is None:
        total = torch.zeros(shape, dtype=torch.float64, device=first.left.device)
    for number in range(start, len(blocks)):
        begin, end = blocks[number]
        layers = [d.layers[name] for d in deltas[begin:end] if name in d.layers]
        total.addmm_(torch.cat([la.left for la in layers], dim=1), torch.cat([la.right for la in layers]))
        if snapshots is not None and _is_kept(blocks, number, snapshots):
            snapshots.put(_key(name, identities[:end]), total)
        progress(f"compose {name}", end, len(deltas))
    return total


def _blocks(columns: Sequence[int]) -> list[tuple[int, int]]:
    """Ranges of deltas whose columns are multiplied at once; where one ends depends on nothing that comes later."""
    blocks, begin, held = [], 0, 0
    for end, count in enumerate(columns, start=1):
        held += count
        if held >= BLOCK:
            blocks.append((begin, end))
            begin, held = end, 0
    return [*blocks, (begin, len(columns))] if held else blocks


def _is_kept(blocks: Sequence[tuple[int, int]], number: int, snapshots: SnapshotStore) -> bool:
    """Whether a snapshot belongs after a block: the last one may still grow, and one in `every` deltas is enough."""
    begin, end = blocks[number]
    return number + 1 < len(blocks) and begin // snapshots.every < end // snapshots.every


def _nearest(
    name: str,
    shape: tuple[int, ...],
    blocks: Sequence[tuple[int, int]],
    identities: Sequence[str],
    snapshots: SnapshotStore,
) -> tuple[torch.Tensor | None, int]:
    """The latest sum on the way that is kept, and the number of the block to go on with."""
    for number in reversed(range(len(blocks))):
        if _is_kept(blocks, number, snapshots):
            total = snapshots.get(_key(name, identities[: blocks[number][1]]), shape)
            if total is not None:
                return total, number + 1
    return None, 0


def _key(name: str, identities: Sequence[str]) -> str:
    return json_digest({"schema": 1, "weight": name, "block": BLOCK, "deltas": list(identities)})


def _check(editable: EditableModel, delta: Delta) -> None:
    """Raises a DeltaError where a delta does not fit the model."""
    if delta.base_digest != editable.base_digest:
        raise DeltaError(
            f"delta was made for base {delta.base_digest[:12]}, the model is {editable.base_digest[:12]}: load that base"
        )
    for name, layer in delta.layers.items():
        if name not in editable.tensor_digests:
            raise DeltaError(f"delta changes {name}, which this model does not have: load the model it was made for")
        shape = tuple(editable.base_weight(name).shape)
        if (layer.left.shape[0], layer.right.shape[1]) != shape:
            raise DeltaError(f"delta of {name} is for another shape than {shape}: load the model it was made for")


def rounded(editable: EditableModel, name: str, update: torch.Tensor) -> torch.Tensor:
    """Base weight + update (d_out, d_in) in float64, rounded once, in the model's own orientation."""
    base = editable.base_weight(name)
    result = torch.empty_like(editable.canonical(base), memory_format=torch.contiguous_format, device="cpu")
    into = editable.canonical(result)
    for start in range(0, len(base), ROWS):  # some rows at a time: no second float64 weight
        rows = slice(start, start + ROWS)
        into[rows] = base[rows].double().cpu() + update[rows].cpu()
    return result


@contextmanager
def patched(editable: EditableModel, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Puts `weights` in force inside the block; afterwards the model holds the very tensors it held before.

    `Weights` bring their memories with them, in place of those in force; a plain mapping leaves those as they are.
    """
    held = {name: editable.model.get_parameter(name).data for name in weights}
    memories = weights.memories if isinstance(weights, Weights) else editable.memories
    try:
        for name, weight in weights.items():
            editable.model.get_parameter(name).data = weight.to(held[name].device)
        with remembering(editable, memories):
            yield
    finally:
        for name, data in held.items():
            editable.model.get_parameter(name).data = data


@contextmanager
def rewritable(
    editable: EditableModel, names: Sequence[str], active: Sequence[Delta]
) -> Iterator[dict[str, torch.Tensor]]:
    """Puts `active` in force inside the block, which may set the weights called `names`: they are taken back as well.

    Yields:
        Sums (d_out, d_in) float64 of the active updates, of those weights that have any.
    """
    earlier = {name: total for name in names if (total := summed(name, active)) is not None}
    start = compose(editable, active, known=earlier)
    base = {name: editable.base_tensors[name] for name in names}
    with patched(editable, Weights(base | start, start.memories)):
        yield earlier


def version_digest(editable: EditableModel, weights: Mapping[str, torch.Tensor]) -> str:
    """Digest of the whole model with `weights` in force, and of the memories with them: the name of that version."""
    changed = {name: tensor_digest(weight) for name, weight in weights.items()}
    memories = weights.memories if isinstance(weights, Weights) else ()
    beside = {f"memory {place}": memory_digest(memory) for place, memory in enumerate(memories)}
    return weights_digest({**editable.tensor_digests, **changed, **beside})


@contextmanager
def base_in_force(editable: EditableModel) -> Iterator[None]:
    """Puts the base weights in force inside the block, whatever is in force around it."""
    with patched(editable, Weights(editable.base_tensors)):
        yield
