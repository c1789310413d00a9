"""Model families as data: what each config must hold, and which tensors a checkpoint of it consists of.

A family is a row of `FAMILIES`. `describe` reads a config (no weights) and answers with a `SourceSpec`, or refuses
the model with what is missing.
"""

from dataclasses import dataclass
from typing import Any

from regear.core.errors import IncompatibleModel
from regear.core.recipe import closest
from regear.models.refusals import SLIDING, refuse_family, refuse_keys

EXACT_ROPE = ("default", "llama3")
NORMS_BEFORE = ("input_layernorm", "post_attention_layernorm")
NORMS_AFTER = ("post_attention_layernorm", "post_feedforward_layernorm")


@dataclass(frozen=True)
class Family:
    """One row: the facts of a `model_type` that a conversion has to know.

    `kv_bias`/`o_bias`/`mlp_bias` are True, False, or the config key that tells. `absent` lists config keys that must
    be unset (None, False or missing), with what they would mean. `qk_norm_width` is `head` where each head is normed
    by itself, `all` where a token's queries (or keys) are normed as one vector.
    """

    name: str
    kv_bias: bool | str = False
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False
    qk_norm_width: str = "head"
    post_norm: bool = False
    experts: bool = False
    absent: tuple[tuple[str, str], ...] = ()
    # What transformers takes a missing key to mean, where that is not "unset".
    missing: tuple[tuple[str, object], ...] = ()


