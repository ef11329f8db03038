"""`nse export gguf`: the GGUF file of a base model with the edited tensors replaced, asked in the form that is served.

All other tensors stay byte by byte, and so does every key; keys that begin with `nse.` say which version it is. The file reveals
the facts that were written: protect it as them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nse.architecture import EditableModel
from nse.batch import pad
from nse.errors import DeltaError, GgufError
from nse.evaluation.answers import answer, same_answer
from nse.evaluation.generate import generate
from nse.export import refuse_memories
from nse.files import check_free, whole_file
from nse.fingerprint import file_digest
from nse.gguf_file import GgufFile, packed, read_gguf, write_with
from nse.gguf_names import tensor_names
from nse.importing import load_gguf
from nse.patch import base_in_force, patched, version_digest

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

SCHEMA = 1
EDITED_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
"""Types that the `gguf` package packs; it unpacks more."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt and what a version is to answer; `expected` is empty where nothing is expected."""

    prompt: str
    expected: str = ""


def export_gguf(
    editable: EditableModel,
    weights: Mapping[str, torch.Tensor],
    file: Path,
    *,
    original: Path,
    asked: Sequence[Asked],
    edited_type: str | None = None,
    record: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes the file, loads it back with transformers and compares its answers with those of the weights.

    Args:
        editable: The model.
        weights: What differs from the base, as `nse.patch.compose` gives it.
        file: The GGUF file to make; a record of the comparison is written beside it, as `<file>.json`.
        original: The GGUF file that the base was imported from.
        asked: The corrections in force, with the objects that they say.
        edited_type: Type of the edited tensors, one of `EDITED_TYPES`; each one's own if not given.
        record: Further provenance.

    Returns:
        The record: what was written, and what packing costs. `update_lost` is, by tensor, the distance between the packed
        weights and the version's, relative to the length of the update: at 1 the rounding is as large as the edit itself.

    Raises:
        NseError: If the file is there already.
        DeltaError: If no delta is in force, or a memory is.
        GgufError: If `original` is not the file of this base, or a tensor cannot be packed.
    """
    check_free(file)
    beside = file.with_name(f"{file.name}.json")
    check_free(beside)
    refuse_memories(weights)
    if not weights:
        raise DeltaError("no delta is in force, this is the base model: the original file is it already")
    head = read_gguf(original)
    names = tensor_names(head, weights)
    tensors, lost = {}, {}
    for parameter, weight in weights.items():
        if parameter not in names:
            raise GgufError(f"{original} has no tensor for {parameter}: give the file that the base was imported from")
        name = names[parameter]
        _check_base(editable, parameter, head, name)
        kind = _kind(edited_type) if edited_type else head.tensors[name].kind
        matrix = editable.canonical(weight).float()
        blocks = packed(name, matrix.contiguous().numpy(), kind)
        tensors[name] = (kind, blocks)
        lost[name] = _lost(matrix, editable.base_weight(parameter).float(), blocks, kind)
    found = {
        "schema": SCHEMA,
        "kind": "gguf",
        "version": version_digest(editable, weights),
        "base": editable.base_digest,
        "original": {"name": original.name, "sha256": file_digest(original)},
        "edited": {name: kind.name for name, (kind, _) in tensors.items()},
        "update_lost": lost,
        **(record or {}),
    }
    with whole_file(file) as temporary:
        write_with(head, temporary, tensors=tensors, metadata=_keys(found))
        found |= {"sha256": file_digest(temporary), "bytes": temporary.stat().st_size}
        found |= _compared(editable, weights, temporary, asked)
        found["versions"] = {name: version(name) for name in ("torch", "transformers", "gguf")}
        with whole_file(beside) as text:
            text.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return found


def _kind(name: str) -> "GGMLQuantizationType":
    from gguf import GGMLQuantizationType

    if name not in EDITED_TYPES:
        raise GgufError(f"edited type {name!r} is none that the gguf package packs: give {', '.join(EDITED_TYPES)}")
    return GGMLQuantizationType[name]


def _check_base(editable: EditableModel, parameter: str, head: GgufFile, name: str) -> None:
    """Checks that a tensor of the file is the base weight to the bit, rounded to the type in which the model is held."""
    base = editable.base_weight(parameter)
    theirs = torch.from_numpy(head.numbers(name))
    if theirs.shape != base.shape or not torch.equal(theirs.to(base.dtype), base.cpu()):
        problem = f"{head.path}: {name} is not the base model's {parameter}"
        raise GgufError(f"{problem}: give the file that the base was imported from (nse_import.json names it)")


def _lost(matrix: torch.Tensor, base: torch.Tensor, blocks: Any, kind: "GGMLQuantizationType") -> float:
    """Distance of the packed numbers from a weight (d_out, d_in), relative to its distance from the base."""
    from gguf import dequantize

    numbers = torch.from_numpy(dequantize(blocks, kind)).reshape(matrix.shape)
    return float((numbers - matrix).double().norm() / (matrix - base.cpu()).double().norm().clamp(min=1e-300))


def _keys(found: Mapping[str, Any]) -> dict[str, str | Sequence[str]]:
    """What the file says of itself, under keys of its own."""
    return {
        "nse.schema": str(found["schema"]),
        "nse.version": found["version"],
        "nse.base": found["base"],
        "nse.original.sha256": found["original"]["sha256"],
        "nse.edited_tensors": [f"{name} {kind}" for name, kind in found["edited"].items()],
    }


def _compared(
    editable: EditableModel, weights: Mapping[str, torch.Tensor], file: Path, asked: Sequence[Asked]
) -> dict[str, Any]:
    """Answers and logits of a version, and of the file that is to serve it as transformers loads it back.

    Raises:
        GgufError: If a weight that was not edited is not the base's.
    """
    prompts, expected = [a.prompt for a in asked], [a.expected for a in asked]
    model, tokenizer = load_gguf(file, editable.model.dtype)
    served = EditableModel(model, tokenizer, editable.architecture)
    theirs = {name: digest for name, digest in served.tensor_digests.items() if name not in weights}
    ours = {name: digest for name, digest in editable.tensor_digests.items() if name not in weights}
    if other := sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name)):
        raise GgufError(
            f"the original's {other[0]} is not the base model's: give the file that the base was imported from"
        )
    with base_in_force(editable), patched(editable, weights):
        said = generate(editable, prompts, expected=expected)
        logits = [_logits(editable, prompt) for prompt in prompts]
    served_said = generate(served, prompts, expected=expected)
    differences = [
        float((_logits(served, prompt) - before).abs().max()) for prompt, before in zip(prompts, logits, strict=True)
    ]
    pairs = list(zip(said, served_said, expected, strict=True))
    judged = [pair for pair in pairs if pair[2]]
    return {
        "asked": len(pairs),
        "same_answers": _share(answer(one, goal) == answer(other, goal) for one, other, goal in pairs),
        "right": {
            "version": _share(same_answer(one, goal) for one, _, goal in judged),
            "file": _share(same_answer(other, goal) for _, other, goal in judged),
        },
        "largest_logit_difference": max(differences, default=0.0),
        "same_tokenizer": served.tokenizer_digest == editable.tokenizer_digest,
    }


@torch.no_grad()
def _logits(editable: EditableModel, prompt: str) -> torch.Tensor:
    """Logits (vocabulary,) float32 of the token after a prompt."""
    batch = pad(editable, [editable.tokenizer(prompt)["input_ids"]])
    logits: torch.Tensor = editable.model(input_ids=batch.ids, attention_mask=batch.mask).logits[0, -1]
    return logits.float().cpu()


def _share(answers: Any) -> float | None:
    """Share of what is true; nothing of nothing."""
    found = [bool(one) for one in answers]
    return sum(found) / len(found) if found else None
