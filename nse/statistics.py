"""Second moments: C0 = E[k k^T] of the base model's keys over a text, per rewritten layer, and the files that hold them."""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from nse.architecture import EditableModel
from nse.batch import Progress, pad, silent
from nse.errors import RequestError, StatisticsError
from nse.fingerprint import file_digest
from nse.request import read_text
from nse.trace import capture_inputs

SCHEMA = 1
METADATA_KEY = "nse.second_moment"
TEXTS_PER_BATCH = 8
TOKENS_PER_NEURON = 10
"""Default budget: 10 x d_mlp tokens reach 95-100% of the quality of 44 million (arXiv 2506.04226)."""


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

    def save(self, path: Path) -> None:
        """Writes one float32 tensor per module, with the metadata as canonical JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        head = json.dumps({"schema": SCHEMA, **self.metadata}, sort_keys=True, separators=(",", ":"))
        path.write_bytes(save({n: m.contiguous() for n, m in sorted(self.moments.items())}, {METADATA_KEY: head}))


def read_second_moments(path: Path, *, module: str | None = None) -> SecondMoments:
    """Reads our safetensors file, or one `.npz` in the ROME/MEMIT layout (arrays `mom2.mom2`, `mom2.count`).

    Args:
        path: The file.
        module: Name of the module that an `.npz` file belongs to (it does not say so itself).

    Raises:
        StatisticsError: If the file is missing, malformed or of a newer schema.
    """
    if not path.is_file():
        raise StatisticsError(
            f"second moments {path} do not exist: make them with `nse stats` (in a workspace: `dvc repro`)"
        )
    if path.suffix == ".npz":
        return _read_npz(path, module or path.stem)
    try:
        with safe_open(path, framework="pt") as file:
            head = json.loads((file.metadata() or {}).get(METADATA_KEY, "null"))
            moments = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
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


def _read_npz(path: Path, module: str) -> SecondMoments:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if "mom2.mom2" not in arrays or "mom2.count" not in arrays:
                raise StatisticsError(f"{path} lacks mom2.mom2 or mom2.count: it is not in the ROME/MEMIT layout")
            count = int(arrays["mom2.count"])
            total = torch.from_numpy(arrays["mom2.mom2"]).double()
    except (OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise StatisticsError(f"{path} cannot be read as .npz ({error}): download or make it again") from error
    return SecondMoments({module: (total / count).float()}, {"tokens": count, "source": "npz"})


@torch.no_grad()
def collect_second_moments(
    editable: EditableModel,
    corpus: Path,
    *,
    layers: Sequence[int],
    tokens: int | None = None,
    progress: Progress = silent,
) -> SecondMoments:
    """Estimates C0 of the base model over a text file, one text a line, in float64.

    Args:
        editable: The model with its base weights.
        corpus: UTF-8 text.
        layers: Rewrite layers.
        tokens: Budget in tokens; 10 x d_mlp if not given. The text is read once, from its start.
        progress: Called with tokens done.

    Raises:
        StatisticsError: If the corpus is missing, not UTF-8 or empty.
    """
    editable.check_layers(tuple(layers))
    try:
        texts = [line for line in read_text(corpus).splitlines() if line.strip()]
    except RequestError as error:
        raise StatisticsError(str(error)) from error
    modules = {editable.projection_name(layer): editable.projection(layer) for layer in layers}
    width = editable.base_weight(editable.parameter_name(layers[0])).shape[1]
    budget = tokens or TOKENS_PER_NEURON * width
    sums = {name: torch.zeros(width, width, dtype=torch.float64) for name in modules}
    count = 0
    positions = editable.positions
    for start in range(0, len(texts), TEXTS_PER_BATCH):
        sequences = [editable.tokenizer(t)["input_ids"][:positions] for t in texts[start : start + TEXTS_PER_BATCH]]
        batch = pad(editable, sequences)
        with capture_inputs(modules) as inputs:
            editable.model.base_model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
        real = batch.mask.bool()
        for name, seen in inputs.items():
            keys = seen[real].double().cpu()  # (tokens, d_mlp)
            sums[name] += keys.T @ keys
        count += int(real.sum())
        progress("second moments", min(count, budget), budget)
        if count >= budget:
            break
    if count == 0:
        raise StatisticsError(f"{corpus} holds no text: give a UTF-8 file with one text a line")
    metadata = {
        "tokens": count,
        "budget": budget,
        "corpus_sha256": file_digest(corpus),
        "model_digest": editable.base_digest,
        "tokenizer_digest": editable.tokenizer_digest,
    }
    return SecondMoments({name: (total / count).float() for name, total in sums.items()}, metadata)
