"""Random decoupled `regear_mla` models whose every parameter matters."""

import torch

from regear.models.mla import RegearMlaConfig, RegearMlaForCausalLM
from tests.tiny import randomise

HEADS = 6
SHAPE = dict(
    vocab_size=61,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=HEADS,
    num_key_value_heads=HEADS,
    head_dim=8,
    rope_mode="decoupled",
    rope_dim=4,
    nope_dim=6,
    value_dim=5,
    eos_token_id=60,
    pad_token_id=60,
    bos_token_id=None,
)

MIXTURE = dict(expert_layers=[0, 2], num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8)


def canonical_config(bias=False, **changes) -> RegearMlaConfig:
    """A small decoupled config: latents of 10, 4 rotated floats on every second frequency of 4."""
    layers = changes.get("num_hidden_layers", SHAPE["num_hidden_layers"])
    defaults = dict(
        q_bias=bias, kv_bias=bias, o_bias=bias, latent_ranks=[[10] * 3] * layers, rope_pairs=[[0, 2]] * layers
    )
    return RegearMlaConfig(**{**SHAPE, **defaults, **changes})


def canonical_model(seed=0, **changes) -> RegearMlaForCausalLM:
    """A random model of that config; the latent norm keeps its neutral weight, as a conversion leaves it."""
    torch.manual_seed(seed)
    return randomise(RegearMlaForCausalLM(canonical_config(**changes)).eval(), scale=1.2, keep="kv_a_layernorm")
