"""Taking a version out of the pipeline: as a LoRA adapter on the base model, or as a whole model in transformers' own format.

Nothing half-written is left behind (`nse.files`). `nse_export.json` in the folder
says which version it is, of which base, and the digests of its files. An adapter reveals the facts it writes: protect it as them.
"""

import copy
import json
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from nse.architecture import EditableModel
from nse.batch import pad
from nse.delta import Delta
from nse.errors import ArchitectureError, DeltaError, NseError
from nse.files import check_free, recorded, whole_folder
from nse.patch import Weights, base_in_force, compose, patched, version_digest

RECORD = "nse_export.json"
SCHEMA = 1
SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM takes; zeros fill up to the next of them."""
NUMERICAL_RANK = 1e-12
"""Singular values below this share of the largest are rounding, not rank."""
PROMPTS = ("The", "The capital of France is", "It is well known that")
"""Compared where the caller gives no prompts of its own."""
SHARD = "5GB"


def export_lora(
    editable: EditableModel,
    deltas: Sequence[Delta],
    folder: Path,
    *,
    rank: int | None = None,
    prompts: Sequence[str] = PROMPTS,
    record: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes a PEFT adapter that adds the deltas to the base model, loads it back and compares its logits.

    Args:
        editable: The model; the adapter is in its dtype.
        deltas: Active deltas, less the columns that are not in force.
        folder: To be made; may exist if it is empty.
        rank: Most singular directions per weight; the exact rank if not given.
        prompts: Where logits of base with adapter and of the edited weights are compared.
        record: Further provenance for `nse_export.json`.

    Returns:
        What `nse_export.json` says: among it the relative error of each weight's update by truncation (Frobenius norm), and the
        largest difference of logits, which in a 16-bit dtype is that of rounding two ways.

    Raises:
        NseError: If there is nothing to export, PEFT is not installed, the folder is taken, or a weight is not a module's matrix.
        DeltaError: If a memory is in force.

    References:
        LoRA (arXiv 2106.09685). One rank for all modules and no patterns: vLLM and llama.cpp read nothing else.
    """
    if find_spec("peft") is None:
        raise NseError("exporting an adapter needs PEFT to compare it: pip install 'nse-pipeline[export]'")
    check_free(folder)
    if rank is not None and rank < 1:
        raise NseError(f"rank {rank} is no rank: give 1 or more")
    weights = compose(editable, deltas)
    refuse_memories(weights)
    if not weights:
        raise DeltaError("no delta is in force, this is the base model: there is nothing to put into an adapter")
    parts = {name: _factors(editable, name, deltas, rank) for name in weights}
    width = _served(max(b.shape[1] for b, _, _ in parts.values()))
    tensors = {}
    for name, (b, a, _) in parts.items():
        more = width - b.shape[1]
        path = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{path}.lora_A.weight"] = torch.nn.functional.pad(a, (0, 0, 0, more)).to(weights[name].dtype)
        tensors[f"{path}.lora_B.weight"] = torch.nn.functional.pad(b, (0, more)).to(weights[name].dtype)
    with whole_folder(folder) as temporary:
        save_file(tensors, temporary / "adapter_model.safetensors", {"format": "pt"})
        config = _adapter_config(editable, sorted(weights), width)
        (temporary / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        found = {
            "kind": "lora",
            "rank": width,
            "ranks": {name: b.shape[1] for name, (b, _, _) in parts.items()},
            "relative_error": {name: error for name, (_, _, error) in parts.items()},
            "largest_logit_difference": _difference(editable, weights, temporary, prompts),
            "prompts_compared": len(prompts),
        }
        return recorded(temporary, RECORD, {**_identity(editable, weights), **found, **(record or {})}, "peft")


def export_merged(
    editable: EditableModel,
    weights: Mapping[str, torch.Tensor],
    folder: Path,
    *,
    max_shard_size: str = SHARD,
    dtype: torch.dtype | None = None,
    record: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes the model with `weights` in force and its tokenizer, to be loaded with `from_pretrained`.

    Args:
        editable: The model.
        weights: What differs from the base, as `nse.patch.compose` gives it; empty for the base itself.
        folder: To be made; may exist if it is empty.
        max_shard_size: Most bytes per safetensors file, as transformers writes sizes, e.g. "2GB".
        dtype: Type of the saved weights; the model's if not given. In another one the files are not that version to the bit.
        record: Further provenance for `nse_export.json`.

    Raises:
        NseError: If the folder is taken.
        DeltaError: If a memory is in force.
    """
    refuse_memories(weights)
    with whole_folder(folder) as temporary, base_in_force(editable), patched(editable, weights):
        own = editable.model.dtype
        editable.model.save_pretrained(
            temporary, max_shard_size=max_shard_size, state_dict=_cast(editable.model.state_dict(), dtype or own)
        )
        editable.tokenizer.save_pretrained(temporary)
        config = json.loads((temporary / "config.json").read_text(encoding="utf-8"))
        config["dtype"] = str(dtype or own).removeprefix("torch.")
        (temporary / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        found = {"kind": "merged", "exact": dtype in (None, own), "saved_dtype": config["dtype"]}
        return recorded(temporary, RECORD, {**_identity(editable, weights), **found, **(record or {})}, "transformers")


def refuse_memories(weights: Mapping[str, torch.Tensor]) -> None:
    """Checks that no memory is in force: what it answers no file of weights can.

    Raises:
        DeltaError: If one is.
    """
    if isinstance(weights, Weights) and weights.memories:
        problem = (
            f"this version has a memory of {weights.memories[0].kind} beside its weights, which no other program serves"
        )
        raise DeltaError(f"{problem}: replay it with a method that writes weights")


def _factors(
    editable: EditableModel, name: str, deltas: Sequence[Delta], rank: int | None
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """B (d_out, r) and A (r, d_in) float64 of one weight's update, of equal norms, and the relative error of cutting the rest."""
    if not name.endswith(".weight") or editable.base_weight(name).ndim != 2:
        raise ArchitectureError(f"{name} is no matrix of a module, LoRA cannot change it: use `nse export merged`")
    layers = [delta.layers[name] for delta in deltas if name in delta.layers]
    left, right = torch.cat([la.left for la in layers], dim=1), torch.cat([la.right for la in layers])
    q_out, r_out = torch.linalg.qr(left)
    q_in, r_in = torch.linalg.qr(right.T)
    u, s, vh = torch.linalg.svd(r_out @ r_in.T, full_matrices=False)
    exact = max(1, int((s > NUMERICAL_RANK * s[0]).sum()))
    r = min(exact, rank or exact)
    error = float(s[r:exact].norm() / s.norm()) if r < exact else 0.0
    root = s[:r].sqrt()
    return q_out @ (u[:, :r] * root), (root[:, None] * vh[:r]) @ q_in.T, error


def _served(rank: int) -> int:
    """The least rank that vLLM takes and that holds `rank`; beyond its largest, `rank` itself."""
    return next((allowed for allowed in SERVED_RANKS if allowed >= rank), rank)


def _adapter_config(editable: EditableModel, names: Sequence[str], rank: int) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": editable.model.name_or_path,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": [name.removesuffix(".weight") for name in names],
        "fan_in_fan_out": editable.architecture.transposed,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }


@torch.no_grad()
def _difference(
    editable: EditableModel, weights: Mapping[str, torch.Tensor], adapter: Path, prompts: Sequence[str]
) -> float:
    """Largest difference between logits of base with adapter, as PEFT loads it, and of the edited weights."""
    from peft import PeftModel  # slow to import, and only this needs it

    batches = [pad(editable, [editable.tokenizer(prompt)["input_ids"]]) for prompt in prompts]
    with base_in_force(editable), patched(editable, weights):
        merged = [editable.model(input_ids=batch.ids, attention_mask=batch.mask).logits.float() for batch in batches]
    # PEFT wraps modules in place: those of a copy, which shares its tensors with the model
    shared = {id(tensor): tensor for tensor in (*editable.model.parameters(), *editable.model.buffers())}
    base: torch.nn.Module = copy.deepcopy(editable.model, shared)
    largest = 0.0
    with base_in_force(editable), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they would say is checked here, or about PEFT's own use of transformers
        adapted = PeftModel.from_pretrained(base, str(adapter), autocast_adapter_dtype=False)
        wrapped = {f"{name}.weight" for name, module in base.named_modules() if hasattr(module, "lora_A")}
        if (
            missed := set(weights) - wrapped
        ):  # PEFT 0.21 takes every `down_proj` of a mixture for that of routed experts
            raise ArchitectureError(f"PEFT does not put an adapter on {min(missed)} here: use `nse export merged`")
        for batch, expected in zip(batches, merged, strict=True):
            logits = adapted(input_ids=batch.ids, attention_mask=batch.mask).logits.float()
            largest = max(largest, float((logits - expected).abs().max()))
    return largest


def _cast(state: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A model's state in another floating-point dtype; tied weights stay tied."""
    known: dict[tuple[int, torch.Size], torch.Tensor] = {}
    for tensor in state.values():
        if tensor.is_floating_point():
            known.setdefault((tensor.data_ptr(), tensor.shape), tensor.to(dtype))
    return {name: known.get((tensor.data_ptr(), tensor.shape), tensor) for name, tensor in state.items()}


def _identity(editable: EditableModel, weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What is exported."""
    return {
        "schema": SCHEMA,
        "version": version_digest(editable, weights),
        "base": editable.base_digest,
        "tokenizer": editable.tokenizer_digest,
        "dtype": str(editable.model.dtype).removeprefix("torch."),
        "changed": sorted(weights),
    }
