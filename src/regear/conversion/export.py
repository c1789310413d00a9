"""The `regear_mla` format on disk: shards, config, and the modelling code that travels with them."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from regear.conversion.base import Progress
from regear.conversion.latent import Factored
from regear.core.errors import writing
from regear.models.families import SourceSpec
from regear.models.mla import modeling_regear_mla as modeling
from regear.models.store import DTYPES, Store, plan_shards, shard_names, write_index, write_shard

REPLACED = ("self_attn.k_proj.weight", "self_attn.v_proj.weight", "self_attn.k_proj.bias", "self_attn.v_proj.bias")
PARTS = {"kv_a_proj": "down", "k_b_proj": "key", "v_b_proj": "value"}
MODULE = "modeling_regear_mla"


def write_checkpoint(
    store: Store, spec: SourceSpec, factored: Sequence[Factored], staging: Path, progress: Progress
) -> None:
    """Write weights, config and modelling code into `staging`; shards that a killed run finished are kept.

    Raises:
        CheckpointError: the disk is full, or a source tensor holds NaN or infinity.
    """
    dtype = DTYPES[store.dtypes["model.layers.0.self_attn.k_proj.weight"]]
    sizes = _sizes(store, spec, factored, dtype.itemsize)
    shards = plan_shards(sizes)
    names = shard_names(len(shards))
    for number, (file, members) in enumerate(zip(names, shards, strict=True), 1):
        if not (staging / file).exists():
            write_shard(staging / file, {name: _tensor(store, factored, name, dtype) for name in members})
        progress("write", number, len(shards))
    write_index(staging, dict(zip(names, shards, strict=True)), sum(sizes.values()))
    with writing(staging / "config.json"):
        _config(store, spec, factored, str(dtype).removeprefix("torch.")).save_pretrained(staging)
    with writing(staging / f"{MODULE}.py"):
        shutil.copyfile(str(modeling.__file__), staging / f"{MODULE}.py")


def _sizes(store: Store, spec: SourceSpec, factored: Sequence[Factored], item: int) -> dict[str, int]:
    """Bytes of every output tensor, in the order of the source."""
    sizes: dict[str, int] = {}
    for name in spec.tensors():
        if not name.endswith(REPLACED):
            sizes[name] = store.bytes_of([name])
        elif name.endswith("k_proj.weight"):
            prefix = name.removesuffix("k_proj.weight")
            for part, attribute in PARTS.items():
                tensor: torch.Tensor = getattr(factored[_layer(name)], attribute)
                sizes[f"{prefix}{part}.weight"] = tensor.numel() * item
            if spec.kv_bias:
                sizes |= {f"{prefix}{x}_b_proj.bias": spec.branch_width * item for x in "kv"}
    return sizes


def _tensor(store: Store, factored: Sequence[Factored], name: str, dtype: torch.dtype) -> torch.Tensor:
    """One output tensor: a factor, a bias under its new name, or the source's own."""
    part, _, kind = name.rpartition(".")
    attribute = PARTS.get(part.rpartition(".")[2])
    if attribute and kind == "weight":
        found: torch.Tensor = getattr(factored[_layer(name)], attribute)
        return found.to(dtype)
    return store.read(name.replace("_b_proj.bias", "_proj.bias"))


def _layer(name: str) -> int:
    """`model.layers.3.…` → 3."""
    return int(name.split(".")[2])


def _config(store: Store, spec: SourceSpec, factored: Sequence[Factored], dtype: str) -> Any:
    source = store.config
    kept = ("max_position_embeddings", "rms_norm_eps", "initializer_range", "hidden_act", "attention_dropout")
    tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
    rope = dict(source.get("rope_parameters") or source.get("rope_scaling") or {})
    rope["rope_type"] = spec.rope_type
    rope.setdefault("rope_theta", source.get("rope_theta", 10000.0))
    make: Any = modeling.RegearMlaConfig
    return make(
        **{key: source[key] for key in (*kept, *tokens) if source.get(key) is not None},
        architectures=["RegearMlaForCausalLM"],
        auto_map={"AutoConfig": f"{MODULE}.RegearMlaConfig", "AutoModelForCausalLM": f"{MODULE}.RegearMlaForCausalLM"},
        vocab_size=spec.vocabulary,
        hidden_size=spec.hidden,
        intermediate_size=spec.intermediate,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        rope_parameters={key: value for key, value in rope.items() if key != "type"},
        tie_word_embeddings=spec.tied,
        mlp_bias=spec.mlp_bias,
        q_bias=spec.kv_bias,
        kv_bias=spec.kv_bias,
        o_bias=spec.o_bias,
        qk_norm=spec.qk_norm,
        latent_ranks=[layer.ranks for layer in factored],
        dtype=dtype,
    )