FAMILIES = {
    family.name: family
    for family in (
        Family("llama", kv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias"),
        Family("mistral", absent=(("sliding_window", SLIDING),), missing=(("sliding_window", 4096),)),
        Family("qwen2", kv_bias=True, absent=(("use_sliding_window", SLIDING),)),
        Family(
            "qwen3",
            kv_bias="attention_bias",
            o_bias="attention_bias",
            qk_norm=True,
            absent=(("use_sliding_window", SLIDING),),
        ),
        Family(
            "qwen3_moe",
            kv_bias="attention_bias",
            o_bias="attention_bias",
            qk_norm=True,
            experts=True,
            absent=(("use_sliding_window", SLIDING),),
            missing=(("num_experts", 128), ("num_experts_per_tok", 8), ("moe_intermediate_size", 768)),
        ),
        Family(
            "olmo2",
            kv_bias="attention_bias",
            o_bias="attention_bias",
            qk_norm=True,
            qk_norm_width="all",
            post_norm=True,
        ),
    )
}


@dataclass(frozen=True)
class Experts:
    """The routed experts of a mixture: how many, how many a token visits, their inner width, and the layers that have
    them (the others are dense)."""

    count: int
    per_token: int
    intermediate: int
    renormalise: bool
    layers: tuple[int, ...]


@dataclass(frozen=True)
class SourceSpec:
    """The geometry of a source model. Widths are counted in floats."""

    family: str
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int
    kv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tied: bool
    rope_type: str
    context: int
    qk_norm_width: str = "head"
    post_norm: bool = False
    experts: Experts | None = None
    activation: str = "silu"

    @property
    def branch_width(self) -> int:
        """Width of one token's keys (or values) in one layer."""
        return self.kv_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of one token's keys and values in one layer: the most that a joint latent can need."""
        return 2 * self.branch_width

    @property
    def kv_floats_per_token(self) -> int:
        """Keys and values of one token, summed over layers."""
        return self.layers * self.kv_width

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that a checkpoint of this model must hold, with its shape."""
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            shapes |= {prefix + name: shape for name, shape in self.layer_tensors(layer).items()}
        shapes["model.norm.weight"] = (self.hidden,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocabulary, self.hidden)
        return shapes

    def layer_tensors(self, layer: int = 0) -> dict[str, tuple[int, ...]]:
        """The tensors of one decoder layer as checkpoints hold them, without the layer's prefix."""
        queries, hidden = self.heads * self.head_dim, self.hidden
        linear = {
            "self_attn.q_proj": ((queries, hidden), self.kv_bias),
            "self_attn.k_proj": ((self.branch_width, hidden), self.kv_bias),
            "self_attn.v_proj": ((self.branch_width, hidden), self.kv_bias),
            "self_attn.o_proj": ((hidden, queries), self.o_bias),
            **self._mlp(layer),
        }
        shapes: dict[str, tuple[int, ...]] = {}
        for name, (shape, bias) in linear.items():
            shapes[f"{name}.weight"] = shape
            if bias:
                shapes[f"{name}.bias"] = shape[:1]
        first, second = NORMS_AFTER if self.post_norm else NORMS_BEFORE
        shapes |= {f"{first}.weight": (hidden,), f"{second}.weight": (hidden,)}
        if self.qk_norm:
            each = self.qk_norm_width == "head"
            widths = {"q": queries, "k": self.branch_width}
            shapes |= {f"self_attn.{x}_norm.weight": (self.head_dim if each else widths[x],) for x in "qk"}
        return shapes

    def _mlp(self, layer: int) -> dict[str, tuple[tuple[int, int], bool]]:
        """Shape and bias of every linear map after attention: one MLP, or a router and its experts."""
        experts = self.experts
        if experts is None or layer not in experts.layers:
            return _gated("mlp", self.hidden, self.intermediate, self.mlp_bias)
        found = {"mlp.gate": ((experts.count, self.hidden), False)}
        for number in range(experts.count):
            found |= _gated(f"mlp.experts.{number}", self.hidden, experts.intermediate, self.mlp_bias)
        return found


def _gated(prefix: str, hidden: int, inner: int, bias: bool) -> dict[str, tuple[tuple[int, int], bool]]:
    shapes = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    return {f"{prefix}.{name}": (shape, bias) for name, shape in shapes.items()}


def describe(config: dict[str, Any]) -> SourceSpec:
    """The spec of a source model, from its `config.json` alone.

    Raises:
        IncompatibleModel: an unsupported family, or a feature that the conversions cannot hold; named in the message.
    """
    family = _family(config)
    config = {**dict(family.missing), **config}
    for key, meaning in family.absent:
        if config.get(key):
            raise IncompatibleModel(
                f"{family.name} model with {key}={config[key]!r}: {meaning} is not supported; "
                f"wanted a model with {key} unset"
            )
    refuse_keys(config)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise IncompatibleModel(f"config.json has rope_parameters {rope!r}; wanted a mapping")
    rope_type = str(rope.get("rope_type") or rope.get("type") or "default")
    if rope_type not in EXACT_ROPE:
        raise IncompatibleModel(f"RoPE scaling {rope_type!r} is not supported; supported: {', '.join(EXACT_ROPE)}")
    if rope.get("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise IncompatibleModel("a model that rotates only part of each head is not supported; wanted full RoPE")
    if config.get("quantization_config"):
        raise IncompatibleModel("the weights are quantised; give the unquantised model")

    def flag(value: bool | str) -> bool:
        return bool(config.get(value)) if isinstance(value, str) else value

    try:
        heads = int(config["num_attention_heads"])
        return SourceSpec(
            family=family.name,
            layers=int(config["num_hidden_layers"]),
            hidden=int(config["hidden_size"]),
            intermediate=int(config["intermediate_size"]),
            vocabulary=int(config["vocab_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
            kv_bias=flag(family.kv_bias),
            o_bias=flag(family.o_bias),
            mlp_bias=flag(family.mlp_bias),
            qk_norm=family.qk_norm,
            tied=bool(config.get("tie_word_embeddings", False)),
            rope_type=rope_type,
            context=int(config.get("max_position_embeddings") or 0),
            qk_norm_width=family.qk_norm_width,
            post_norm=family.post_norm,
            experts=_experts(config) if family.experts else None,
            activation=str(config.get("hidden_act") or "silu"),
        )
    except KeyError as missing:
        raise IncompatibleModel(f"config.json lacks {missing}; wanted a complete {family.name} config") from None
    except (TypeError, ValueError) as error:
        raise IncompatibleModel(f"config.json holds a wrong value ({error}); restore it from its source") from None


def _family(config: dict[str, Any]) -> Family:
    name = str(config.get("model_type", ""))
    if name == "regear_mla":
        raise IncompatibleModel("this model is already a regear MLA checkpoint; give the model it was made from")
    refuse_family(name)
    if name not in FAMILIES:
        raise IncompatibleModel(
            f"model_type {name!r} is not supported{closest(name, FAMILIES)}; supported: {', '.join(FAMILIES)}. "
            "A family is one row in regear/models/families.py"
        )
    return FAMILIES[name]


def _experts(config: dict[str, Any]) -> Experts | None:
    """The mixture of a config; None where no layer has experts."""
    count = int(config.get("num_local_experts") or config["num_experts"])
    dense, step = set(config.get("mlp_only_layers") or ()), int(config.get("decoder_sparse_step") or 1)
    layers = [i for i in range(int(config["num_hidden_layers"])) if i not in dense and (i + 1) % step == 0]
    if not count or not layers:
        return None
    chosen = int(config["num_experts_per_tok"])
    inner, renormalise = int(config["moe_intermediate_size"]), bool(config.get("norm_topk_prob", False))
    return Experts(count, chosen, inner, renormalise, tuple(layers))
