"""Digests: names that say everything that affects the bytes they name. SHA-256 throughout."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def text_digest(text: str) -> str:
    """SHA-256 of a text in UTF-8, as hex."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def json_digest(value: Any) -> str:
    """SHA-256 of a value's JSON with sorted keys and no spaces."""
    return text_digest(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False))


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, streamed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensor_digest(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor's dtype, shape and bytes (row-major)."""
    data = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{data.dtype}{tuple(data.shape)}".encode())
    digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_digest(tensor_digests: Mapping[str, str]) -> str:
    """Digest of a whole model from the digests of its named tensors: the name of a version."""
    return text_digest("".join(f"{name} {tensor_digests[name]}\n" for name in sorted(tensor_digests)))
