"""`nse import`: makes a model that other people made into a transformers folder that this program edits.

From a GGUF file, whose weights transformers' own loader unpacks once; a transformers folder, sharded or not; or a folder of the
Hugging Face cache. `nse_import.json` in the new folder names both sides by digest. Nothing half-written is left behind, and
nothing is fetched: a model is a file or a folder here. It is loaded again from the new folder and must be the same to the bit,
say the same and read texts alike. No pickled weights are read.
"""

import gc
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from nse.architecture import ARCHITECTURES
from nse.errors import GgufError, ImportFailed
from nse.files import check_free, recorded, whole_folder
from nse.fingerprint import file_digest, tensor_digest, weights_digest
from nse.gguf_file import GgufFile, read_gguf
from nse.gguf_names import tensor_names

RECORD = "nse_import.json"
SCHEMA = 1
PROMPTS = ("The", "The capital of France is", "In 1995, the language of 3 books was", "Zürich, it is well known that")
CONTINUED = 12
"""Tokens by which each prompt is continued before and after."""
SHARD = "5GB"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
INDEX = "model.safetensors.index.json"
LOADING = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError, SafetensorError)
"""What transformers raises for files that it cannot make a model of."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What a model does, as far as it is compared.

    Attributes:
        weights: Digest of each weight by name, tied weights once.
        tokenizer: Its serialised state, its special tokens and its chat template.
        texts: Token ids by which the prompts are continued greedily, prompts included.
    """

    weights: dict[str, str]
    tokenizer: tuple[str, ...]
    texts: tuple[tuple[int, ...], ...]


def import_model(
    source: Path, folder: Path, *, dtype: torch.dtype = torch.float32, prompts: Sequence[str] = PROMPTS
) -> dict[str, Any]:
    """Writes a model and its tokenizer into a new transformers folder.

    Args:
        source: A `.gguf` file, a transformers folder, or a folder of the Hugging Face cache (`models--*` or a snapshot).
        folder: To be made; may exist if it is empty.
        dtype: Type of the saved weights; from GGUF they are unpacked and rounded once.
        prompts: Continued greedily before and after.

    Returns:
        What `nse_import.json` says.

    Raises:
        ImportFailed: If the model cannot be imported, or is another one when it is loaded again.
        GgufError: If a GGUF file is damaged, split, or of a kind that transformers does not read.
        NseError: If the folder is taken.
    """
    check_free(folder)
    place = located(source)
    if place.is_file():
        head = read_gguf(place)
        origin: dict[str, Any] = {"kind": "gguf", "name": place.name, "sha256": file_digest(place), **_facts(head)}
    else:
        _check_folder(place)
        origin = {"kind": "folder", "name": place.name, "files": _files_of(place)}
    with whole_folder(folder) as temporary:
        before, told = _written(place, temporary, dtype, prompts)
        gc.collect()  # one copy of the weights at a time
        model, tokenizer = _load_folder(temporary, dtype)
        _check_same(before, behaviour(model, tokenizer, prompts), source)
        record = {
            "schema": SCHEMA,
            "source": origin,
            "base": weights_digest(before.weights),
            "dtype": str(dtype).removeprefix("torch."),
            **told,
            "prompts_compared": len(before.texts),
        }
        return recorded(temporary, RECORD, record, *(["gguf"] if place.is_file() else []))


def located(source: Path) -> Path:
    """The GGUF file or the folder of a model; of a repository in the Hugging Face cache the snapshot that is `main`.

    Raises:
        ImportFailed: If there is nothing, or several snapshots and none of them is `main`.
    """
    if not source.exists():
        raise ImportFailed(f"{source} is not there: give a .gguf file or a folder")
    if source.is_file():
        if source.suffix in (".bin", ".pt", ".pth"):
            raise ImportFailed(f"{source} is pickled: {_conversion(source.parent)}")
        if source.suffix == ".safetensors":
            raise ImportFailed(f"{source} holds weights alone: give its folder, with config.json and the tokenizer")
        return source
    snapshots = source / "snapshots"
    if not snapshots.is_dir():
        return source
    found = sorted(path.name for path in snapshots.iterdir() if path.is_dir())
    main = source / "refs" / "main"
    named = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
    if named in found:
        return snapshots / named
    if len(found) == 1 and not named:
        return snapshots / found[0]
    missing = f"refs/main names snapshot {named}, which is not there" if named else "refs/main names no snapshot"
    raise ImportFailed(f"{source}: {missing}: give one of snapshots/ ({', '.join(found) or 'it is empty'})")


