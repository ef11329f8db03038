"""Trained files: safetensors tensors with, as metadata, the model, the data, the settings and the losses they come from.

A file serves the model that it was trained on, in the type that it was trained in or a narrower one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from nse.architecture import EditableModel
from nse.errors import TrainingError
from nse.fingerprint import tensor_digest, weights_digest
from nse.second_moment_files import write_tensors

SCHEMA = 1
METADATA_KEY = "nse.trained"
NARROWER = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Trained:
    """What a method has learned.

    Attributes:
        method: Name of the method.
        tensors: The trained parts by name.
        settings: Plain values that decide what the tensors mean: the layers and the method's own.
        metadata: Where it comes from: model and dataset digests, steps, seed, losses.
    """

    method: str
    tensors: dict[str, torch.Tensor]
    settings: Mapping[str, Any]
    metadata: Mapping[str, Any]

    def save(self, path: Path) -> None:
        """Writes the file; the same content gives the same bytes."""
        head = {"schema": SCHEMA, "method": self.method, "settings": dict(self.settings), **self.metadata}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(self.tensors.items())}
        write_tensors(path, tensors, {METADATA_KEY: json.dumps(head, sort_keys=True)})


def model_digests(editable: EditableModel) -> list[str]:
    """Digests of the base model in its type and in the narrower ones that it may be loaded in."""
    base = editable.base_tensors
    narrow = [
        weights_digest({name: tensor_digest(tensor.to(dtype)) for name, tensor in base.items()}) for dtype in NARROWER
    ]
    return list(dict.fromkeys((editable.base_digest, *narrow)))


def read_trained(path: Path | None, editable: EditableModel, *, method: str, layers: tuple[int, ...]) -> Trained:
    """Reads the file that a method's edits need, and checks that it was made for this model and these layers.

    Raises:
        TrainingError: If it is missing, malformed, of another method, or made for another model or other layers.
    """
    advice = f"make it with `nse train --method {method}`"
    if path is None:
        raise TrainingError(f"{method} needs a trained file: {advice}, give --trained")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path} cannot be read as safetensors ({error}): {advice}") from error
    try:
        head: dict[str, Any] = json.loads(text or "")
        schema, made_by, settings = int(head["schema"]), str(head["method"]), dict(head["settings"])
        models, made_for = [str(digest) for digest in head["models"]], [int(layer) for layer in settings["layers"]]
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"{path} is no trained file (its {METADATA_KEY} metadata is not whole): {advice}"
        ) from error
    if schema > SCHEMA:
        raise TrainingError(f"{path} has schema {schema}, this program knows {SCHEMA}: upgrade the program")
    if made_by != method:
        raise TrainingError(f"{path} was trained for {made_by}: {advice}")
    if editable.base_digest not in models:
        raise TrainingError(
            f"{path} was trained on model {models[0][:12]}, this is {editable.base_digest[:12]}: {advice}"
        )
    if made_for != list(layers):
        raise TrainingError(
            f"{path} was trained for layers {made_for}, not {list(layers)}: {advice}, or set those layers"
        )
    rest = {name: value for name, value in head.items() if name not in ("schema", "method", "settings")}
    return Trained(method, tensors, settings, rest)
