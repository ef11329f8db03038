"""A delta: the low-rank factors of one round, with the correction that each column belongs to. The artifact is the edit.

File layout (safetensors): per rewritten weight `<parameter>.left` (d_out, r), `<parameter>.right` (r, d_in) in float64,
`<parameter>.case_index` (r,) int32 and `<parameter>.keys` (n, d_in) float32; metadata `nse.delta` is canonical JSON.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from nse.errors import DeltaError

SCHEMA = 1
METADATA_KEY = "nse.delta"


@dataclass(frozen=True, slots=True)
class LayerDelta:
    """The update of one weight: base + left @ right in canonical orientation.

    Attributes:
        left: (d_out, r) float64.
        right: (r, d_in) float64.
        case_index: (r,) int32, the fact that each column belongs to.
        keys: (n, d_in) float32, the key of each fact at this layer after the round: K_p of later rounds.
    """

    left: torch.Tensor
    right: torch.Tensor
    case_index: torch.Tensor
    keys: torch.Tensor

    def product(self) -> torch.Tensor:
        """The dense update (d_out, d_in), float64."""
        return self.left @ self.right


@dataclass(frozen=True, slots=True)
class Delta:
    """What one round adds to the base model's weights.

    Attributes:
        layers: By parameter name.
        case_ids: Names of the n facts that were written, in the order of `case_index`.
        base_digest: Digest of the base model that it was made for.
        metadata: Further provenance, plain values.
    """

    layers: dict[str, LayerDelta]
    case_ids: tuple[str, ...]
    base_digest: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def without(self, case_ids: Collection[str]) -> "Delta":
        """The same delta less the columns and keys of `case_ids`.

        Raises:
            DeltaError: If one of them is not in this delta.
        """
        if not case_ids:
            return self
        if unknown := set(case_ids) - set(self.case_ids):
            raise DeltaError(f"delta holds no fact {min(unknown)!r}: check the identity")
        kept = [i for i, name in enumerate(self.case_ids) if name not in case_ids]
        new_index = {old: new for new, old in enumerate(kept)}
        layers = {}
        for name, layer in self.layers.items():
            columns = [c for c, case in enumerate(layer.case_index.tolist()) if case in new_index]
            index = torch.tensor([new_index[int(layer.case_index[c])] for c in columns], dtype=torch.int32)
            layers[name] = LayerDelta(layer.left[:, columns], layer.right[columns], index, layer.keys[kept])
        return Delta(layers, tuple(self.case_ids[i] for i in kept), self.base_digest, self.metadata)

    def to_bytes(self) -> bytes:
        """The file's bytes; the same delta gives the same bytes."""
        tensors: dict[str, torch.Tensor] = {}
        for name, layer in sorted(self.layers.items()):
            tensors |= {
                f"{name}.left": layer.left.contiguous(),
                f"{name}.right": layer.right.contiguous(),
                f"{name}.case_index": layer.case_index.contiguous(),
                f"{name}.keys": layer.keys.contiguous(),
            }
        head = {
            "schema": SCHEMA,
            "base_digest": self.base_digest,
            "case_ids": self.case_ids,
            "metadata": dict(self.metadata),
        }
        return save(tensors, {METADATA_KEY: json.dumps(head, sort_keys=True, separators=(",", ":"))})

    def save(self, path: Path) -> None:
        """Writes the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.to_bytes())

    @classmethod
    def load(cls, path: Path) -> "Delta":
        """Reads a delta file.

        Raises:
            DeltaError: If the file is missing, no delta, of a newer schema, or its tensors do not fit each other.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (OSError, SafetensorError) as error:
            raise DeltaError(f"{path} cannot be read as safetensors ({error}): restore it with `dvc pull`") from error
        if METADATA_KEY not in metadata:
            raise DeltaError(
                f"{path} is not a delta (no {METADATA_KEY} metadata): give a delta.safetensors of this program"
            )
        head = _head(metadata[METADATA_KEY], path)
        names = sorted(n.removesuffix(".left") for n in tensors if n.endswith(".left"))
        try:
            layers = {
                n: LayerDelta(*(tensors[f"{n}.{p}"] for p in ("left", "right", "case_index", "keys"))) for n in names
            }
        except KeyError as error:
            raise DeltaError(f"{path} lacks the tensor {error}: restore it with `dvc pull`") from error
        delta = cls(layers, tuple(head["case_ids"]), head["base_digest"], head["metadata"])
        delta._check(path)
        return delta

    def _check(self, path: Path) -> None:
        for name, layer in self.layers.items():
            r = layer.case_index.numel()
            fits = layer.left.ndim == layer.right.ndim == layer.keys.ndim == 2 and layer.case_index.ndim == 1
            fits = fits and layer.left.shape[1] == r == layer.right.shape[0]
            fits = fits and tuple(layer.keys.shape) == (len(self.case_ids), layer.right.shape[1])
            if not fits or (
                r and not 0 <= int(layer.case_index.min()) <= int(layer.case_index.max()) < len(self.case_ids)
            ):
                raise DeltaError(f"{path}: the tensors of {name} do not fit each other: restore it with `dvc pull`")


def _head(text: str, path: Path) -> dict[str, Any]:
    """The metadata of a delta file.

    Raises:
        DeltaError: If it is of a newer schema, or is not what `Delta.to_bytes` writes.
    """
    try:
        head: dict[str, Any] = json.loads(text)
        schema, cases = int(head["schema"]), head["case_ids"]
        whole = isinstance(head["base_digest"], str) and isinstance(head["metadata"], dict) and isinstance(cases, list)
    except (ValueError, KeyError, TypeError) as error:
        raise DeltaError(f"{path} has a broken header ({error}): restore it with `dvc pull`") from error
    if schema > SCHEMA:
        raise DeltaError(f"{path} has schema {schema}, this program knows {SCHEMA}: upgrade the program")
    if not whole:
        raise DeltaError(f"{path} has a broken header: restore it with `dvc pull`")
    return head