def load_gguf(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer from a GGUF file, unpacked and rounded to `dtype`; not to be saved as it is read.

    Raises:
        GgufError: If transformers does not read it, or reads another model out of it than it holds.
    """
    head = read_gguf(path)
    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            **where, dtype=dtype, quantization_config=GgufConfig(dequantize=True), output_loading_info=True
        )
        # AutoTokenizer would read the whole file once more, only to choose this class
        tokenizer = PreTrainedTokenizerFast.from_pretrained(**where)
    except LOADING as error:
        problem = f"{path} ({head.architecture or 'of no architecture'}) cannot be read by transformers"
        raise GgufError(f"{problem} ({_line(error)}): use a file of another family, or a safetensors folder") from error
    _check_complete(path, loading)
    _check_all_read(head, model)
    model.train(False).requires_grad_(False)
    return model, tokenizer


def behaviour(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> Behaviour:
    """Digests of a model's weights, its tokenizer's state and how it continues prompts, plain and as a chat if it can."""
    asked = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    if tokenizer.chat_template is not None:
        asked += [tokenizer(chat, add_special_tokens=False)["input_ids"] for chat in _chats(tokenizer, prompts)]
    return Behaviour(
        {name: tensor_digest(p) for name, p in model.named_parameters()},
        (
            tokenizer.backend_tokenizer.to_str(),
            json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str),
            json.dumps(tokenizer.chat_template, sort_keys=True),
        ),
        tuple(tuple(_continued(model, ids)) for ids in asked if ids),
    )


def _written(place: Path, folder: Path, dtype: torch.dtype, prompts: Sequence[str]) -> tuple[Behaviour, dict[str, Any]]:
    """Saves the model; returns what it does and what there is to say about it. The model itself is let go."""
    model, tokenizer = load_gguf(place, dtype) if place.is_file() else _load_folder(place, dtype)
    found = behaviour(model, tokenizer, prompts)
    with torch.device(
        "meta"
    ):  # transformers saves nothing that came from a GGUF file: a model of the same shape is saved
        shell = type(model)(model.config)
    shell.generation_config = model.generation_config
    shell.save_pretrained(folder, max_shard_size=SHARD, state_dict=model.state_dict())
    tokenizer.save_pretrained(folder)
    family = str(model.config.model_type)
    told = {
        "model_type": family,
        "known": family in ARCHITECTURES,
        "layers": int(model.config.num_hidden_layers),
        "parameters": sum(p.numel() for p in model.parameters()),
        "chat_template": tokenizer.chat_template is not None,
        "special_tokens": {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())},
    }
    return found, told


def _load_folder(place: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            place, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except LOADING as error:
        raise ImportFailed(f"{place} cannot be loaded ({_line(error)}): check its files") from error
    _check_complete(place, loading)
    if not tokenizer.is_fast:
        raise ImportFailed(f"{place} has no fast tokenizer: save one beside the model (tokenizer.json)")
    model.train(False).requires_grad_(False)
    return model, tokenizer


def _check_folder(place: Path) -> None:
    """Says what is wrong with a folder before gigabytes of it are read."""
    names = {path.name for path in place.iterdir()}
    if dangling := sorted(path.name for path in place.iterdir() if path.is_symlink() and not path.exists()):
        raise ImportFailed(f"{place}: {dangling[0]} is a link to a file that is not there: download the model again")
    if "adapter_config.json" in names and "config.json" not in names:
        raise ImportFailed(f"{place} is an adapter: merge it into its base model first (PEFT's merge_and_unload)")
    if "config.json" not in names:
        files = sorted(name for name in names if name.endswith(".gguf"))
        advice = f"give the file, e.g. {place / files[0]}" if files else "give the folder that save_pretrained wrote"
        raise ImportFailed(f"{place} is no model folder (no config.json): {advice}")
    if INDEX in names:
        shards = set(json.loads((place / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        if missing := sorted(shards - names):
            raise ImportFailed(f"{place}: {INDEX} names {missing[0]}, which is not there: download the model again")
    elif not any(name.endswith(".safetensors") for name in names):
        pickled = next((name for name in PICKLED if name in names), None)
        if pickled is None:
            raise ImportFailed(f"{place} has no weights (*.safetensors): give the folder that save_pretrained wrote")
        raise ImportFailed(f"{place} has only {pickled}, which is pickled: {_conversion(place)}")
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    except LOADING as error:
        raise ImportFailed(f"{place / 'config.json'} names no model that transformers has ({_line(error)})") from error
    if getattr(config, "quantization_config", None) is not None:
        raise ImportFailed(f"{place} has quantised weights: import the model that they were made from, or a GGUF file")
    if other := next((part for part in ("vision_config", "audio_config") if hasattr(config, part)), None):
        raise ImportFailed(
            f"{place} reads more than text ({other}): only language models are edited, use its text model"
        )


def _conversion(place: Path) -> str:
    code = f"from transformers import AutoModelForCausalLM as M; M.from_pretrained({str(place)!r}, weights_only=True)"
    return (
        f'a pickle can run any program, so none is read here; convert it once: python -c "{code}.save_pretrained(NEW)"'
    )


def _files_of(place: Path) -> dict[str, str]:
    """Digests of the files that make a model and its tokenizer."""
    kinds = (".safetensors", ".json", ".jinja", ".model", ".txt")
    return {path.name: file_digest(path) for path in sorted(place.iterdir()) if path.is_file() and path.suffix in kinds}


def _facts(head: GgufFile) -> dict[str, Any]:
    """What a GGUF file says of itself."""
    names = {"architecture": "general.architecture", "title": "general.name", "licence": "general.license"}
    found = {ours: str(head.metadata[theirs]) for ours, theirs in names.items() if theirs in head.metadata}
    kinds = [tensor.kind.name for tensor in head.tensors.values()]
    return {**found, "types": {kind: kinds.count(kind) for kind in sorted(set(kinds))}}


def _check_complete(place: Path, loading: dict[str, Any]) -> None:
    """transformers makes up weights that a file lacks."""
    for problem in ("missing_keys", "mismatched_keys"):
        if names := sorted(map(str, loading[problem])):
            told = "lacks" if problem == "missing_keys" else "has in another shape"
            raise ImportFailed(f"{place} {told} {len(names)} weights of its model ({names[0]}): it is not whole")


def _check_all_read(head: GgufFile, model: PreTrainedModel) -> None:
    """A tensor or a rule of positions that transformers leaves out would make another model of the file without a word."""
    known = set(tensor_names(head, dict(model.named_parameters(remove_duplicate=False))).values())
    if left := sorted(set(head.tensors) - known):
        raise GgufError(
            f"{head.path}: transformers leaves {left[0]} out, so it would compute something else: use another file"
        )
    scaling = str(head.metadata.get(f"{head.architecture}.rope.scaling.type", "none"))
    rope = getattr(model.config, "rope_parameters", None) or {}
    if scaling != "none" and rope.get("rope_type", "default") == "default":
        raise GgufError(
            f"{head.path} scales positions ({scaling}), which transformers leaves out: use a safetensors folder"
        )


def _check_same(before: Behaviour, after: Behaviour, source: Path) -> None:
    for part in ("weights", "tokenizer", "texts"):
        if getattr(before, part) != getattr(after, part):
            raise ImportFailed(f"{source}: its {part} are others when the new folder is loaded: nothing was written")


def _chats(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[str]:
    try:
        return [
            str(
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": p}], tokenize=False, add_generation_prompt=True
                )
            )
            for p in prompts
        ]
    except TemplateError as error:
        raise ImportFailed(f"its chat template cannot be used ({_line(error)}): mend it in the original") from error


@torch.no_grad()
def _continued(model: PreTrainedModel, ids: Sequence[int]) -> list[int]:
    """Token ids and what follows them greedily; no end of text stops it, so that there is something to compare."""
    found, given, past = list(ids), list(ids), None
    for _ in range(CONTINUED):
        output = model(input_ids=torch.tensor([given]), past_key_values=past, use_cache=True)
        given, past = [int(output.logits[0, -1].argmax())], output.past_key_values
        found += given
    return found


def _line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
