"""Cholesky factors of second moments, and the keys of earlier facts in the coordinates that they whiten: kept, not made again.

C0 = R^T R depends on the base model and the layer alone (lambda is a scalar beside it), so R is made once. In the coordinates
v = R^-T k the system of a round is the identity and a product of few columns, and its inverse takes a matrix with as many rows
as there are facts: see `nse.solve`. The rows V of earlier facts and their products V V^T, to which each active delta adds
some, are kept as well. All in float64.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nse.errors import StatisticsError
from nse.fingerprint import tensor_digest, text_digest, weights_digest

SCHEMA = 1
METADATA_KEY = "nse.factor"
SMALLEST_WIDTH = 4096
"""Below it the dense solve takes about a second, and a kept factor saves nothing that anyone would notice."""

logger = logging.getLogger(__name__)


def empty_symmetric(width: int, device: torch.device) -> torch.Tensor:
    """Room for a matrix (width, width) in column order: LAPACK then works in place, without a second copy of it."""
    return torch.empty(width, width, dtype=torch.float64, device=device).mT


def cholesky(matrix: torch.Tensor) -> torch.Tensor:
    """Replaces a matrix made by `empty_symmetric` by its lower factor; reads its lower triangle only.

    Raises:
        StatisticsError: If it is not positive definite, or not finite.
    """
    failed = torch.empty((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(matrix, out=(matrix, failed))
    if int(failed) or not bool(matrix.diagonal().isfinite().all()):
        raise StatisticsError("second moment is singular or not finite: run `nse stats` with more tokens")
    return matrix


def solved(lower: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(L L^T)^-1 B for B (d, n): two triangular solves take a fraction of the time of `torch.cholesky_solve`."""
    half = torch.linalg.solve_triangular(lower, right, upper=False)
    whole: torch.Tensor = torch.linalg.solve_triangular(lower.mT, half, upper=True)
    return whole


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """R (d, d) upper triangular, float64, with C0 = R^T R, and the digest of that C0."""

    upper: torch.Tensor
    digest: str

    def whiten(self, rows: torch.Tensor) -> torch.Tensor:
        """R^-T k of each key: (n, d) float64, keys as rows."""
        # the result of torch has its columns in one piece, so its transpose has its rows so
        columns: torch.Tensor = torch.linalg.solve_triangular(self.upper.mT, rows.T, upper=False)
        return columns.T.contiguous()

    def unwhiten(self, rows: torch.Tensor) -> torch.Tensor:
        """R^-1 v of each row of (n, d) float64."""
        columns: torch.Tensor = torch.linalg.solve_triangular(self.upper, rows.T, upper=True)
        return columns.T.contiguous()


@dataclass(frozen=True, slots=True, eq=False)
class Whitened:
    """Earlier keys in whitened coordinates; good until the store is asked again.

    Attributes:
        factor: The factor that whitened them.
        rows: V (m, d) float64, one row per fact.
        products: Per delta its rows of V V^T, up to and with its own columns: (n_t, m_t) float64, the lower triangle.
    """

    factor: Factor
    rows: torch.Tensor
    products: tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True, eq=False)
class PastKeys:
    """K_p of the active deltas at one layer. Nothing is computed before it is asked for.

    Attributes:
        blocks: Per active delta, in ledger order, its keys (n_t, d_mlp) as `LayerDelta.keys` has them.
        kept: (m,) bool over the facts of all blocks: which of them to protect.
        second_moment: C0 (d_mlp, d_mlp) of the layer.
        store: What computes and keeps.
    """

    blocks: tuple[torch.Tensor, ...]
    kept: torch.Tensor
    second_moment: torch.Tensor
    store: "FactorStore"

    def keys(self) -> torch.Tensor:
        """K_p (d_mlp, facts kept) float64."""
        empty = torch.zeros(0, self.second_moment.shape[0], dtype=torch.float64, device=self.kept.device)
        return torch.cat([empty, *(block.double() for block in self.blocks)])[self.kept].T

    def pays(self, more: int, new: int) -> bool:
        """Whether whitened coordinates are the cheaper way with `more` further keys to protect and `new` to write.

        It depends on sizes alone, never on what happens to be cached: the same round gives the same bytes.
        """
        width, facts = self.second_moment.shape[0], self.kept.numel() + more + new
        dense = 2 * width**2 * facts + width**3 / 3 + 2 * width**2 * new
        small = 2 * width**2 * (more + new) + 4 * width * facts * (more + new) + facts**3 / 3
        # with more facts than neurons the small matrix would be the larger one
        return width >= self.store.smallest_width and facts <= width and small < dense

    def whitened(self) -> Whitened:
        """The facts of all blocks, those that are not kept too.

        Raises:
            StatisticsError: If C0 is singular or not finite.
        """
        return self.store.whitened(self.second_moment, self.blocks)


