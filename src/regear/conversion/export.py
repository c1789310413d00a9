"""The `regear_mla` format on disk: shards, config, and the modelling code that travels with them."""

import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from regear.conversion.latent import Factored
from regear.core.errors import writing
from regear.core.run import Progress
from regear.models.families import Experts, SourceSpec
from regear.models.formats.write import AUTO_MAP
from regear.models.load import load_config
from regear.models.mla import modeling_regear_mla as modeling
from regear.models.store import Store, plan_shards, shard_names, write_index
from regear.models.tensorfile import DTYPES, Layout, write_tensors


@dataclass(frozen=True)
class Replacement:
    """What an output holds in the place of some of the source's tensors. Names are without the layer's prefix.

    Args:
        drops: tensors of every source layer that are not carried over.
        shapes: of the tensors that a layer gets instead, known before any weight is read.
        tensors: those tensors; asked for one layer at a time, and again where a shard ends inside a layer.
        config: the output's config, from the name of its dtype.
        code: the modelling file that travels with it, if any.
    """

    drops: tuple[str, ...]
    shapes: Callable[[int], dict[str, tuple[int, ...]]]
    tensors: Callable[[int], dict[str, torch.Tensor]]
    config: Callable[[str], Any]
    code: Path | None = Path(str(modeling.__file__))


def write_checkpoint(
    store: Store, spec: SourceSpec, replacement: Replacement, staging: Path, progress: Progress
) -> None:
    """Write weights, config and modelling code into `staging`; shards that a killed run finished are kept.

    Raises:
        CheckpointError: the disk is full, or a source tensor holds NaN or infinity.
    """
    dtype = DTYPES[store.dtypes["model.layers.0.self_attn.k_proj.weight"]]
    layout = _layout(store, spec, replacement, dtype)
    sizes = {name: math.prod(shape) * dtype.itemsize for name, (dtype, shape) in layout.items()}
    shards = plan_shards(sizes)
    names = shard_names(len(shards))
    reader = _Reader(store, replacement)
    for number, (file, members) in enumerate(zip(names, shards, strict=True), 1):
        if not (staging / file).exists():
            write_tensors(staging / file, {name: layout[name] for name in members}, reader)
        progress("write", number, len(shards))
    write_index(staging, dict(zip(names, shards, strict=True)), sum(sizes.values()))
    with writing(staging / "config.json"):
        replacement.config(str(dtype).removeprefix("torch.")).save_pretrained(staging)
    if replacement.code is not None:
        with writing(staging / replacement.code.name):
            shutil.copyfile(replacement.code, staging / replacement.code.name)


def _layout(store: Store, spec: SourceSpec, replacement: Replacement, dtype: torch.dtype) -> Layout:
    """Every output tensor, in the source's order; a layer's new tensors stand where the dropped ones were."""
    layout: Layout = {}
    for name, shape in spec.tensors().items():
        index, inner = _split(name)
        if index is None or inner not in replacement.drops:
            layout[name] = (DTYPES[store.dtypes[name]], shape)
        else:
            prefix = name.removesuffix(inner)
            layout |= {prefix + new: (dtype, found) for new, found in replacement.shapes(index).items()}
    return layout


class _Reader:
    """Output tensors by name, in pieces; the new tensors of one layer at a time are held."""

    def __init__(self, store: Store, replacement: Replacement) -> None:
        self.store, self.replacement = store, replacement
        self.index: int | None = None
        self.held: dict[str, torch.Tensor] = {}

    def __call__(self, name: str) -> Iterable[torch.Tensor]:
        index, inner = _split(name)
        if index is None or inner not in self.replacement.shapes(index):
            return self.store.pieces(name)
        if self.index != index:
            self.held = {}
            self.index, self.held = index, self.replacement.tensors(index)
        return [self.held[inner]]


