"""Multi-head latent attention, with exact or decoupled RoPE; the cache holds one latent per token.

This one file travels inside every `regear_mla` checkpoint and needs torch and transformers only.

Exact RoPE, per layer, with x the normed hidden state:

    c = W_a x                                    cached, r floats per token
    k = rotate(k_norm(W_k c[:r_k] + b_k))        rebuilt from the latents at every step
    v = W_v c[r - r_v:] + b_v                    prefill: rebuilt; decode: absorbed, sum_t p_t c_t first

A joint latent has r_k = r_v = r; separate latents have r_k + r_v = r; anything between shares the middle.

Decoupled RoPE (`rope_mode: decoupled`), the form of DeepSeek-V2 and V3:

    c = norm(W_a x), p = rotate(W_r x)           cached, r and d_r floats per token; p is one key for all heads
    k_h = [UK_h c; p], v_h = UV_h c              expanded: prefill and training
    q_h . k_h = (UK_h^T q_h) . c + q_rope . p    absorbed: decode; values likewise, UV_h (sum_t p_t c_t)

`norm` stands there because servers recognise the layer by it; its eps is so large that it changes nothing.

Around attention a layer is as its source has it: norms before attention and MLP or after them (`post_norm`), a gated
MLP, or in the layers of `expert_layers` Qwen3-MoE's routed experts.

Shape letters: B batch, S new tokens, T cached and new tokens, H query heads, G key/value heads, D head width,
N and P the parts of a head without and with rotation, V value width, R latent width.
"""

import copy

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaMLP,
    LlamaModel,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    eager_attention_forward,
    rotate_half,
)