class FactorStore:
    """Factors and whitened keys of a model's rewritten layers: in memory for a stream of rounds, in a folder for later ones.

    Files are named by the digest of all that they depend on and hold a digest of their content: a damaged one is made again.
    Deleting the folder costs only time.
    """

    def __init__(self, folder: Path | None = None, *, smallest_width: int = SMALLEST_WIDTH) -> None:
        """Computes nothing yet; without a folder everything stays in memory, 8 d^2 bytes a layer."""
        self.smallest_width, self._folder = smallest_width, folder
        self._layers: list[_Layer] = []
        self._made: dict[str, dict[str, torch.Tensor]] = {}

    def remembered(self, name: str, make: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Float64 tensors that depend on what `name` says and on nothing else: those of before, those of the folder, or new ones.

        Args:
            name: What they are and the digests of all that they are made of.
            make: Makes them.
        """
        if name not in self._made:
            file = text_digest(f"{name} {SCHEMA}")
            found = _read(self._folder, file)
            self._made[name] = _kept(self._folder, file, make()) if found is None else found
        return self._made[name]

    def past(
        self, second_moment: torch.Tensor, blocks: Sequence[torch.Tensor], kept: torch.Tensor | None = None
    ) -> PastKeys:
        """K_p of the active deltas for `solve_update`.

        Args:
            second_moment: C0 (d_mlp, d_mlp) of the layer; another object of the same numbers is hashed to find them.
            blocks: Keys (n_t, d_mlp) per active delta, in ledger order.
            kept: (m,) bool over the facts of all blocks; all of them if not given.
        """
        count = sum(block.shape[0] for block in blocks)
        everything = torch.ones(count, dtype=torch.bool)
        return PastKeys(tuple(blocks), everything if kept is None else kept, second_moment, self)

    def whitened(self, second_moment: torch.Tensor, blocks: Sequence[torch.Tensor]) -> Whitened:
        """See `PastKeys.whitened`."""
        layer = next((known for known in self._layers if known.second_moment is second_moment), None)
        if layer is None:
            digest = tensor_digest(second_moment)
            layer = next((known for known in self._layers if known.digest == digest), None)
        if layer is None:
            layer = _Layer(second_moment, digest, self._folder)
            self._layers.append(layer)
        layer.second_moment = second_moment
        return layer.whitened(blocks)


class _Layer:
    """What is kept of one layer: its factor, and the whitened keys of one sequence of deltas."""

    def __init__(self, second_moment: torch.Tensor, digest: str, folder: Path | None) -> None:
        self.second_moment, self.digest, self._folder = second_moment, digest, folder
        self._factor: Factor | None = None
        self._blocks: list[torch.Tensor] = []
        self._names: list[str] = []  # of each block, and of all before it
        self._products: list[torch.Tensor] = []
        self._rows = torch.zeros(0, second_moment.shape[0], dtype=torch.float64, device=second_moment.device)

    def whitened(self, blocks: Sequence[torch.Tensor]) -> Whitened:
        factor = self._factor = self._factor or self._factorised()
        same = 0
        while same < min(len(blocks), len(self._blocks)) and _equal(blocks[same], self._blocks[same]):
            same += 1
        del self._blocks[same:], self._names[same:], self._products[same:]
        for block in blocks[same:]:
            self._append(factor, block)
        return Whitened(factor, self._rows[: _height(self._products)], tuple(self._products))

    def _factorised(self) -> Factor:
        """The factor, from the folder if it is there, else made and put there."""
        width = self.second_moment.shape[0]
        name = text_digest(f"factor {SCHEMA} {self.digest}")
        found = _read(self._folder, name, {"upper": (width, width)})
        if found is None:
            room = empty_symmetric(width, self.second_moment.device)
            upper = cholesky(room.copy_(self.second_moment)).mT
            del room
            # what a later process will read is used at once: a memory map, which costs no memory that cannot be given back
            found = _kept(self._folder, name, {"upper": upper})
        return Factor(found["upper"].to(self.second_moment.device), self.digest)

    def _append(self, factor: Factor, block: torch.Tensor) -> None:
        start = _height(self._products)
        end = start + block.shape[0]
        before = self._names[-1] if self._names else f"whitened {SCHEMA} {factor.digest}"
        name = text_digest(f"{before} {tensor_digest(block)}")
        if end > len(self._rows):
            room = torch.empty(max(end, 2 * start), self._rows.shape[1], dtype=torch.float64, device=self._rows.device)
            room[:start] = self._rows[:start]
            self._rows = room
        shapes = {"rows": tuple(block.shape), "products": (block.shape[0], end)}
        found = _read(self._folder, name, shapes)
        if found is None:
            rows = factor.whiten(block.to(self._rows.device, torch.float64))
            self._rows[start:end] = rows
            found = {"rows": rows, "products": rows @ self._rows[:end].T}
            _kept(self._folder, name, found)
        self._rows[start:end] = found["rows"]
        self._blocks.append(block)
        self._names.append(name)
        self._products.append(found["products"].to(self._rows.device))


def _height(products: Sequence[torch.Tensor]) -> int:
    return products[-1].shape[1] if products else 0


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one is other or torch.equal(one, other)


def _read(
    folder: Path | None, name: str, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, torch.Tensor] | None:
    """The tensors of a file, as memory maps, or nothing if it is not there or not whole, or of other shapes than are given."""
    if folder is None or not (path := folder / f"{name}.safetensors").is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            digest = (file.metadata() or {}).get(METADATA_KEY)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        logger.warning("%s cannot be read (%s): it is made again", path, error)
        return None
    whole = shapes is None or {key: tuple(t.shape) for key, t in tensors.items()} == dict(shapes)
    whole = whole and all(t.dtype == torch.float64 for t in tensors.values())
    if not whole or digest != weights_digest({key: tensor_digest(t) for key, t in tensors.items()}):
        logger.warning("%s is damaged: it is made again", path)
        return None
    return tensors


def _kept(folder: Path | None, name: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Writes a file of which no reader sees half, and gives the tensors as a later process will read them.

    A cache that cannot be written is no reason to stop: the tensors are then used from memory.
    """
    if folder is None:
        return tensors
    temporary = folder / f".{name}.{os.getpid()}"
    digest = weights_digest({key: tensor_digest(t) for key, t in tensors.items()})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({key: t.cpu() for key, t in tensors.items()}, temporary, {METADATA_KEY: digest})
        temporary.replace(folder / f"{name}.safetensors")
        with safe_open(folder / f"{name}.safetensors", framework="pt") as file:
            return {key: file.get_tensor(key) for key in tensors}
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink()
        logger.warning("%s cannot keep a factor (%s): it will be made again", folder, error)
        return tensors
