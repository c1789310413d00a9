"""`deepseek_v3` and `youtu`: MLA as stock transformers and servers hold it, from and to the canonical checkpoint.

They know no latent norm that does nothing, no eps but 1e-6 there, one score scale (that of N + P), and interleaved
RoPE rows. All of that is folded into the weights; `unfold` takes it out again.
"""

from functools import partial
from typing import Any

import torch

from regear.core.errors import CheckpointError, IncompatibleModel
from regear.models.formats import fold
from regear.models.formats.canonical import NEUTRAL_EPS, Geometry, layer_of, padded, require, source_head_dim
from regear.models.formats.view import Checkpoint, Entry, View
from regear.models.strict import part_obstacles

STRICT = ("deepseek_v3", "youtu")
KEPT = ("max_position_embeddings", "initializer_range", "hidden_act", "attention_dropout")
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
# What a strict config cannot say of the canonical one.
INVERSE = (
    "softmax_scale",
    "rms_norm_eps",
    "tie_word_embeddings",
    "rope_parameters",
    "rope_pairs",
    "pad_token_id",
)
# A dense model in a format of mixtures: no layer is one, and the counts must still be numbers.
DENSE = {
    "moe_layer_freq": 1,
    "n_routed_experts": 1,
    "n_shared_experts": 1,
    "num_experts_per_tok": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_nextn_predict_layers": 0,
}
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
RESIDUAL = (EMBED, "self_attn.o_proj.weight", "mlp.down_proj.weight")


def obstacles(config: dict[str, Any]) -> list[str]:
    """What of a decoupled checkpoint the strict formats have no place for, in plain words."""
    found = part_obstacles(config)
    if config.get("qk_norm"):
        found.append("a norm on queries")
    if rope_base(config) is None:
        found.append("rotated frequencies other than 0, n, 2n, … in every layer")
    return found


def refuse(config: dict[str, Any], name: str) -> None:
    """Refuse what the format cannot hold.

    Raises:
        IncompatibleModel: with every obstacle by name.
    """
    if found := obstacles(config):
        raise IncompatibleModel(f"{name} has no place for {', '.join(found)}; use convert.format=regear_mla")


def rope_base(config: dict[str, Any]) -> float | None:
    """The `rope_theta` under which a head of `rope_dim` has this checkpoint's frequencies; None if there is none.

    Frequencies 0, n, 2n, … of a head of width d are those of a head of width P under theta^(n P / d).
    """
    rows, theta = config["rope_pairs"], float(config["rope_parameters"]["rope_theta"])
    first = list(rows[0])
    step = first[1] if len(first) > 1 else source_head_dim(config) // config["rope_dim"]
    if step < 1 or any(list(row) != [step * i for i in range(len(first))] for row in rows):
        return None
    share = step * config["rope_dim"] / source_head_dim(config)
    return theta if share == 1 else float(theta**share)


def keeps_tied(geometry: Geometry, name: str) -> bool:
    """Whether embeddings stay tied: vLLM's deepseek_v3 knows no tying, and a rescaled residual unties any."""
    return geometry.tied and name == "youtu" and geometry.eps == fold.NORM_EPS


def folded(checkpoint: Checkpoint, name: str, pad: int | None = None) -> View:
    """A canonical checkpoint in the strict format `name`, its latents padded to one width (`pad`, or the widest).

    Raises:
        IncompatibleModel: the format has no place for something.
        CheckpointError: tensors are missing or unknown.
        RecipeError: `pad` is below a layer's rank.
    """
    source = Geometry.of(checkpoint.config)
    refuse(checkpoint.config, name)
    require(_without_copy(checkpoint, source), source.tensors())
    even = padded(checkpoint, pad)
    geometry = Geometry.of(even.config)
    entries = {key: _fold(geometry, key, shape) for key, shape in geometry.tensors().items()}
    if geometry.tied and not keeps_tied(geometry, name):
        entries[HEAD] = Entry((geometry.vocabulary, geometry.hidden), (EMBED,))
    return View(even, _config(checkpoint.config, source, geometry, name), entries)


def _without_copy(checkpoint: Checkpoint, geometry: Geometry) -> dict[str, tuple[int, ...]]:
    """A tied model may still carry a copy of its embeddings."""
    return {name: shape for name, shape in checkpoint.shapes.items() if not (geometry.tied and name == HEAD)}


def _fold(geometry: Geometry, name: str, shape: tuple[int, ...]) -> Entry:
    part = name.split("self_attn.")[-1]
    if part == "q_proj.weight":
        gain = geometry.softmax_scale * (geometry.nope + geometry.rope) ** 0.5
        return Entry(shape, (name,), partial(fold.fold_queries, heads=geometry.heads, rope=geometry.rope, gain=gain))
    if part == "kv_a_proj_with_mqa.weight":
        norm = name.replace("kv_a_proj_with_mqa", "kv_a_layernorm")
        return Entry(shape, (name, norm), partial(fold.fold_latents, rope=geometry.rope, norm_eps=geometry.norm_eps))
    if part == "kv_a_layernorm.weight":
        return Entry(shape, (), lambda: torch.full(shape, fold.NORM_GAIN))
    if name.endswith(RESIDUAL) and geometry.eps != fold.NORM_EPS:
        return Entry(shape, (name,), partial(torch.mul, other=residual_scale(geometry.eps)), True)
    return Entry(shape, (name,))


def residual_scale(eps: float) -> float:
    """What the residual stream is multiplied by, so that norms of eps 1e-6 see what norms of `eps` saw."""
    return float((fold.NORM_EPS / eps) ** 0.5)


