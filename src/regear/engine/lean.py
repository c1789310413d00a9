"""The decoder of Llama-like models in few operations, for passes over rows of a cache.

What a layer computes is what its module in transformers computes; what is left out is everything else a general module
does. Queries, keys and values are one product, gate and up another; queries and keys are rotated together. Made from
the modules of a loaded model, and used only where a probe shows the same states as theirs (`proven`).

Rows that read fewer tokens than others are padded for attention only: every other map sees the tokens alone.

Shape letters: N rows, Q new tokens of a row (padded), M tokens of all rows, D hidden width, H query heads, G key heads,
W head width.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from regear.engine.cache import Pass, RowCache, write
from regear.ops import int8
from regear.ops.int8 import Int8Linear
from regear.ops.linear import Linear, pack

Array = npt.NDArray[Any]

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "olmo2")


@dataclass
class Layer:
    """The maps and norms of one layer; a norm that the family does not have is None."""

    qkv: Any
    output: Any
    gate_up: Any
    down: Any
    before: tuple[torch.Tensor, torch.Tensor] | None
    after: tuple[torch.Tensor, torch.Tensor] | None
    heads: tuple[torch.Tensor, torch.Tensor] | None

    def norms(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Weights of all its norms."""
        return [pair for pair in (self.before, self.after, self.heads) if pair is not None]


