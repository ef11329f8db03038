"""Small models as GGUF files, written by the `gguf` package as llama.cpp's converter would write them."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nse.architecture import load_model
from tests.nse.conftest import byte_level, corpus_lines, fast

Kinds = Callable[[str], gguf.GGMLQuantizationType]
CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>a:{% endif %}"
)


def in_blocks(name: str) -> gguf.GGMLQuantizationType:
    """Vectors in F32, the edited projections in Q4_1, the embeddings in F16, the rest in Q8_0: four types in one file."""
    if "norm" in name:
        return gguf.GGMLQuantizationType.F32
    if "ffn_down" in name:
        return gguf.GGMLQuantizationType.Q4_1
    return gguf.GGMLQuantizationType.F16 if "token_embd" in name else gguf.GGMLQuantizationType.Q8_0


def in_floats(_name: str) -> gguf.GGMLQuantizationType:
    """Everything as it is."""
    return gguf.GGMLQuantizationType.F32


def tiny_llama(folder: Path, *, lines: Iterable[str] = (), tied: bool = True, seed: int = 20261129) -> Path:
    """A random Llama whose rows fill the blocks of quantised types, with a byte-level tokenizer, in transformers' format."""
    tokenizer = byte_level([*corpus_lines(), *lines])
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=96,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.15,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    fast(tokenizer).save_pretrained(folder)
    return folder


def write_llama(folder: Path, path: Path, *, kinds: Kinds = in_blocks, add_bos: bool = False, **keys: str) -> Path:
    """Writes the Llama model of a transformers folder, with its tokenizer, as a GGUF file.

    Args:
        folder: A model with tied or untied embeddings and a byte-level tokenizer.
        path: The file.
        kinds: Type of each tensor by its name in the file.
        add_bos: What the file says of BOS.
        keys: Further keys; dots are written as two underscores.
    """
    editable = load_model(folder)
    model, tokenizer = editable.model, editable.tokenizer
    assert isinstance(model, LlamaForCausalLM)
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_license("cc0-1.0")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    words = tokenizer.get_vocab()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(words, key=lambda word: words[word]))
    special = set(tokenizer.all_special_tokens)
    writer.add_token_types([3 if word in special else 1 for word in sorted(words, key=lambda word: words[word])])
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    writer.add_token_merges([" ".join(merge) for merge in state["model"]["merges"]])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(config.pad_token_id)
    writer.add_add_bos_token(add_bos)
    writer.add_chat_template(CHAT)
    for key, value in keys.items():
        writer.add_string(key.replace("__", "."), value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.named_parameters():
        target = names.get_name(name, try_suffixes=(".weight",))
        assert target is not None
        numbers = tensor.detach().float().numpy()
        if ".q_proj." in name or ".k_proj." in name:
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            numbers = _permuted(numbers, heads)
        kind = kinds(target)
        writer.add_tensor(target, gguf.quantize(np.ascontiguousarray(numbers), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _permuted(numbers: np.ndarray, heads: int) -> np.ndarray:
    """The order of rows in which llama.cpp keeps queries and keys: the halves of each head's rotation interleaved."""
    return numbers.reshape(heads, 2, numbers.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(numbers.shape)
