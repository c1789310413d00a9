"""What cannot be converted, by name: families as a whole, and keys that no supported family may carry."""

from typing import Any

from regear.core.errors import IncompatibleModel

SLIDING = "sliding-window attention"
ALREADY = "latent attention already: there is nothing to convert"

FAMILIES_REFUSED = {
    "gemma": "RMS norms that multiply by one plus their gain, and scaled embeddings",
    "gemma2": f"{SLIDING} in every other layer, and soft-capped logits (attn_logit_softcapping)",
    "gemma3": f"{SLIDING} in most layers, and an image tower around the text model",
    "gemma3_text": f"{SLIDING} in most layers, with a RoPE of its own for each kind of layer",
    "gpt_oss": f"attention sinks, and {SLIDING} in every other layer",
    "olmo3": f"{SLIDING} in most layers",
    "ministral": SLIDING,
    "cohere2": f"{SLIDING} in most layers, and layers without RoPE",
    "llama4": "chunked attention, and layers without RoPE",
    "llama4_text": "chunked attention, and layers without RoPE",
    "smollm3": "layers without RoPE",
    "phi3": "queries, keys and values in one fused tensor",
    "qwen2_moe": "a shared expert beside the routed ones",
    "qwen3_next": "linear attention in most layers, and gated attention in the rest",
    "mixtral": "another router and other names for the experts than Qwen3-MoE's",
    "granite": "multipliers on embeddings, residuals, attention and logits",
    "olmo": "a LayerNorm without gain, and clipped projections (clip_qkv)",
    "deepseek_v2": ALREADY,
    "deepseek_v3": ALREADY,
    "youtu": ALREADY,
}

# Keys that change what the model computes wherever they are set; the conversions would drop them unseen.
KEYS_REFUSED = {
    "attn_logit_softcapping": "soft-capped attention logits",
    "final_logit_softcapping": "soft-capped output logits",
    "query_pre_attn_scalar": "attention scaled by something else than the head's width",
    "attention_multiplier": "attention scaled by something else than the head's width",
    "logit_scale": "scaled output logits",
    "embedding_multiplier": "scaled embeddings",
    "residual_multiplier": "scaled residuals",
    "clip_qkv": "clipped projections",
    "attention_chunk_size": "chunked attention",
    "no_rope_layers": "layers without RoPE",
    "use_attention_sinks": "attention sinks",
    "attn_output_gate": "gated attention",
}


def refuse_family(name: str) -> None:
    """Say what a known family has that no conversion holds.

    Raises:
        IncompatibleModel: always, for a family of `FAMILIES_REFUSED`.
    """
    if name in FAMILIES_REFUSED:
        raise IncompatibleModel(f"model_type {name!r} is not supported: it has {FAMILIES_REFUSED[name]}")


def refuse_keys(config: dict[str, Any]) -> None:
    """Check that a config of a supported family asks for nothing beyond that family.

    Raises:
        IncompatibleModel: a key of `KEYS_REFUSED` is set, or a layer attends in another way than to all before it.
    """
    for key, meaning in KEYS_REFUSED.items():
        if config.get(key):
            raise IncompatibleModel(
                f"{config.get('model_type')} model with {key}={config[key]!r}: {meaning} is not supported; "
                f"wanted a model with {key} unset"
            )
    odd = [kind for kind in config.get("layer_types") or () if kind != "full_attention"]
    if odd:
        what = f"{SLIDING} ({odd[0]})" if odd[0] == "sliding_attention" else odd[0]
        raise IncompatibleModel(f"layer_types holds {what}, which is not supported; wanted full_attention throughout")
