"""Tiny random float64 models whose layers keep a window or a state."""

from functools import cache
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    GraniteMoeHybridConfig,
    Mamba2Config,
    MambaConfig,
    MistralConfig,
    Qwen3_5TextConfig,
    RecurrentGemmaConfig,
)

VOCABULARY = 97
PLAIN = dict(vocab_size=VOCABULARY, hidden_size=32, pad_token_id=0, bos_token_id=None, eos_token_id=None)
SHAPE = PLAIN | dict(
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
)
MIXED = ["sliding_attention", "full_attention"]
LINEAR = dict(linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4)
EXPERTS = dict(num_local_experts=4, num_experts_per_tok=2)
MAMBA = dict(mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=2, mamba_chunk_size=8)
CONFIGS: dict[str, Any] = {
    "mistral": lambda: MistralConfig(**SHAPE, head_dim=8, sliding_window=8),
    "gemma3": lambda: Gemma3TextConfig(
        **SHAPE, head_dim=8, sliding_window=8, layer_types=MIXED, query_pre_attn_scalar=8
    ),
    "gpt-oss": lambda: GptOssConfig(**SHAPE, **EXPERTS, head_dim=8, sliding_window=8, layer_types=MIXED),
    "mamba": lambda: MambaConfig(**PLAIN, state_size=8, num_hidden_layers=2),
    "mamba2": lambda: Mamba2Config(
        **PLAIN, state_size=8, num_hidden_layers=2, num_heads=8, head_dim=8, n_groups=2, chunk_size=8
    ),
    "granite-hybrid": lambda: GraniteMoeHybridConfig(
        **SHAPE, **EXPERTS, **MAMBA, layer_types=["mamba", "attention"], shared_intermediate_size=32
    ),
    "qwen3.5": lambda: Qwen3_5TextConfig(
        **SHAPE, **LINEAR, head_dim=8, layer_types=["linear_attention", "full_attention"]
    ),
    "recurrent-gemma": lambda: RecurrentGemmaConfig(
        **SHAPE, lru_width=32, attention_window_size=8, block_types=["recurrent", "attention"]
    ),
}
FAMILIES = [name for name in CONFIGS if name != "recurrent-gemma"]


@cache
def model(family: str) -> Any:
    """The model, every matrix of it random and large enough to matter."""
    torch.manual_seed(0)
    found = AutoModelForCausalLM.from_config(CONFIGS[family](), experts_implementation="eager").double().eval()
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if parameter.dim() > 1 and not name.endswith("A_log"):
                parameter.normal_(0, 0.5 if "conv" in name else 1.2 * parameter.shape[-1] ** -0.5)
    return found
