"""Where things are in a model: one table row per architecture family, and the loaded model that an editor works on.

No other module compares a model's name with anything. It loads models; it never changes their weights. A family without a
row is described in the words of `nse.description`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from nse.chat import end_of_answer
from nse.delta import Memory
from nse.description import Architecture, check_behaviour, check_paths, guessed, is_mixture
from nse.errors import ArchitectureError, HyperparameterError
from nse.fingerprint import json_digest, tensor_digest, weights_digest

_LLAMA = Architecture(block="model.layers.{}", output_projection="mlp.down_proj", final_norm="model.norm")
_NORMED = replace(_LLAMA, post_norm="post_feedforward_layernorm")
_SHARED = replace(_LLAMA, output_projection=("mlp.shared_experts.down_proj", "mlp.down_proj"))

ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": Architecture(
        block="transformer.h.{}", output_projection="mlp.c_proj", transposed=True, final_norm="transformer.ln_f"
    ),
    "gptj": Architecture(block="transformer.h.{}", output_projection="mlp.fc_out", final_norm="transformer.ln_f"),
    "gpt_neox": Architecture(
        block="gpt_neox.layers.{}", output_projection="mlp.dense_4h_to_h", final_norm="gpt_neox.final_layer_norm"
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "phi3": _LLAMA,
    "gemma2": _NORMED,
    "gemma3_text": _NORMED,
    "olmo2": _NORMED,
    "deepseek_v3": _SHARED,
    "glm4_moe": _SHARED,
}
"""Rows by `model_type` of a transformers configuration.