def _config(config: dict[str, Any], source: Geometry, geometry: Geometry, name: str) -> dict[str, Any]:
    rope = dict(config["rope_parameters"]) | {"rope_theta": rope_base(config)}
    # transformers' youtu blanks the embedding of the config's pad token on loading, whatever the file holds.
    tokens = [key for key in TOKENS if not (name == "youtu" and key == "pad_token_id")]
    found: dict[str, Any] = {
        **{key: config[key] for key in (*KEPT, *tokens) if key in config},
        "model_type": name,
        "architectures": [{"deepseek_v3": "DeepseekV3ForCausalLM", "youtu": "YoutuForCausalLM"}[name]],
        "vocab_size": geometry.vocabulary,
        "hidden_size": geometry.hidden,
        "intermediate_size": geometry.intermediate,
        "num_hidden_layers": geometry.layers,
        "num_attention_heads": geometry.heads,
        "num_key_value_heads": geometry.heads,
        "q_lora_rank": None,
        "kv_lora_rank": geometry.ranks[0],
        "qk_rope_head_dim": geometry.rope,
        "qk_nope_head_dim": geometry.nope,
        "v_head_dim": geometry.value,
        "rms_norm_eps": fold.NORM_EPS,
        "rope_parameters": rope,
        "rope_interleave": True,
        "attention_bias": False,
        "tie_word_embeddings": keeps_tied(geometry, name),
        "regear": {key: config.get(key) for key in INVERSE}
        | {"source_head_dim": source.head_dim, "latent_ranks": [[rank] * 3 for rank in source.ranks]},
    }
    if name == "deepseek_v3":
        mixture = {"first_k_dense_replace": geometry.layers, "moe_intermediate_size": geometry.intermediate}
        found |= {**DENSE, **mixture}
    return found


def unfolded(checkpoint: Checkpoint) -> View:
    """A strict checkpoint that regear wrote, as the canonical one it came from (padding dropped, ties restored).

    Raises:
        IncompatibleModel: another program wrote it.
        CheckpointError: tensors are missing or unknown.
    """
    config = _canonical_config(checkpoint.config)
    geometry = Geometry.of(config)
    strict = checkpoint.config
    tied = bool(strict.get("tie_word_embeddings"))
    there = {key: (*shape,) for key, shape in checkpoint.shapes.items() if not (tied and key == HEAD)}
    wide = Geometry.of(config | {"latent_ranks": [[strict["kv_lora_rank"]] * 3] * geometry.layers})
    wanted = wide.tensors()
    if geometry.tied and not tied:
        wanted[HEAD] = wanted[EMBED]
    require(there, wanted)
    entries = {name: _unfold(geometry, name, shape) for name, shape in geometry.tensors().items()}
    if geometry.tied and not tied:
        retie = partial(_retie, scale=residual_scale(geometry.eps))
        entries[EMBED] = Entry(wanted[EMBED], (HEAD, EMBED), retie, by_rows=True)
    return View(checkpoint, config, entries)


def _canonical_config(strict: dict[str, Any]) -> dict[str, Any]:
    ours = strict.get("regear")
    if strict.get("model_type") not in STRICT or not isinstance(ours, dict) or "latent_ranks" not in ours:
        raise IncompatibleModel(
            f"this {strict.get('model_type')} checkpoint was not written by regear; only its own exports are read back"
        )
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return {
        **{key: strict[key] for key in (*KEPT, *TOKENS, *same) if key in strict},
        **ours,
        "model_type": "regear_mla",
        "rope_mode": "decoupled",
        "num_key_value_heads": strict["num_attention_heads"],
        "rope_dim": strict["qk_rope_head_dim"],
        "nope_dim": strict["qk_nope_head_dim"],
        "value_dim": strict["v_head_dim"],
        "latent_norm_eps": NEUTRAL_EPS,
    }


def _unfold(geometry: Geometry, name: str, shape: tuple[int, ...]) -> Entry:
    part = name.split("self_attn.")[-1]
    if part == "q_proj.weight":
        gain = geometry.softmax_scale * (geometry.nope + geometry.rope) ** 0.5
        return Entry(shape, (name,), partial(fold.unfold_queries, heads=geometry.heads, rope=geometry.rope, gain=gain))
    if part == "kv_a_proj_with_mqa.weight":
        norm, rank = name.replace("kv_a_proj_with_mqa", "kv_a_layernorm"), geometry.ranks[layer_of(name)]
        return Entry(shape, (name, norm), partial(fold.unfold_latents, rope=geometry.rope, rank=rank))
    if part == "kv_a_layernorm.weight":
        return Entry(shape, (), lambda: torch.full(shape, geometry.norm_eps**0.5))
    if part == "kv_b_proj.weight":
        rank = geometry.ranks[layer_of(name)]
        return Entry(shape, (name,), lambda weight: weight[:, :rank])
    if name.endswith(RESIDUAL) and geometry.eps != fold.NORM_EPS:
        return Entry(shape, (name,), partial(torch.mul, other=1 / residual_scale(geometry.eps)), True)
    return Entry(shape, (name,))


def _retie(head: torch.Tensor, embed: torch.Tensor, scale: float) -> torch.Tensor:
    """The head is the unscaled original; embeddings that no longer match it were trained since."""
    if not torch.allclose(embed, head * scale, rtol=2**-7, atol=1e-8):
        raise CheckpointError(
            "embeddings and output head were tied when this was exported and have been changed since; "
            "give the export as regear wrote it"
        )
    return head
