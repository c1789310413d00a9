"""The decoder of Llama-like models in compiled code, on a CPU.

A layer of `LeanDecoder` is some thirty small operations of torch beside four products, and padded attention; here it is
four calls beside the products, and attention reads of every row as much as there is. Same maps, same probe before it is
used. With packed products (`ops.linear`) what a token gets is the same to the last bit whatever is read beside it.

Shape letters: N rows, Q new tokens of a row (padded), M tokens of all rows, D hidden width.
"""

from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from regear.engine.cache import Pass, RowCache
from regear.engine.lean import LeanDecoder, real_places

native: Any = None  # where it is not built, torch does the same in more steps
with suppress(ImportError):
    from regear import _native as native

Array = npt.NDArray[Any]

BLOCK = 64  # places whose angles are found at once
BY_LENGTH = ("dynamic", "longrope")  # kinds of RoPE whose angles depend on how long the text is


class Angles:
    """Cosines and sines of places, of any rotary module of transformers.

    They are kept, and found by blocks: torch rounds a cosine by what stands beside it, and a token's angles must not
    depend on that.
    """

    def __init__(self, rotary: Any, like: torch.Tensor) -> None:
        self.rotary, self.like = rotary, like
        self.fixed = getattr(rotary, "rope_type", None) not in BY_LENGTH
        self.cos = self.sin = like.new_empty(0, 0)

    def __call__(self, positions_M: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of every token, [M, W] each."""
        if not self.fixed:
            cos, sin = self._found(positions_M)
            return cos.contiguous(), sin.contiguous()
        if len(positions_M) and (last := int(positions_M.max())) >= len(self.cos):
            ends = range(0, max(last + 1, 2 * len(self.cos)), BLOCK)
            blocks = [self._found(torch.arange(start, start + BLOCK)) for start in ends]
            self.cos, self.sin = (torch.cat(part) for part in zip(*blocks, strict=True))
        return self.cos[positions_M], self.sin[positions_M]

    def _found(self, positions_M: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = self.rotary(self.like, positions_M.unsqueeze(0))
        return cos[0], sin[0]


class CompiledDecoder:
    """The maps and norms of `few`, which `fits`; reads and writes a `RowCache`."""

    def __init__(self, few: LeanDecoder) -> None:
        self.layers, self.embed, self.norm = few.layers, few.embed, few.norm
        self.angles = Angles(few.rotary, few.norm)
        self.query_heads, self.key_heads, self.width = few.query_heads, few.key_heads, few.width
        kind = native.Layers32 if self.norm.dtype == torch.float32 else native.Layers64
        self.ops = kind(self.query_heads, self.key_heads, self.width, few.scaling, few.eps)

    def __call__(self, tokens_NQ: torch.Tensor, plan: Pass, cache: RowCache, counts_N: Array) -> torch.Tensor:
        """Last hidden states after the final norm, [M, D]; row n reads its first `counts[n]` tokens."""
        places = real_places(tokens_NQ, counts_N)
        positions, tokens = plan.positions_NQ.flatten(), tokens_NQ.flatten()
        if places is not None:
            positions, tokens = positions[places], tokens[places]
        cos, sin = self.angles(positions)
        x = self.embed(tokens)
        normed, found = torch.empty_like(x), x.new_empty(len(x), self.query_heads * self.width)
        width, ops = x.shape[1], self.ops
        at_x, at_normed, at_found = x.data_ptr(), normed.data_ptr(), found.data_ptr()
        for held in cache.held:
            self._hold(held, x)
        ops.begin(
            plan.first,
            plan.starts,
            counts_N.astype(np.int64, copy=False),
            cache.held[0].keys.shape[2],
            torch.get_num_threads(),
            cos.data_ptr(),
            sin.data_ptr(),
        )
        gated: torch.Tensor | None = None
        y: torch.Tensor | None = None
        for layer, held in zip(self.layers, cache.held, strict=True):
            if layer.before is not None:
                self._add_norm(at_x, y, layer.before[0], at_normed, width)
            flat = layer.qkv(x if layer.before is None else normed)
            at_flat = flat.data_ptr()
            if layer.heads is not None:
                self._norm_heads(at_flat, layer.heads)
            ops.attend(at_flat, held.keys.data_ptr(), held.values.data_ptr(), at_found)
            y = layer.output(found)
            if layer.after is not None:
                ops.norm_add(at_x, y.data_ptr(), layer.after[0].data_ptr(), width)
            if layer.before is not None:
                self._add_norm(at_x, y, layer.before[1], at_normed, width)
            both = layer.gate_up(x if layer.before is None else normed)
            if gated is None:
                gated = both.new_empty(len(x), both.shape[1] // 2)
            ops.gate(both.data_ptr(), gated.data_ptr(), gated.shape[1])
            y = layer.down(gated)
            if layer.after is not None:
                ops.norm_add(at_x, y.data_ptr(), layer.after[1].data_ptr(), width)
                y = None
        self._add_norm(at_x, y, self.norm, at_normed, width)
        return normed

    def _add_norm(self, at_x: int, y: torch.Tensor | None, weight: torch.Tensor, at_found: int, width: int) -> None:
        if y is None:
            self.ops.norm(at_x, weight.data_ptr(), at_found, width)
        else:
            self.ops.add_norm(at_x, y.data_ptr(), weight.data_ptr(), at_found, width)

    def _norm_heads(self, at_qkv: int, weights: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Queries and keys: each head by itself, or all of a token's together, by the width of the weights."""
        for weight, first, heads in zip(
            weights, (0, self.query_heads), (self.query_heads, self.key_heads), strict=True
        ):
            self.ops.norm_heads(at_qkv, weight.data_ptr(), first, heads, len(weight) == self.width)

    def _hold(self, held: Any, x: torch.Tensor) -> None:
        if not held.is_initialized:
            like = x.new_empty(0, self.key_heads, 0, self.width)
            held.lazy_initialization(like, like)


def fits(decoder: LeanDecoder) -> bool:
    """Whether compiled code takes the tensors of this decoder: float32 or float64 on a CPU, without gaps."""
    weights = [decoder.norm, *(w for layer in decoder.layers for pair in layer.norms() for w in pair)]
    return native is not None and all(
        w.device.type == "cpu"
        and w.dtype in (torch.float32, torch.float64)
        and w.dtype == decoder.norm.dtype
        and w.is_contiguous()
        for w in weights
    )