class Replaced:
    """A source with a replacement in its place, as a checkpoint to read: new tensors as made, the others as stored.

    It has a config, shapes and tensors, which is all that another format is written from; nothing is rounded.
    """

    def __init__(self, store: Store, spec: SourceSpec, replacement: Replacement) -> None:
        self.config: dict[str, Any] = replacement.config("float32").to_dict()
        self.shapes = {name: shape for name, (_, shape) in _layout(store, spec, replacement, torch.float32).items()}
        self.pieces = _Reader(store, replacement).__call__

    def read(self, name: str) -> torch.Tensor:
        """One tensor."""
        return torch.cat(list(self.pieces(name)))


def _split(name: str) -> tuple[int | None, str]:
    """`model.layers.3.mlp.up_proj.weight` → (3, "mlp.up_proj.weight"); outside the layers the number is None."""
    if not name.startswith("model.layers."):
        return None, name
    index, _, inner = name.removeprefix("model.layers.").partition(".")
    return int(index), inner


# The exact form: a joint down-projection, and one up-projection each for keys and values.
DROPS = tuple(f"self_attn.{x}_proj.{kind}" for x in "kv" for kind in ("weight", "bias"))


def exact_shapes(spec: SourceSpec, ranks: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Shapes of a layer's new tensors at `[r, r_k, r_v]`."""
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.kv_a_proj.weight": (ranks[0], spec.hidden),
        "self_attn.k_b_proj.weight": (spec.branch_width, ranks[1]),
        "self_attn.v_b_proj.weight": (spec.branch_width, ranks[2]),
    }
    if spec.kv_bias:
        shapes |= {f"self_attn.{x}_b_proj.bias": (spec.branch_width,) for x in "kv"}
    return shapes


def exact_tensors(
    factored: Factored, biases: tuple[torch.Tensor | None, torch.Tensor | None]
) -> dict[str, torch.Tensor]:
    """A layer's new tensors."""
    tensors = {
        "self_attn.kv_a_proj.weight": factored.down,
        "self_attn.k_b_proj.weight": factored.key,
        "self_attn.v_b_proj.weight": factored.value,
    }
    names = ("self_attn.k_b_proj.bias", "self_attn.v_b_proj.bias")
    return tensors | {name: bias for name, bias in zip(names, biases, strict=True) if bias is not None}


def exact_config(store: Store, spec: SourceSpec, ranks: Sequence[Sequence[int]], dtype: str, **changes: Any) -> Any:
    """The config of the exact form, or with `changes` another's; `ranks` are `[r, r_k, r_v]` by layer."""
    source = {**load_config(store.directory).to_dict(), **store.config}  # what is left out means the family's default
    kept = ("max_position_embeddings", "rms_norm_eps", "initializer_range", "hidden_act", "attention_dropout")
    tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
    rope = dict(source.get("rope_parameters") or source.get("rope_scaling") or {})
    rope["rope_type"] = spec.rope_type
    rope.setdefault("rope_theta", source.get("rope_theta", 10000.0))
    make: Any = modeling.RegearMlaConfig
    values: dict[str, Any] = dict(
        **{key: source[key] for key in kept if source.get(key) is not None},
        **{key: source.get(key) for key in tokens},
        architectures=["RegearMlaForCausalLM"],
        auto_map=AUTO_MAP,
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
        qk_norm_width=spec.qk_norm_width,
        post_norm=spec.post_norm,
        **_mixture(spec.experts),
        latent_ranks=[list(row) for row in ranks],
        dtype=dtype,
    )
    return make(**(values | changes))


def _mixture(experts: Experts | None) -> dict[str, Any]:
    """Config keys of the routed experts; none for a dense model."""
    if experts is None:
        return {}
    return {
        "expert_layers": list(experts.layers),
        "num_experts": experts.count,
        "num_experts_per_tok": experts.per_token,
        "moe_intermediate_size": experts.intermediate,
        "norm_topk_prob": experts.renormalise,
    }
