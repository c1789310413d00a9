"""A random dense DeepSeek-V3 checkpoint of the width vLLM's CPU kernel takes: 512 latent and 64 RoPE floats."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DeepseekV3Config

from tests.tiny import byte_tokenizer, randomise


def dense_deepseek(place: Path, seed: int = 0, layers: int = 3, **changes) -> Path:
    """Write a model without experts whose logits are far enough apart for greedy tokens to be compared."""
    settings = dict(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=None,
        kv_lora_rank=512,
        qk_rope_head_dim=64,
        qk_nope_head_dim=64,
        v_head_dim=64,
        first_k_dense_replace=layers,
        n_routed_experts=1,
        n_shared_experts=1,
        num_experts_per_tok=1,
        n_group=1,
        topk_group=1,
        moe_intermediate_size=32,
        num_nextn_predict_layers=0,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=256,
        pad_token_id=256,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(DeepseekV3Config(**(settings | changes))).float()
    randomise(model).save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    return place