@strict
class RegearMlaConfig(LlamaConfig):
    """A Llama-shaped config whose `latent_ranks` gives `[r, r_k, r_v]` for every layer.

    With `rope_mode: decoupled`, heads have `nope_dim` + `rope_dim` query and `value_dim` value floats, `rope_pairs`
    names for every layer the RoPE frequencies (of a head of `source_head_dim`) that its shared key turns with,
    `softmax_scale` is that of `source_head_dim` unless given, and `qk_norm` means a norm on queries only. `head_dim` is
    then the width at which servers attend: latent and rotated floats together, or a whole head for unequal ranks.
    """

    model_type = "regear_mla"
    base_model_tp_plan = {}  # noqa: RUF012 - transformers' own convention; one latent cannot be split by heads

    latent_ranks: list | None = None
    q_bias: bool = False
    kv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False
    qk_norm_width: str = "head"  # or "all": a token's queries (keys) are normed as one vector
    post_norm: bool = False
    expert_layers: list | None = None
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    norm_topk_prob: bool = False
    rope_mode: str = "exact"
    source_head_dim: int | None = None
    rope_dim: int | None = None
    rope_pairs: list | None = None
    nope_dim: int | None = None
    value_dim: int | None = None
    latent_norm_eps: float = 2.0**26  # its root, the norm's weight, is exact in every dtype
    softmax_scale: float | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.rope_mode == "decoupled" and self.latent_ranks is not None:
            self.qk_nope_head_dim, self.qk_rope_head_dim, self.v_head_dim = self.nope_dim, self.rope_dim, self.value_dim
            self.source_head_dim = self.source_head_dim or self.head_dim
            # Servers size their attention by these: latents under MLA's name, and one width for the model. There is
            # none for unequal ranks, which are served expanded.
            if len({rank for rank, _, _ in self.latent_ranks}) == 1 and self.rope_dim:
                self.kv_lora_rank, self.q_lora_rank = self.latent_ranks[0][0], None
                self.head_dim = self.kv_lora_rank + self.rope_dim
            elif self.nope_dim and self.rope_dim:
                self.head_dim = self.nope_dim + self.rope_dim

    def validate_rope(self):
        """RoPE turns heads of the source's width; the width servers attend at may be odd."""
        source = copy.copy(self)
        source.head_dim = self.source_head_dim or self.head_dim
        super(RegearMlaConfig, source).validate_rope()

    def validate_architecture(self):
        """Heads may be of any width; every layer needs its ranks and, decoupled, its frequencies."""
        if self.latent_ranks is None:
            return  # transformers builds a default config to tell what was changed; no model is built from one
        if len(self.latent_ranks) != self.num_hidden_layers:
            raise ValueError(f"latent_ranks must list [r, r_k, r_v] for each of {self.num_hidden_layers} layers")
        for r, r_k, r_v in self.latent_ranks:
            if not (0 < r_k <= r and 0 < r_v <= r <= r_k + r_v):
                raise ValueError(f"latent ranks [{r}, {r_k}, {r_v}]: wanted max(r_k, r_v) <= r <= r_k + r_v")
        if self.rope_mode not in ("exact", "decoupled"):
            raise ValueError(f"rope_mode {self.rope_mode!r}: wanted exact or decoupled")
        if self.rope_mode == "decoupled":
            self._validate_decoupled()

    def _validate_decoupled(self):
        if any(len(set(ranks)) > 1 for ranks in self.latent_ranks):
            raise ValueError("decoupled RoPE has joint latents: wanted latent ranks [r, r, r]")
        if not all((self.nope_dim, self.value_dim, self.rope_dim)) or self.rope_dim % 2:
            raise ValueError("decoupled RoPE needs nope_dim, value_dim and an even rope_dim")
        if self.qk_norm and self.qk_norm_width != "head":
            raise ValueError(
                f"decoupled RoPE norms each head's queries: qk_norm_width {self.qk_norm_width!r} is not held"
            )
        if self.num_key_value_heads != self.num_attention_heads:
            raise ValueError(
                "decoupled RoPE gives every head keys of its own: num_key_value_heads must count all heads"
            )
        pairs = self.rope_pairs or []
        if len(pairs) != self.num_hidden_layers or any(len(row) != self.rope_dim // 2 for row in pairs):
            raise ValueError("rope_pairs must list rope_dim / 2 frequencies for each layer")
        if not all(0 <= pair < self.source_head_dim // 2 for row in pairs for pair in row):
            raise ValueError(f"rope_pairs must name frequencies below {self.source_head_dim // 2}")


def rotate(x_BNTD: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Apply RoPE in the half-split layout; `rotary` is (cos, sin), each [B, T, D]."""
    cos, sin = rotary
    return x_BNTD * cos.unsqueeze(1) + rotate_half(x_BNTD) * sin.unsqueeze(1)


class RegearMlaRotaryEmbedding(LlamaRotaryEmbedding):
    """The angles of the source's heads, whatever width servers attend at."""

    def __init__(self, config: RegearMlaConfig) -> None:
        source = copy.copy(config)
        source.head_dim = config.source_head_dim or config.head_dim
        super().__init__(source)


class LatentAttention(nn.Module):
    """What both forms are to transformers: the modules whose attention weights can be recorded."""


class RegearMlaAttention(LatentAttention):
    """Attention whose cache entry is `[B, 1, T, r]` latents and zero-width values."""

    def __init__(self, config: RegearMlaConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.rank, self.key_rank, self.value_rank = config.latent_ranks[layer_idx]
        self.head_dim, self.is_causal = config.head_dim, True
        self.kv_heads = config.num_key_value_heads
        self.num_key_value_groups = config.num_attention_heads // self.kv_heads
        self.scaling = self.head_dim**-0.5
        queries, branch = config.num_attention_heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=config.q_bias)
        self.kv_a_proj = nn.Linear(config.hidden_size, self.rank, bias=False)
        self.k_b_proj = nn.Linear(self.key_rank, branch, bias=config.kv_bias)
        self.v_b_proj = nn.Linear(self.value_rank, branch, bias=config.kv_bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=config.o_bias)
        if config.qk_norm:
            widths = (queries, branch) if config.qk_norm_width == "all" else (self.head_dim, self.head_dim)
            self.q_norm, self.k_norm = (LlamaRMSNorm(width, eps=config.rms_norm_eps) for width in widths)

    def heads(self, flat: torch.Tensor) -> torch.Tensor:
        """[B, T, N * D] → [B, N, T, D]."""
        return flat.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def normed(self, flat: torch.Tensor, name: str) -> torch.Tensor:
        """Heads after `q_norm` or `k_norm`, where the model has them: [B, T, N * D] → [B, N, T, D]."""
        if not self.config.qk_norm:
            return self.heads(flat)
        norm = getattr(self, name)
        return self.heads(norm(flat)) if self.config.qk_norm_width == "all" else norm(self.heads(flat))

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        key_rotary: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch, length, _ = hidden_states.shape
        query_BHSD = self.normed(self.q_proj(hidden_states), "q_norm")
        latent = self.kv_a_proj(hidden_states).unsqueeze(1)
        if past_key_values is not None:
            latent, _ = past_key_values.update(latent, latent[..., :0], self.layer_idx)
        latent = latent.squeeze(1)  # [B, T, r]
        key_BGTD = self.normed(self.k_b_proj(latent[..., : self.key_rank]), "k_norm")
        query_BHSD = rotate(query_BHSD, position_embeddings)
        key_BGTD = rotate(key_BGTD, self.fit(key_rotary or position_embeddings, latent.shape[1]))
        value_latent = latent[..., self.rank - self.value_rank :]
        # Servers that keep the cache themselves pass none: one token is then not the only key.
        if past_key_values is not None and length == 1 and not self.training and not kwargs.get("output_attentions"):
            output, weights = self.decode(query_BHSD, key_BGTD, value_latent, attention_mask), None
        else:
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
            value_BGTD = self.heads(self.v_b_proj(value_latent))
            dropout = self.config.attention_dropout if self.training else 0.0
            output, weights = attend(
                self, query_BHSD, key_BGTD, value_BGTD, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
            )
        return self.o_proj(output.reshape(batch, length, -1)), weights

    @staticmethod
    def fit(rotary: tuple[torch.Tensor, torch.Tensor], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A static cache returns slots that are still empty (and masked): pad the angles for them."""
        missing = length - rotary[0].shape[1]
        return tuple(nn.functional.pad(part, (0, 0, 0, missing)) for part in rotary) if missing else rotary

    def decode(
        self, query_BHSD: torch.Tensor, key_BGTD: torch.Tensor, latent_BTR: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """One query per row: average the latents first, then up-project once (values are never rebuilt).

        Returns [B, 1, H * D]. The value bias passes through unchanged because the weights sum to one.
        """
        groups = (self.kv_heads, self.num_key_value_groups)
        scores = query_BHSD.squeeze(2).unflatten(1, groups) @ key_BGTD.transpose(2, 3) * self.scaling  # [B, G, H/G, T]
        if mask is not None:
            mask = mask[..., : scores.shape[-1]]  # [B, 1, 1, T]
            lowest = torch.finfo(scores.dtype).min
            scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
        weights = scores.float().softmax(-1).to(latent_BTR.dtype)
        mixed = weights @ latent_BTR.unsqueeze(1)  # [B, G, H/G, r_v]
        up = self.v_b_proj.weight.unflatten(0, (self.kv_heads, self.head_dim))  # [G, D, r_v]
        output = mixed @ up.transpose(1, 2)
        if self.v_b_proj.bias is not None:
            output = output + self.v_b_proj.bias.view(self.kv_heads, 1, self.head_dim)
        return output.reshape(output.shape[0], 1, -1)


class RegearMlaDecoupledAttention(LatentAttention):
    """Attention whose cache entry is `[B, 1, T, r]` latents and `[B, 1, T, d_r]` rotated keys.

    vLLM recognises the layer by the shape of this forward (one norm on one linear, one `expand_kv`, one call of the
    attention interface) and puts its own kernel in; every other path must stay behind `past_key_values is not None`.
    """

    def __init__(self, config: RegearMlaConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx, self.is_causal = config, layer_idx, True
        self.rank, heads = config.latent_ranks[layer_idx][0], config.num_attention_heads
        self.nope_dim, self.rope_dim, self.value_dim = config.nope_dim, config.rope_dim, config.value_dim
        self.rope_pairs, self.num_key_value_groups = config.rope_pairs[layer_idx], 1
        self.scaling = config.softmax_scale or config.source_head_dim**-0.5
        query_dim = config.nope_dim + config.rope_dim
        projected = config.source_head_dim if config.qk_norm else query_dim
        self.q_proj = nn.Linear(config.hidden_size, heads * projected, bias=config.q_bias)
        if config.qk_norm:
            self.q_norm_weight = nn.Parameter(torch.ones(config.source_head_dim))
            self.q_up = nn.Parameter(torch.zeros(heads, query_dim, config.source_head_dim))
        self.kv_a_proj_with_mqa = nn.Linear(config.hidden_size, self.rank + self.rope_dim, bias=config.kv_bias)
        self.kv_a_layernorm = LlamaRMSNorm(self.rank, eps=config.latent_norm_eps)
        self.kv_b_proj = nn.Linear(self.rank, heads * (self.nope_dim + self.value_dim), bias=False)
        self.o_proj = nn.Linear(heads * self.value_dim, config.hidden_size, bias=config.o_bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch, length = hidden_states.shape[:-1]
        cos, sin = position_embeddings
        rotary = self.pick(cos), self.pick(sin)
        query_BHSD = self.rotated_queries(self.q_proj(hidden_states), rotary)
        kv_nope, k_rot = self.kv_a_proj_with_mqa(hidden_states).split([self.rank, self.rope_dim], dim=-1)
        kv_nope = self.kv_a_layernorm(kv_nope).unsqueeze(1)
        k_rot = rotate(k_rot.unsqueeze(1), rotary)
        if past_key_values is not None:
            kv_nope, k_rot = past_key_values.update(kv_nope, k_rot, self.layer_idx)
        if past_key_values is not None and self.absorbs(length, kv_nope.shape[2], attention_mask):
            output, weights = self.absorbed(query_BHSD, kv_nope, k_rot, attention_mask, **kwargs)
        else:
            key, value = self.expand_kv(kv_nope, k_rot)
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
            dropout = self.config.attention_dropout if self.training else 0.0
            output, weights = attend(
                self, query_BHSD, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
            )
        return self.o_proj(output.reshape(batch, length, -1)), weights

    def pick(self, angles_BSD: torch.Tensor) -> torch.Tensor:
        """The cosines or sines of this layer's frequencies, [B, S, d_r]."""
        step = self.rope_pairs[1] if len(self.rope_pairs) > 1 else 1
        if step > 0 and self.rope_pairs == [step * i for i in range(len(self.rope_pairs))]:
            picked = angles_BSD[..., : step * len(self.rope_pairs) : step]  # no index tensor to copy to a device
        else:
            picked = angles_BSD[..., self.rope_pairs]
        return torch.cat([picked, picked], dim=-1)

    def rotated_queries(self, flat: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """[B, S, H * width] → [B, H, S, N + P], the last P rotated."""
        width = self.config.source_head_dim if self.config.qk_norm else self.nope_dim + self.rope_dim
        query_BSHD = flat.unflatten(-1, (-1, width))  # a server may give this process some of the heads only
        if self.config.qk_norm:
            query_BSHD = nn.functional.rms_norm(query_BSHD, (width,), self.q_norm_weight, self.config.rms_norm_eps)
            query_BSHD = torch.einsum("bshd,hnd->bshn", query_BSHD, self.q_up)
        q_nope, q_rot = query_BSHD.transpose(1, 2).split([self.nope_dim, self.rope_dim], dim=-1)
        return torch.cat([q_nope, rotate(q_rot, rotary)], dim=-1)

    def expand_kv(self, kv_nope: torch.Tensor, k_rot: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents and shared keys → keys [B, H, T, N + P] and values [B, H, T, V] of every head."""
        up = self.kv_b_proj(kv_nope.squeeze(1)).unflatten(-1, (-1, self.nope_dim + self.value_dim)).transpose(1, 2)
        k_nope, value = up.split([self.nope_dim, self.value_dim], dim=-1)
        return torch.cat([k_nope, k_rot.expand(-1, k_nope.shape[1], -1, -1)], dim=-1), value

    def absorbs(self, length: int, total: int, mask: torch.Tensor | None) -> bool:
        """Whether the absorbed path takes fewer multiplications for `length` queries against `total` keys.

        Per head, expanded: total * R (N + V) to expand every key once, and length * total * (N + P + V) to attend.
        Absorbed: length * R (N + V) to map queries and outputs, and length * total * (2 R + P) to attend. With nothing
        cached the two maps cost the same and attending decides; with a long cache the break-even is at
        R (N + V) / (2 R - N - V) queries (171 for R 512 and N = V = 128).
        """
        if self.training or self.config._attn_implementation not in ("sdpa", "eager", "regear_rows"):
            return False  # the other kernels take no keys this wide, or no mask
        if mask is None and length > 1:
            return False  # the kernel knows what is causal, and only for queries as they are
        heads = self.nope_dim + self.value_dim
        return length * total * (2 * self.rank - heads) < (total - length) * self.rank * heads

    def absorbed(
        self,
        query_BHSD: torch.Tensor,
        kv_nope: torch.Tensor,
        k_rot: torch.Tensor,
        mask: torch.Tensor | None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend to the latents themselves: output [B, S, H, V], and the weights [B, H, S, T] if there are any.

        All heads share one key, so heads stand beside the queries of a single head.
        """
        batch, heads, length, _ = query_BHSD.shape
        up_k, up_v = self.kv_b_proj.weight.unflatten(0, (heads, -1)).split([self.nope_dim, self.value_dim], dim=1)
        q_nope, q_rot = query_BHSD.split([self.nope_dim, self.rope_dim], dim=-1)
        query = torch.cat([q_nope @ up_k, q_rot], dim=-1).reshape(batch, 1, heads * length, -1)
        if mask is not None and length > 1:
            mask = mask.expand(-1, heads, -1, -1).reshape(mask.shape[0], 1, heads * length, -1)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        key = torch.cat([kv_nope, k_rot], dim=-1)
        mixed, weights = attend(self, query, key, kv_nope, mask, scaling=self.scaling, is_causal=False, **kwargs)
        mixed = mixed.reshape(batch, heads, length, self.rank)
        output = (mixed @ up_v.transpose(1, 2)).transpose(1, 2)
        return output, None if weights is None else weights.reshape(batch, heads, length, -1)


def experts(config: RegearMlaConfig) -> nn.Module:
    """Qwen3-MoE's routed MLP; checkpoints keep each expert's matrices apart, transformers joins them on loading."""
    from transformers import conversion_mapping as mapping
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    rules = mapping.get_checkpoint_conversion_mapping("qwen3_moe")
    mapping.register_checkpoint_conversion_mapping(config.model_type, rules, overwrite=True)
    return Qwen3MoeSparseMoeBlock(config)


class RegearMlaDecoderLayer(LlamaDecoderLayer):
    """A layer of the source around latent attention."""

    def __init__(self, config: RegearMlaConfig, layer_idx: int) -> None:
        super(LlamaDecoderLayer, self).__init__()
        self.hidden_size, self.post_norm = config.hidden_size, config.post_norm
        attention = RegearMlaDecoupledAttention if config.rope_mode == "decoupled" else RegearMlaAttention
        self.self_attn = attention(config, layer_idx)
        self.mlp = experts(config) if layer_idx in (config.expert_layers or ()) else LlamaMLP(config)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        other = "post_feedforward_layernorm" if self.post_norm else "input_layernorm"
        setattr(self, other, LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps))

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        if not self.post_norm:
            return super().forward(hidden_states, **kwargs)
        attended, _ = self.self_attn(hidden_states, **kwargs)
        hidden_states = hidden_states + self.post_attention_layernorm(attended)
        return hidden_states + self.post_feedforward_layernorm(self.mlp(hidden_states))


class RegearMlaPreTrainedModel(LlamaPreTrainedModel):
    """Capabilities: keys are rebuilt from the cache, so kernels that want fixed key/value pages are out.

    Only decoupled layers compile as one graph: exact ones ask the cache for its length.
    """

    config_class = RegearMlaConfig
    config: RegearMlaConfig
    _no_split_modules = ["RegearMlaDecoderLayer"]  # noqa: RUF012
    _supports_flash_attn = False
    _supports_flex_attn = False
    _can_compile_fullgraph = False
    _can_record_outputs = {"hidden_states": RegearMlaDecoderLayer, "attentions": LatentAttention}  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if getattr(module, "variance_epsilon", None) == self.config.latent_norm_eps:
            init.constant_(module.weight, self.config.latent_norm_eps**0.5)
        if isinstance(module, RegearMlaDecoupledAttention) and module.config.qk_norm:
            init.ones_(module.q_norm_weight)
            init.normal_(module.q_up, std=module.config.source_head_dim**-0.5)
        if type(module).__name__ in ("Qwen3MoeExperts", "Qwen3MoeTopKRouter"):
            for parameter in module.parameters(recurse=False):
                init.normal_(parameter, mean=0.0, std=self.config.initializer_range)

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True


class RegearMlaModel(RegearMlaPreTrainedModel, LlamaModel):
    """The decoder; with exact RoPE it also works out where every cached key stands, to rotate it."""

    def __init__(self, config: RegearMlaConfig) -> None:
        super(LlamaModel, self).__init__(config)
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(RegearMlaDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = RegearMlaRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self._can_compile_fullgraph = config.rope_mode == "decoupled"
        self.post_init()

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None, **kwargs
    ):
        if self.config.rope_mode == "decoupled":
            return super().forward(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, **kwargs)
        new = input_ids if input_ids is not None else inputs_embeds
        if new is None:
            raise ValueError("give input_ids or inputs_embeds")
        past = int(past_key_values.get_seq_length()) if past_key_values is not None else 0
        if position_ids is None:
            position_ids = torch.arange(past, past + new.shape[1], device=new.device).unsqueeze(0)
        if getattr(past_key_values, "slots_are_positions", False):
            key_positions = torch.arange(past + new.shape[1], device=new.device).unsqueeze(0)
        else:
            key_positions = self.key_positions(position_ids, attention_mask, past)
        kwargs["key_rotary"] = self.rotary_emb(self.norm.weight, key_positions)
        return super().forward(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, **kwargs)

    @staticmethod
    def key_positions(position_ids: torch.Tensor, attention_mask: torch.Tensor | None, past: int) -> torch.Tensor:
        """Positions of all keys, [B, T]; the cached ones are counted back from the newest query.

        With a [B, T] padding mask the count leaves pads out, so left- and right-padded batches both come out right.
        """
        if past == 0:
            return position_ids
        total = past + position_ids.shape[1]
        if attention_mask is not None and attention_mask.dim() == 2 and attention_mask.shape[1] == total:
            count = attention_mask.long().cumsum(-1)
        else:
            count = torch.arange(total, device=position_ids.device).unsqueeze(0)
        return (count + position_ids[:, -1:] - count[:, -1:]).clamp(min=0)


class RegearMlaForCausalLM(RegearMlaPreTrainedModel, LlamaForCausalLM):
    """The decoder with its language-model head."""

    def __init__(self, config: RegearMlaConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)
        self.model = RegearMlaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._can_compile_fullgraph = config.rope_mode == "decoupled"
        self.post_init()


__all__ = ["RegearMlaConfig", "RegearMlaForCausalLM", "RegearMlaModel"]
