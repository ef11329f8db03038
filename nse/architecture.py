"""Where things are in a model: one table row per architecture family, and the loaded model that an editor works on.

No other module compares a model's name with anything. It loads models; it never changes their weights.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from nse.errors import ArchitectureError, HyperparameterError
from nse.fingerprint import json_digest, tensor_digest, weights_digest


@dataclass(frozen=True, slots=True)
class Architecture:
    """Names of the parts of one family, as transformers names them.

    Attributes:
        block: Path of a layer with `{}` for its number; its output is the hidden state.
        output_projection: Path, inside a block, of the MLP's output projection: its input is the key.
        transposed: Whether that weight is stored (d_in, d_out), as transformers' Conv1D does.
        final_norm: Path of the norm before the language-model head.
    """

    block: str
    output_projection: str
    transposed: bool
    final_norm: str


ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": Architecture("transformer.h.{}", "mlp.c_proj", transposed=True, final_norm="transformer.ln_f"),
    "llama": Architecture("model.layers.{}", "mlp.down_proj", transposed=False, final_norm="model.norm"),
}
"""Rows by `model_type` of a transformers configuration."""


@dataclass(eq=False)
class EditableModel:
    """A causal language model with its tokenizer and its row of the table. Its weights are set in `nse.patch` alone."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    architecture: Architecture
    _base: dict[str, torch.Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Keeps hold of the base weights: `nse.patch` swaps tensors, it never writes into them."""
        self._base = {name: p.data for name, p in self.model.named_parameters()}

    @property
    def device(self) -> torch.device:
        """Device of the embeddings, where token ids go."""
        return self._embeddings().device

    @property
    def vocabulary(self) -> int:
        """Number of tokens that the model can produce."""
        return int(self._embeddings().shape[0])

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (..., vocabulary) float32 of final hidden states (..., d_model)."""
        logits: torch.Tensor = self.model.get_output_embeddings()(hidden)  # type: ignore[no-untyped-call]
        return logits.float()

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens left out."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _embeddings(self) -> torch.Tensor:
        weight = self.model.get_input_embeddings().weight
        assert isinstance(weight, torch.Tensor)
        return weight

    @property
    def positions(self) -> int:
        """Most tokens that one text may have."""
        return int(self.model.config.max_position_embeddings)

    @property
    def layers(self) -> int:
        """Number of layers."""
        return int(self.model.config.num_hidden_layers)

    def block(self, layer: int) -> nn.Module:
        """The module whose output is the hidden state after `layer`."""
        return self.model.get_submodule(self.architecture.block.format(layer))

    def projection(self, layer: int) -> nn.Module:
        """The MLP's output projection of `layer`."""
        return self.model.get_submodule(
            f"{self.architecture.block.format(layer)}.{self.architecture.output_projection}"
        )

    def projection_name(self, layer: int) -> str:
        """Name of the module that `projection` returns; its weight is the parameter `<name>.weight`."""
        return f"{self.architecture.block.format(layer)}.{self.architecture.output_projection}"

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


def load_model(path: Path, *, dtype: torch.dtype = torch.float32) -> EditableModel:
    """Loads a model and its tokenizer from a local transformers directory (safetensors only) for editing.

    Args:
        path: Directory with config.json, safetensors weights and a fast tokenizer.
        dtype: Type in which the model computes and keeps its weights.

    Raises:
        ArchitectureError: If the directory is not a model, its family has no row in the table, or its tokenizer is not fast.
    """
    if not (path / "config.json").is_file():
        raise ArchitectureError(
            f"{path} is not a model directory (no config.json): give the folder that save_pretrained wrote"
        )
    family = _family(path)
    if family not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ArchitectureError(
            f"{path}: model type {family!r} is unknown (known: {known}): add a row to nse/architecture.py"
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise ArchitectureError(f"{path} cannot be loaded ({str(error).splitlines()[0]}): check its files") from error
    if not tokenizer.is_fast:
        raise ArchitectureError(f"{path} has no fast tokenizer: save one beside the model (tokenizer.json)")
    model.train(False).requires_grad_(False)
    return EditableModel(model, tokenizer, ARCHITECTURES[family])


def _family(path: Path) -> str:
    """The `model_type` that config.json names, whether transformers knows it or not."""
    try:
        config, _ = PretrainedConfig.get_config_dict(path)
    except (OSError, ValueError) as error:
        raise ArchitectureError(f"{path / 'config.json'} is not JSON: restore it") from error
    return str(config.get("model_type", ""))
