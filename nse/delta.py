"""A delta: the low-rank factors of one round, with the correction that each column belongs to. The artifact is the edit.

File layout (safetensors): per rewritten weight `<parameter>.left` (d_out, r), `<parameter>.right` (r, d_in) in float64,
`<parameter>.case_index` (r,) int32 and `<parameter>.keys` (n + m, d_in) float32, with `<parameter>.further_index` (m,) int32
where m is not 0; for a method that keeps a memory beside the weights `memory.<name>` and `memory.case_index`; metadata
`nse.delta` is canonical JSON.
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

SCHEMA = 2
"""2 has further keys, and is written only where there are any; 1 is as before."""
METADATA_KEY = "nse.delta"
WHOLE_ROUND = -1
"""The `case_index` of a column that belongs to all facts of its round together: methods that train on them jointly write such."""
_MEMORY = "memory."


@dataclass(frozen=True, slots=True)
class LayerDelta:
    """The update of one weight: base + left @ right in canonical orientation.

    Attributes:
        left: (d_out, r) float64.
        right: (r, d_in) float64.
        case_index: (r,) int32, the fact that each column belongs to, or `WHOLE_ROUND`.
        keys: (n + m, d_in) float32, the keys at this layer after the round, K_p of later rounds: one of each fact, in their
            order, then m further ones of facts that are written at several tokens.
        further_index: (m,) int32, the fact that each further key belongs to.
    """

    left: torch.Tensor
    right: torch.Tensor
    case_index: torch.Tensor
    keys: torch.Tensor
    further_index: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int32))

    def product(self) -> torch.Tensor:
        """The dense update (d_out, d_in), float64."""
        return self.left @ self.right

    @classmethod
    def of_whole_round(cls, update: torch.Tensor, keys: torch.Tensor) -> "LayerDelta":
        """An update that cannot be divided among the facts of its round.

        Args:
            update: The dense update (d_out, d_in).
            keys: (n, d_in), the key of each fact at this layer after the round.
        """
        dense, unit = update.double().cpu(), torch.eye(min(update.shape), dtype=torch.float64)
        left, right = (dense, unit) if update.shape[1] <= update.shape[0] else (unit, dense)
        index = torch.full((len(unit),), WHOLE_ROUND, dtype=torch.int32)
        return cls(left.contiguous(), right.contiguous(), index, keys.float().cpu().contiguous())


@dataclass(frozen=True, slots=True)
class Memory:
    """What one round of a method adds to a memory that it keeps beside the weights; `nse.memories` puts it in force.

    Attributes:
        kind: Name of the memory, a key of `nse.memories.MEMORIES`.
        entries: Tensors by name, the first dimension of each running over the m entries.
        case_index: (m,) int32, the fact that each entry belongs to.
        shared: Tensors by name that belong to no entry, such as trained parts; every round holds the same.
        settings: Plain values; those of all rounds in force must agree.
        texts: Plain values of each entry, m of them.
    """

    kind: str
    entries: dict[str, torch.Tensor]
    case_index: torch.Tensor
    shared: dict[str, torch.Tensor] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    texts: tuple[Any, ...] = ()

    def select(self, places: list[int], new_index: Mapping[int, int]) -> "Memory":
        """The entries at `places`, their facts numbered anew."""
        index = _renumbered(self.case_index, places, new_index)
        entries = {name: tensor[places] for name, tensor in self.entries.items()}
        texts = tuple(self.texts[p] for p in places) if self.texts else ()
        return Memory(self.kind, entries, index, self.shared, self.settings, texts)


@dataclass(frozen=True, slots=True)
class Delta:
    """What one round adds to the base model's weights.

    Attributes:
        layers: By parameter name.
        case_ids: Names of the n facts that were written, in the order of `case_index`.
        base_digest: Digest of the base model that it was made for.
        metadata: Further provenance, plain values.
        memory: What is added beside the weights, by methods that do so.
    """

    layers: dict[str, LayerDelta]
    case_ids: tuple[str, ...]
    base_digest: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    memory: Memory | None = None

    def without(self, case_ids: Collection[str]) -> "Delta":
        """The same delta less the columns and keys of `case_ids`.

        Raises:
            DeltaError: If one of them is not in this delta, or its facts cannot be told apart and others remain.
        """
        if not case_ids:
            return self
        if unknown := set(case_ids) - set(self.case_ids):
            raise DeltaError(f"delta holds no fact {min(unknown)!r}: check the identity")
        kept = [i for i, name in enumerate(self.case_ids) if name not in case_ids]
        if kept and not self.separable:
            told = (
                f"{self.metadata.get('method', 'its method')} wrote the {len(self.case_ids)} facts of a round together"
            )
            raise DeltaError(f"{told}: drop them all, or replay the round")
        new_index = {old: new for new, old in enumerate(kept)}
        layers = {}
        for name, layer in self.layers.items():
            columns = [c for c, case in enumerate(layer.case_index.tolist()) if case in new_index]
            further = [f for f, case in enumerate(layer.further_index.tolist()) if case in new_index]
            layers[name] = LayerDelta(
                layer.left[:, columns],
                layer.right[columns],
                _renumbered(layer.case_index, columns, new_index),
                layer.keys[[*kept, *(len(self.case_ids) + f for f in further)]],
                _renumbered(layer.further_index, further, new_index),
            )
        memory = self.memory
        if memory is not None:
            places = [place for place, case in enumerate(memory.case_index.tolist()) if case in new_index]
            memory = memory.select(places, new_index) if places else None
        return Delta(layers, tuple(self.case_ids[i] for i in kept), self.base_digest, self.metadata, memory)

    @property
    def separable(self) -> bool:
        """Whether every column belongs to one fact, so that a single fact can be left out."""
        return all(bool((layer.case_index >= 0).all()) for layer in self.layers.values())

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
            if layer.further_index.numel():
                tensors[f"{name}.further_index"] = layer.further_index.contiguous()
        head = {
            "schema": SCHEMA if any(layer.further_index.numel() for layer in self.layers.values()) else 1,
            "base_digest": self.base_digest,
            "case_ids": self.case_ids,
            "metadata": dict(self.metadata),
        }
        if self.memory is not None:
            tensors |= _memory_tensors(self.memory)
            head["memory"] = {
                "kind": self.memory.kind,
                "settings": dict(self.memory.settings),
                "texts": list(self.memory.texts),
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
        names = sorted(n.removesuffix(".left") for n in tensors if n.endswith(".left") and not n.startswith(_MEMORY))
        tensors = {f"{n}.further_index": torch.zeros(0, dtype=torch.int32) for n in names} | tensors
        try:
            layers = {
                n: LayerDelta(
                    *(tensors[f"{n}.{part}"] for part in ("left", "right", "case_index", "keys", "further_index"))
                )
                for n in names
            }
        except KeyError as error:
            raise DeltaError(f"{path} lacks the tensor {error}: restore it with `dvc pull`") from error
        memory = _memory_of(head["memory"], tensors, path) if "memory" in head else None
        delta = cls(layers, tuple(head["case_ids"]), head["base_digest"], head["metadata"], memory)
        delta._check(path)
        return delta

    def _check(self, path: Path) -> None:
        for name, layer in self.layers.items():
            r, n, index, further = layer.case_index.numel(), len(self.case_ids), layer.case_index, layer.further_index
            fits = layer.left.ndim == layer.right.ndim == layer.keys.ndim == 2 and index.ndim == further.ndim == 1
            fits = fits and layer.left.shape[1] == r == layer.right.shape[0]
            fits = fits and tuple(layer.keys.shape) == (n + further.numel(), layer.right.shape[1])
            fits = fits and all(WHOLE_ROUND <= case < n for case in index.tolist())
            if not (fits and all(0 <= case < n for case in further.tolist())):
                raise DeltaError(f"{path}: the tensors of {name} do not fit each other: restore it with `dvc pull`")
        if self.memory is not None:
            index, entries = self.memory.case_index, self.memory.entries.values()
            fits = index.ndim == 1 and all(e.ndim and len(e) == len(index) for e in entries)
            fits = fits and len(self.memory.texts) in (0, len(index))
            if not fits or (len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self.case_ids)):
                raise DeltaError(f"{path}: the tensors of its memory do not fit each other: restore it with `dvc pull`")


def _renumbered(index: torch.Tensor, places: list[int], new_index: Mapping[int, int]) -> torch.Tensor:
    """The facts at `places` of an index, numbered anew, int32."""
    return torch.tensor([new_index[int(index[place])] for place in places], dtype=torch.int32)


def _memory_tensors(memory: Memory) -> dict[str, torch.Tensor]:
    entries = {f"{_MEMORY}entries.{name}": tensor.contiguous() for name, tensor in sorted(memory.entries.items())}
    shared = {f"{_MEMORY}shared.{name}": tensor.contiguous() for name, tensor in sorted(memory.shared.items())}
    return {**entries, **shared, f"{_MEMORY}case_index": memory.case_index.contiguous()}


def _memory_of(head: Any, tensors: Mapping[str, torch.Tensor], path: Path) -> Memory:
    """The memory of a delta file.

    Raises:
        DeltaError: If it is not what `Delta.to_bytes` writes.
    """
    parts = {
        part: {
            name.removeprefix(f"{_MEMORY}{part}."): tensor
            for name, tensor in tensors.items()
            if name.startswith(f"{_MEMORY}{part}.")
        }
        for part in ("entries", "shared")
    }
    try:
        return Memory(
            str(head["kind"]),
            parts["entries"],
            tensors[f"{_MEMORY}case_index"],
            parts["shared"],
            dict(head["settings"]),
            tuple(head["texts"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DeltaError(f"{path} has a broken memory ({error}): restore it with `dvc pull`") from error


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
