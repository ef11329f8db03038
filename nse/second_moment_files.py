"""Second-moment files: ours, and those that the ROME and MEMIT projects publish. How C0 is estimated is `nse.statistics`'s."""

import json
import os
import re
import zipfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nse.errors import StatisticsError
from nse.spectrum import effective_rank

SCHEMA = 1
METADATA_KEY = "nse.second_moment"
PUBLISHED_NAME = re.compile(r"(?P<module>.+)_b?float\d+_[a-z0-9_-]*mom2.*")
"""Names like `transformer.h.13.mlp.c_proj_float32_mom2_100000.npz`: module, precision, statistics, number of texts."""


FEW_DIRECTIONS = 5.0
"""Effective rank below which a second moment is of few tokens that stand out, and not of the text."""
FRESH = 2.0
"""Weight of fresh text (`nse.spectrum.fresh_weight`) above which more tokens make better edits."""


@dataclass(frozen=True, slots=True)
class SecondMoments:
    """C0 (d_mlp, d_mlp) float32 by module name, and what they were made from."""

    moments: dict[str, torch.Tensor]
    metadata: dict[str, Any]

    def of(self, module: str) -> torch.Tensor:
        """C0 of one module.

        Raises:
            StatisticsError: If it is not among them.
        """
        if module not in self.moments:
            have = ", ".join(sorted(self.moments)) or "none"
            raise StatisticsError(f"no second moment for {module} (have: {have}): run `nse stats` with that layer")
        return self.moments[module]

    def warnings(self) -> list[str]:
        """What is wrong with them short of an error: too few tokens, or a few directions that are all that they hold."""
        tokens, width = self.metadata.get("tokens"), max((m.shape[0] for m in self.moments.values()), default=0)
        if isinstance(tokens, int) and tokens < width:
            return [
                f"C0 is singular ({tokens} tokens for {width} neurons) and no solve will work: give more text or tokens"
            ]
        found = []
        for name, weight in sorted(self.metadata.get("fresh_weight", {}).items()):
            if weight is None or weight > FRESH:
                much = "beyond all bounds" if weight is None else f"{weight:.1f} times as heavy"
                found.append(f"C0 of {name} rests on too little text: other text is {much}: give more tokens")
        for name, moment in sorted(self.moments.items()):
            if len(moment) > FEW_DIRECTIONS**2 and (rank := effective_rank(moment)) < FEW_DIRECTIONS:
                found.append(
                    f"C0 of {name} holds {rank:.1f} directions of {len(moment)}, as attention sinks make it, and lambda "
                    "protects nothing else: make it again with `nse stats`, or choose other layers"
                )
        return found

    def save(self, path: Path) -> None:
        """Writes one float32 tensor per module, with the metadata as canonical JSON; a reader never sees half a file."""
        head = json.dumps({"schema": SCHEMA, **self.metadata}, sort_keys=True, separators=(",", ":"))
        write_tensors(path, {n: m.contiguous() for n, m in sorted(self.moments.items())}, {METADATA_KEY: head})


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(tensors, temporary, metadata)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_second_moments(path: Path, *, module: str | None = None, only: Collection[str] | None = None) -> SecondMoments:
    """Reads our safetensors file, one `.npz` in the ROME/MEMIT layout, or a folder of such files as those projects name them.

    Args:
        path: The file or folder.
        module: Name of the module that a single `.npz` file belongs to, where its name does not say.
        only: Modules that are wanted: others are not loaded. All if not given.

    Raises:
        StatisticsError: If the file is missing, malformed or of a newer schema, or a folder has two files for one module.
    """
    if path.is_dir():
        return _read_folder(path, only)
    if not path.is_file():
        raise StatisticsError(
            f"second moments {path} do not exist: make them with `nse stats` (in a workspace: `dvc repro`)"
        )
    if path.suffix == ".npz":
        moment, count = _read_npz(path)
        return SecondMoments({module or _module_of(path) or path.stem: moment}, {"tokens": count, "source": "npz"})
    try:
        with safe_open(path, framework="pt") as file:
            head = json.loads((file.metadata() or {}).get(METADATA_KEY, "null"))
            names = [name for name in file.keys() if only is None or name in only]  # noqa: SIM118 - not a mapping
            moments = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise StatisticsError(
            f"{path} cannot be read as safetensors ({error}): make it again with `nse stats`"
        ) from error
    except json.JSONDecodeError as error:
        raise StatisticsError(f"{path} has a broken header ({error.msg}): make it again with `nse stats`") from error
    if not isinstance(head, dict) or not isinstance(head.get("schema"), int) or head["schema"] > SCHEMA:
        raise StatisticsError(
            f"{path} is not a second-moment file of schema {SCHEMA} or below: make it with `nse stats`"
        )
    return SecondMoments(moments, {k: v for k, v in head.items() if k != "schema"})


def _read_folder(folder: Path, only: Collection[str] | None) -> SecondMoments:
    found: dict[str, Path] = {}
    for module, path in _published(folder):
        if module in found:
            raise StatisticsError(f"{folder} has {found[module].name} and {path.name} for {module}: leave one there")
        found[module] = path
    if not found:
        raise StatisticsError(
            f"{folder} holds no file named like layer_float32_mom2_100000.npz: give one file, or rename them"
        )
    read = {module: _read_npz(path) for module, path in found.items() if only is None or module in only}
    counts = {module: count for module, (_, count) in read.items()}
    metadata = {"tokens": min(counts.values(), default=0), "tokens_by_module": counts, "source": "npz"}
    return SecondMoments({module: moment for module, (moment, _) in read.items()}, metadata)


def _published(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*.npz")):
        if module := _module_of(path):
            yield module, path


def _module_of(path: Path) -> str | None:
    """The module that a published file's name tells."""
    match = PUBLISHED_NAME.fullmatch(path.stem)
    return match["module"] if match else None


def _read_npz(path: Path) -> tuple[torch.Tensor, int]:
    """C0 float32 and its number of tokens from the sum and the count that the file holds."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if "mom2.mom2" not in arrays or "mom2.count" not in arrays:
                raise StatisticsError(f"{path} lacks mom2.mom2 or mom2.count: it is not in the ROME/MEMIT layout")
            count = int(arrays["mom2.count"])
            total = torch.from_numpy(arrays["mom2.mom2"])
    except (OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise StatisticsError(f"{path} cannot be read as .npz ({error}): download or make it again") from error
    if count < 1:
        raise StatisticsError(f"{path} says that it rests on {count} tokens: download or make it again")
    return (total.double() / count).float(), count
