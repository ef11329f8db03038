"""The contract `nse train`: a model, a dataset and hyper-parameters in, a trained file out."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from nse.architecture import EditableModel, load_model
from nse.batch import Progress, silent
from nse.description import read_architecture
from nse.editors import get_editor, read_settings
from nse.editors.base import own_settings
from nse.errors import HyperparameterError, RequestError
from nse.fingerprint import file_digest
from nse.hyperparameters import Hyperparameters
from nse.request import EditRequest, read_requests
from nse.training.files import Trained, model_digests
from nse.training.mend import train_mend
from nse.training.serac import train_serac

TRAINERS: dict[str, Callable[..., tuple[dict[str, torch.Tensor], list[float]]]] = {
    "mend": train_mend,
    "serac": train_serac,
}
SHOWN = 20
"""Losses that a file keeps: means over that many equal parts of the training."""


@dataclass(frozen=True, slots=True)
class TrainFiles:
    """The inputs of `nse train`."""

    model: Path
    dataset: Path
    hparams: Path
    method: str
    architecture: Path | None = None


def train(
    files: TrainFiles,
    *,
    output: Path,
    steps: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Trains what a method's edits need and writes it; returns its metadata.

    Raises:
        NseError: If an input is malformed, the method trains nothing, or training diverged.
    """
    hyperparameters = read_settings(files.hparams, files.method).settings
    requests = read_requests(files.dataset)
    described = read_architecture(files.architecture) if files.architecture else None
    editable = load_model(files.model, dtype=dtype, architecture=described)
    made = train_on(
        editable,
        requests,
        method=files.method,
        hyperparameters=hyperparameters,
        steps=steps,
        seed=seed,
        provenance={"dataset": file_digest(files.dataset)},
        progress=progress,
    )
    made.save(output)
    return {"method": made.method, "settings": dict(made.settings), **made.metadata}


def train_on(
    editable: EditableModel,
    requests: Sequence[EditRequest],
    *,
    method: str,
    hyperparameters: Hyperparameters,
    steps: int | None = None,
    seed: int = 0,
    provenance: dict[str, Any] | None = None,
    progress: Progress = silent,
) -> Trained:
    """Trains a method on edits of a model, which is left as it was.

    Args:
        editable: The base model.
        requests: Edits, with rewordings and with prompts that shall stay.
        method: Name of a method that trains first.
        hyperparameters: Settings, the method's own among them.
        steps: Training steps; those of the settings if not given.
        seed: Of everything random.
        provenance: What else the metadata shall say.
        progress: Called as `progress(stage, done, total)`.

    Raises:
        NseError: If the method trains nothing, the settings do not fit the model, or training diverged.
    """
    kind = get_editor(method).settings
    if method not in TRAINERS:
        raise HyperparameterError(f"method {method!r} trains nothing before it edits: use {' or '.join(TRAINERS)}")
    if not requests:
        raise RequestError("the dataset holds no request: there is nothing to learn from")
    layers = hyperparameters.layers
    editable.check_layers(layers)
    settings = own_settings(kind, hyperparameters.own, method=method)
    count = settings.steps if steps is None else steps
    if count < 1:
        raise HyperparameterError(f"{count} is no number of training steps: give 1 or more")
    checked = [request.checked() for request in requests]
    tensors, losses = TRAINERS[method](
        editable, checked, layers=layers, settings=settings, steps=count, seed=seed, progress=progress
    )
    parts = [losses[i * count // SHOWN : (i + 1) * count // SHOWN] for i in range(SHOWN)]
    metadata = {
        "models": model_digests(editable),
        "requests": len(requests),
        "steps": count,
        "seed": seed,
        "losses": [sum(part) / len(part) for part in parts if part],
        **(provenance or {}),
    }
    return Trained(method, tensors, {"layers": list(layers), **asdict(settings)}, metadata)