class LeanDecoder:
    """The decoder of `model`; reads and writes a `RowCache`."""

    def __init__(self, model: Any, *, packed: bool) -> None:
        config, decoder = model.config, model.get_decoder()
        self.embed, self.norm, self.rotary = decoder.embed_tokens, decoder.norm.weight, decoder.rotary_emb
        self.eps = config.rms_norm_eps
        attention = decoder.layers[0].self_attn
        self.width, self.scaling = attention.head_dim, attention.scaling
        self.query_heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.layers = [self._layer(layer) for layer in decoder.layers]
        if packed:
            for layer in self.layers:
                for maps in (layer.qkv, layer.output, layer.gate_up, layer.down):
                    if isinstance(maps, nn.Module):  # some cannot be joined
                        pack(maps)

    def _layer(self, layer: Any) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        before = after = heads = None
        if hasattr(layer, "post_feedforward_layernorm"):
            after = layer.post_attention_layernorm.weight, layer.post_feedforward_layernorm.weight
        else:
            before = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        if hasattr(attention, "q_norm"):
            heads = attention.q_norm.weight, attention.k_norm.weight
        return Layer(
            joined([attention.q_proj, attention.k_proj, attention.v_proj]),
            attention.o_proj,
            joined([mlp.gate_proj, mlp.up_proj]),
            mlp.down_proj,
            before,
            after,
            heads,
        )

    def __call__(self, tokens_NQ: torch.Tensor, plan: Pass, cache: RowCache, counts_N: Array) -> torch.Tensor:
        """Last hidden states after the final norm, [M, D]; row n reads its first `counts[n]` tokens."""
        real_M = real_places(tokens_NQ, counts_N)
        positions, tokens = plan.positions_NQ.flatten(), tokens_NQ.flatten()
        if real_M is not None:
            positions, tokens = positions[real_M], tokens[real_M]
        cos, sin = self.rotary(self.norm, positions.unsqueeze(0))
        half = self.width // 2
        rotary = cos[0].unsqueeze(1), torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1).unsqueeze(1)
        if (mask := plan.mask()) is not None:
            mask = torch.zeros_like(mask, dtype=self.norm.dtype).masked_fill_(~mask, -torch.inf)
            mask = mask.repeat(1, 1, self.query_heads // self.key_heads, 1) if plan.width > 1 else mask
        x = self.embed(tokens)
        for layer, held in zip(self.layers, cache.held, strict=True):
            y = x if layer.before is None else self._normed(x, layer.before[0])
            y = self._attend(layer, y, plan, mask, rotary, held, real_M)
            x = x + (y if layer.after is None else self._normed(y, layer.after[0]))
            y = x if layer.before is None else self._normed(x, layer.before[1])
            gate, up = layer.gate_up(y).chunk(2, dim=-1)
            y = layer.down(silu(gate).mul_(up))
            x = x + (y if layer.after is None else self._normed(y, layer.after[1]))
        return self._normed(x, self.norm)

    def _normed(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, weight.shape, weight, self.eps)

    def _attend(
        self,
        layer: Layer,
        x: torch.Tensor,
        plan: Pass,
        mask: torch.Tensor | None,
        rotary: tuple[torch.Tensor, torch.Tensor],
        held: Any,
        real_M: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attention of one layer, [M, D] to [M, D]."""
        rows, length, share = plan.count, plan.width, self.query_heads // self.key_heads
        turned = (self.query_heads + self.key_heads) * self.width
        flat = layer.qkv(x)
        heads, value = flat[:, :turned], flat[:, turned:].unflatten(1, (-1, self.width))
        if layer.heads is not None:
            heads = self._normed_heads(heads, layer.heads)
        heads = heads.view(len(x), -1, self.width)
        cos, signed = rotary
        swapped = heads.view(len(x), -1, 2, self.width // 2).flip(2).view(heads.shape)
        heads = torch.addcmul(heads * cos, swapped, signed)
        heads, value = (_padded(part, plan, real_M) for part in (heads, value))
        query, key = heads[:, :, : self.query_heads], heads[:, :, self.query_heads :]
        if not held.is_initialized:
            held.lazy_initialization(key.transpose(1, 2), value.transpose(1, 2))
        keys, values = write(held.keys, key.transpose(1, 2), plan), write(held.values, value.transpose(1, 2), plan)
        query = query.view(rows, length, self.key_heads, share, self.width).permute(0, 2, 3, 1, 4)
        query = query.reshape(rows, self.key_heads, share * length, self.width)
        found = scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=self.scaling)
        found = found.view(rows, self.key_heads, share, length, self.width).permute(0, 3, 1, 2, 4)
        found = found.reshape(rows * length, -1)
        result: torch.Tensor = layer.output(found if real_M is None else found[real_M])
        return result

    def _normed_heads(self, heads: torch.Tensor, weights: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Queries and keys normed: each head by itself, or all of a token's together, by the width of the weights."""
        query, key = heads.split([self.query_heads * self.width, self.key_heads * self.width], dim=-1)
        parts = [
            self._normed(part.unflatten(-1, (-1, len(weight))), weight).flatten(-2)
            for part, weight in zip((query, key), weights, strict=True)
        ]
        return torch.cat(parts, dim=-1)


def real_places(tokens_NQ: torch.Tensor, counts_N: Array) -> torch.Tensor | None:
    """Which of the N · Q places hold a token, in order; None is all."""
    real = np.arange(tokens_NQ.shape[1]) < counts_N[:, None]
    return None if real.all() else torch.from_numpy(np.flatnonzero(real)).to(tokens_NQ.device)


def _padded(part_MHW: torch.Tensor, plan: Pass, real_M: torch.Tensor | None) -> torch.Tensor:
    """Tokens in their places, [N, Q, H, W]; zeros in those that hold none."""
    if real_M is not None:
        places = part_MHW.new_zeros(plan.count * plan.width, *part_MHW.shape[1:])
        part_MHW = places.index_copy_(0, real_M, part_MHW)
    return part_MHW.view(plan.count, plan.width, *part_MHW.shape[1:])


def joined(maps: list[Any]) -> Any:
    """Several maps of one input as one."""
    if all(isinstance(part, Int8Linear) for part in maps) and (whole := int8.joined(maps)):
        return whole
    if not all(isinstance(part, nn.Linear) for part in maps):
        return lambda x: torch.cat([part(x) for part in maps], dim=-1)
    weight = torch.cat([part.weight.detach() for part in maps])
    found = Linear(weight.shape[1], weight.shape[0], bias=maps[0].bias is not None, device="meta")
    found.weight = nn.Parameter(weight, requires_grad=False)
    if maps[0].bias is not None:
        found.bias = nn.Parameter(torch.cat([part.bias.detach() for part in maps]), requires_grad=False)
    return found


def fits(model: Any) -> bool:
    """Whether a model is of a family that `LeanDecoder` is written for."""
    config = model.config
    return (
        config.model_type in FAMILIES
        and config.hidden_act == "silu"
        and not getattr(config, "use_sliding_window", False)
        and getattr(config, "sliding_window", None) is None
    )
