"""Multi-head latent attention with exact RoPE: the cache holds one latent per token, keys are rebuilt and rotated.

This one file travels inside every `regear_mla` checkpoint and needs torch and transformers only.

Per layer, with x the normed hidden state:

    c = W_a x                                    cached, r floats per token
    k = rotate(k_norm(W_k c[:r_k] + b_k))        rebuilt from the latents at every step
    v = W_v c[r - r_v:] + b_v                    prefill: rebuilt; decode: absorbed, sum_t p_t c_t first

A joint latent has r_k = r_v = r; separate latents have r_k + r_v = r; anything between shares the middle.

Shape letters: B batch, S new tokens, T cached and new tokens, H query heads, G key/value heads, D head width.
"""

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
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
    """A Llama-shaped config whose `latent_ranks` gives `[r, r_k, r_v]` for every layer."""

    model_type = "regear_mla"
    base_model_tp_plan = {}  # noqa: RUF012 - transformers' own convention; one latent cannot be split by heads

    latent_ranks: list | None = None
    q_bias: bool = False
    kv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False
    rope_mode: str = "exact"

    def validate_architecture(self):
        """Heads may be of any width; every layer needs its ranks."""
        if self.latent_ranks is None:
            return  # transformers builds a default config to tell what was changed; no model is built from one
        if len(self.latent_ranks) != self.num_hidden_layers:
            raise ValueError(f"latent_ranks must list [r, r_k, r_v] for each of {self.num_hidden_layers} layers")
        for r, r_k, r_v in self.latent_ranks:
            if not (0 < r_k <= r and 0 < r_v <= r <= r_k + r_v):
                raise ValueError(f"latent ranks [{r}, {r_k}, {r_v}]: wanted max(r_k, r_v) <= r <= r_k + r_v")


def rotate(x_BNTD: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Apply RoPE in the half-split layout; `rotary` is (cos, sin), each [B, T, D]."""
    cos, sin = (part.unsqueeze(1) for part in rotary)
    return x_BNTD * cos + rotate_half(x_BNTD) * sin


class RegearMlaAttention(nn.Module):
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
            self.q_norm = LlamaRMSNorm(self.head_dim, eps=config.rms_norm_eps)
            self.k_norm = LlamaRMSNorm(self.head_dim, eps=config.rms_norm_eps)

    def heads(self, flat: torch.Tensor) -> torch.Tensor:
        """[B, T, N * D] → [B, N, T, D]."""
        return flat.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

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
        query_BHSD = self.heads(self.q_proj(hidden_states))
        latent = self.kv_a_proj(hidden_states).unsqueeze(1)
        if past_key_values is not None:
            latent, _ = past_key_values.update(latent, latent[..., :0], self.layer_idx)
        latent = latent.squeeze(1)  # [B, T, r]
        key_BGTD = self.heads(self.k_b_proj(latent[..., : self.key_rank]))
        if self.config.qk_norm:
            query_BHSD, key_BGTD = self.q_norm(query_BHSD), self.k_norm(key_BGTD)
        query_BHSD = rotate(query_BHSD, position_embeddings)
        key_BGTD = rotate(key_BGTD, self.fit(key_rotary or position_embeddings, latent.shape[1]))
        value_latent = latent[..., self.rank - self.value_rank :]
        if length == 1 and not self.training and not kwargs.get("output_attentions"):
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


class RegearMlaDecoderLayer(LlamaDecoderLayer):
    """A Llama layer around latent attention."""

    def __init__(self, config: RegearMlaConfig, layer_idx: int) -> None:
        super(LlamaDecoderLayer, self).__init__()
        self.hidden_size = config.hidden_size
        self.self_attn = RegearMlaAttention(config, layer_idx)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class RegearMlaPreTrainedModel(LlamaPreTrainedModel):
    """Capabilities: keys are rebuilt from the cache, so kernels that want fixed key/value pages are out."""

    config_class = RegearMlaConfig
    config: RegearMlaConfig
    _no_split_modules = ["RegearMlaDecoderLayer"]  # noqa: RUF012
    _supports_flash_attn = False
    _supports_flex_attn = False
    _can_compile_fullgraph = False
    _can_record_outputs = {"hidden_states": RegearMlaDecoderLayer, "attentions": RegearMlaAttention}  # noqa: RUF012


class RegearMlaModel(RegearMlaPreTrainedModel, LlamaModel):
    """The decoder; beyond Llama's it works out where every cached key stands, to rotate it."""

    def __init__(self, config: RegearMlaConfig) -> None:
        super(LlamaModel, self).__init__(config)
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(RegearMlaDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None, **kwargs
    ):
        new = input_ids if input_ids is not None else inputs_embeds
        if new is None:
            raise ValueError("give input_ids or inputs_embeds")
        past = int(past_key_values.get_seq_length()) if past_key_values is not None else 0
        if position_ids is None:
            position_ids = torch.arange(past, past + new.shape[1], device=new.device).unsqueeze(0)
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
        self.post_init()


__all__ = ["RegearMlaConfig", "RegearMlaForCausalLM", "RegearMlaModel"]
