"""One small random model per row of the table, shaped so that what a family has of its own is at work in it."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    Glm4MoeConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from tests.nse.conftest import BOS, VOCABULARY, byte_level, corpus_lines, fast, with_special_tokens

WINDOW = 8  # tokens: shorter than the prompts, so that sliding layers forget their beginning
LAYERS = 4

_COMMON = {"vocab_size": VOCABULARY, "initializer_range": 0.15, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
_GPT = _COMMON | {"n_positions": 96, "n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_inner": 48}
_ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2}
_BODY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS, "max_position_embeddings": 96}
_LLAMA = _COMMON | _BODY | _ATTENTION
_GEMMA = _LLAMA | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW}
_TYPES = ["full_attention", "sliding_attention"] * (LAYERS // 2)
_MIXTURE = _LLAMA | {
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 2,
}

CONFIGURATIONS: dict[str, Callable[[], PretrainedConfig]] = {
    "gpt2": lambda: GPT2Config(**_GPT),
    "gptj": lambda: GPTJConfig(**_GPT, rotary_dim=4),
    "gpt_neox": lambda: GPTNeoXConfig(**_COMMON, **_BODY, num_attention_heads=4),
    "llama": lambda: LlamaConfig(**_LLAMA),
    "mistral": lambda: MistralConfig(**_LLAMA, sliding_window=WINDOW),
    "qwen2": lambda: Qwen2Config(**_LLAMA),
    "qwen3": lambda: Qwen3Config(**_LLAMA, head_dim=8),
    "phi3": lambda: Phi3Config(**_LLAMA, sliding_window=WINDOW),
    "gemma2": lambda: Gemma2Config(**_GEMMA, layer_types=_TYPES, final_logit_softcapping=5.0),
    "gemma3_text": lambda: Gemma3TextConfig(**_GEMMA, layer_types=_TYPES),
    "olmo2": lambda: Olmo2Config(**_LLAMA),
    "deepseek_v3": lambda: DeepseekV3Config(
        **_MIXTURE | {"num_key_value_heads": 4},
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=4,
        qk_nope_head_dim=8,
        v_head_dim=8,
    ),
    "glm4_moe": lambda: Glm4MoeConfig(**_MIXTURE, head_dim=8),
}


@torch.no_grad()
def write(configuration: PretrainedConfig, folder: Path, *, padding_side: str = "right", bos: bool = True) -> Path:
    """Writes a random model of a configuration, its norms and biases random too, with a byte-level tokenizer."""
    torch.manual_seed(20241004)
    model = AutoModelForCausalLM.from_config(configuration)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer = byte_level(corpus_lines())
    wrapped = fast(with_special_tokens(tokenizer, f"{BOS} $A") if bos else tokenizer)
    wrapped.padding_side = wrapped.init_kwargs["padding_side"] = padding_side
    wrapped.save_pretrained(folder)
    return folder