Mixtures of experts (deepseek_v3, glm4_moe): edited is the output projection of the shared experts, an MLP that every token
passes with weight 1, and in the first, dense layers that of the MLP. Routed experts and the router are never edited, though an
edit can change which experts a token is sent to in the layers above. Families whose every expert is routed (mixtral, qwen3_moe)
or whose shared expert is gated (qwen2_moe) have no weight that each token reads in full, and are refused.
"""


@dataclass(eq=False)
class EditableModel:
    """A causal language model with its tokenizer and its row of the table. Its weights are set in `nse.patch` alone."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    architecture: Architecture
    memories: tuple[Memory, ...] = field(default=(), init=False, repr=False)
    """What is in force beside the weights; set by `nse.patch` alone."""
    _base: dict[str, torch.Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Keeps hold of the base weights: `nse.patch` swaps tensors, it never writes into them.

        Raises:
            ArchitectureError: If the model has not the parts that its architecture names.
        """
        check_paths(self.model, self.architecture)
        self._base = {name: p.data for name, p in self.model.named_parameters()}

    @property
    def device(self) -> torch.device:
        """Device of the embeddings, where token ids go; later layers may lie elsewhere."""
        weight = self.model.get_input_embeddings().weight
        assert isinstance(weight, torch.Tensor)
        return weight.device

    @property
    def vocabulary(self) -> int:
        """Number of tokens that the model can produce."""
        weight = self.model.get_output_embeddings().weight  # type: ignore[no-untyped-call]
        assert isinstance(weight, torch.Tensor)
        return int(weight.shape[0])

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (..., vocabulary) float32 of final hidden states (..., d_model), scaled and capped as the configuration says."""
        logits: torch.Tensor = self.model.get_output_embeddings()(hidden)  # type: ignore[no-untyped-call]
        if (scale := getattr(self.model.config, "logit_scale", None)) is not None:
            logits = logits * scale
        if (cap := getattr(self.model.config, "final_logit_softcapping", None)) is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits.float()

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens left out."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    @property
    def end_tokens(self) -> frozenset[int]:
        """The tokens that end what the model says: EOS by tokenizer or generation settings, and the end of a chat answer."""
        settings = getattr(self.model, "generation_config", None)
        named = getattr(settings, "eos_token_id", None)
        several = named if isinstance(named, list | tuple) else [named]
        found = (self.tokenizer.eos_token_id, end_of_answer(self.tokenizer), *several)
        return frozenset(int(token) for token in found if token is not None and token < self.vocabulary)

    @property
    def positions(self) -> int:
        """Most tokens that one text may have: the model's, or, where positions are unlimited, the tokenizer's."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or self.tokenizer.model_max_length)

    @property
    def layers(self) -> int:
        """Number of layers."""
        return int(self.model.config.num_hidden_layers)

    def block(self, layer: int) -> nn.Module:
        """The module whose output is the hidden state after `layer`."""
        return self.model.get_submodule(self.architecture.block.format(layer))

    def projection(self, layer: int) -> nn.Module:
        """The MLP's output projection of `layer`."""
        return self.model.get_submodule(self.projection_name(layer))

    def projection_name(self, layer: int) -> str:
        """Name of the module that `projection` returns; its weight is the parameter `<name>.weight`."""
        return f"{self.architecture.block.format(layer)}.{self.architecture.projection_in(self.block(layer))}"

    def post_norm(self, layer: int) -> nn.Module | None:
        """The norm between the MLP of `layer` and the residual stream, if the family has one."""
        path = self.architecture.post_norm
        return None if path is None else self.block(layer).get_submodule(path)

    @cached_property
    def wrapped_output(self) -> bool:
        """Whether a block returns its hidden state in a tuple; seen in one token's forward pass."""
        seen: list[bool] = []
        handle = self.block(0).register_forward_hook(lambda _module, _inputs, out: seen.append(isinstance(out, tuple)))
        try:
            with torch.no_grad():
                token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
                self.model.base_model(input_ids=token, attention_mask=torch.ones_like(token), use_cache=False)
        finally:
            handle.remove()
        return seen[0]

    def parameter_name(self, layer: int) -> str:
        """Name of the weight that an edit of `layer` changes."""
        return f"{self.projection_name(layer)}.weight"

    def canonical(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight of a projection as (d_out, d_in), whatever the family stores; its own inverse."""
        return weight.T if self.architecture.transposed else weight

    @property
    def base_tensors(self) -> dict[str, torch.Tensor]:
        """The base model's weights by name, in the model's own orientation."""
        return dict(self._base)

    def base_weight(self, name: str) -> torch.Tensor:
        """The base model's weight called `name` in canonical orientation (d_out, d_in), whatever is in force now."""
        return self.canonical(self._base[name])

    def check_layers(self, layers: tuple[int, ...]) -> None:
        """Checks that `layers` exist.

        Raises:
            HyperparameterError: If one does not.
        """
        for layer in layers:
            if not 0 <= layer < self.layers:
                raise HyperparameterError(
                    f"layers: {layer} is not in this model (0 to {self.layers - 1}): mend the file"
                )

    @cached_property
    def tensor_digests(self) -> dict[str, str]:
        """Digest of every weight of the base model, tied weights once."""
        return {name: tensor_digest(p) for name, p in self._base.items()}

    @cached_property
    def base_digest(self) -> str:
        """Digest of all the base model's weights: the name of version 0."""
        return weights_digest(self.tensor_digests)

    @cached_property
    def tokenizer_digest(self) -> str:
        """Digest of what the tokenizer does: its serialised state and its special tokens."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        state = backend.to_str() if backend is not None else repr(self.tokenizer)
        return json_digest([state, sorted(map(str, self.tokenizer.special_tokens_map.items()))])


def load_model(
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    architecture: Architecture | None = None,
    device_map: str | Mapping[str, int | str] | None = None,
) -> EditableModel:
    """Loads a model and its tokenizer from a local transformers directory (safetensors only) for editing.

    Args:
        path: Directory with config.json, safetensors weights and a fast tokenizer.
        dtype: Type in which the model computes and keeps its weights.
        architecture: Where its parts are, for a family without a row in the table, or in place of the row.
        device_map: How layers are laid on devices, as transformers has it: "auto" for the devices that are there.

    Raises:
        ArchitectureError: If the directory is not a model, its family has no row and is not described, the description is wrong,
            its tokenizer is not fast, or it does not fit on the devices.
    """
    if not (path / "config.json").is_file():
        raise ArchitectureError(
            f"{path} is not a model directory (no config.json): give the folder that save_pretrained wrote"
        )
    row = architecture or ARCHITECTURES.get(_family(path))
    if row is None:
        raise ArchitectureError(f"{path}: {_unknown(path)}")
    if device_map is not None and find_spec("accelerate") is None:
        raise ArchitectureError("device_map needs accelerate: pip install 'nse-pipeline[devices]', or leave it out")
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, use_safetensors=True, device_map=device_map)
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise ArchitectureError(f"{path} cannot be loaded ({str(error).splitlines()[0]}): check its files") from error
    if not tokenizer.is_fast:
        raise ArchitectureError(f"{path} has no fast tokenizer: save one beside the model (tokenizer.json)")
    if absent := next((name for name, p in model.named_parameters() if p.is_meta), None):
        raise ArchitectureError(
            f"{path} does not fit on the devices ({absent} is left out): use more, or a smaller dtype"
        )
    model.train(False).requires_grad_(False)
    try:
        editable = EditableModel(model, tokenizer, row)
        if architecture is not None:
            check_behaviour(model, architecture, editable.head)
    except ArchitectureError as error:
        raise ArchitectureError(f"{path}: {error}") from error
    return editable


def _family(path: Path) -> str:
    """The `model_type` that config.json names, whether transformers knows it or not."""
    try:
        config, _ = PretrainedConfig.get_config_dict(path)
    except (OSError, ValueError) as error:
        raise ArchitectureError(f"{path / 'config.json'} is not JSON: restore it") from error
    return str(config.get("model_type", ""))


def _unknown(path: Path) -> str:
    """What is wrong with a family that has no row, and which lines would describe it."""
    problem = f"model type {_family(path)!r} has no row in the table ({', '.join(sorted(ARCHITECTURES))})"
    try:
        config = AutoConfig.from_pretrained(path)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        text = config.get_text_config()
        row = guessed(model, layers=int(text.num_hidden_layers), width=int(text.hidden_size))
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError):
        return f"{problem}, and transformers makes no causal language model of it: use another model"
    if row is None and is_mixture(model):
        return f"{problem}; its experts are all routed, so no weight is read by every token: use another model"
    lines = row.line() if row else "{block: ..., output_projection: ..., final_norm: ...}"
    return f"{problem}: describe it in params.yaml, {'perhaps ' if row else ''}`model.architecture: {lines}`"
