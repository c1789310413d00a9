"""A KV cache that stores 16-bit, 8-bit or 4-bit numbers, for every model that keeps one through transformers.

The scheme is that of KIVI (Liu et al. 2024), which is hard to beat without calibration: what was rotated by position
has a few channels far from zero, so keys share a scale along a channel, over 64 tokens; values share one along
a token, after a Walsh-Hadamard rotation. Latents and the rotated keys beside them (MLA) are stored as keys are.
The newest tokens (up to 64) wait in 16 bits until their block is full, and so do the first 4 for good: every later
token attends to them, and their huge keys would spoil a block.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from regear.core.errors import IncompatibleModel, RecipeError
from regear.core.recipe import closest
from regear.ops.kvquant import Packed, dequantise, group_width, quantise, spread_out

BLOCK = 64
FIRST = 4
KINDS: dict[str, int] = {"bf16": 16, "int8": 8, "int4": 4}


class Shelf:
    """Keys or values of one layer, [B, H, T, W] in, the same shape out as the numbers that were stored.

    In `first` and `recent` lie 16-bit tokens; in `packed`, blocks of `BLOCK` tokens, as [B, H, N, W] groups of BLOCK
    numbers if `by_channel`, else as [B, H, N, BLOCK, groups].
    """

    def __init__(self, like: torch.Tensor, bits: int, *, by_channel: bool) -> None:
        self.width, self.by_channel = like.shape[-1], by_channel
        self.bits = bits if self.width else 16
        self.dtype = like.dtype if like.element_size() <= 2 else torch.bfloat16
        self.first = self.recent = like[:, :, :0].to(self.dtype)
        self.packed: Packed | None = None

    def tensors(self) -> list[torch.Tensor]:
        """All that is stored."""
        return [self.first, self.recent, *(self.packed or ())]

    def __len__(self) -> int:
        blocks = self.packed.scale.shape[2] if self.packed else 0
        return self.first.shape[2] + blocks * BLOCK + self.recent.shape[2]

    def append(self, new: torch.Tensor) -> None:
        """Store new tokens; blocks that were full before are packed now, so a query reads its own block in 16 bits."""
        self.settle()
        room = FIRST - self.first.shape[2]
        new = new.to(self.dtype)
        self.first = torch.cat([self.first, new[:, :, :room]], dim=2)
        self.recent = torch.cat([self.recent, new[:, :, room:]], dim=2)

    def settle(self) -> None:
        """Pack every full block."""
        full = self.recent.shape[2] // BLOCK * BLOCK
        if self.bits == 16 or not full:
            return
        try:
            packed = quantise(self._groups(self.recent[:, :, :full].unflatten(2, (-1, BLOCK))), self.bits)
        except ValueError as error:
            raise IncompatibleModel(f"the cache of this model cannot be stored in {self.bits} bits: {error}") from None
        if self.packed:
            packed = Packed(*(torch.cat(pair, dim=2) for pair in zip(self.packed, packed, strict=True)))
        self.packed, self.recent = packed, self.recent[:, :, full:].clone()

    def _groups(self, block: torch.Tensor) -> torch.Tensor:
        """[B, H, N, BLOCK, W] → groups along the last dimension."""
        if self.by_channel:
            return block.transpose(-1, -2)
        return spread_out(block).unflatten(-1, (-1, group_width(self.width)))

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        """Every token, [B, H, T, W]."""
        if self.packed is None:
            return torch.cat([self.first, self.recent], dim=2).to(dtype)
        group = BLOCK if self.by_channel else group_width(self.width)
        found = dequantise(self.packed, self.bits, group)
        found = found.transpose(-1, -2) if self.by_channel else spread_out(found.flatten(-2))
        return torch.cat([self.first.to(dtype), found.flatten(2, 3).to(dtype), self.recent.to(dtype)], dim=2)

    def crop(self, count: int) -> None:
        """Forget the newest `count` tokens; a packed block that is cut goes back to 16 bits."""
        if count <= self.recent.shape[2]:
            self.recent = self.recent[:, :, : self.recent.shape[2] - count]
            return
        kept = self.read(torch.float32)[:, :, : max(0, len(self) - count)]
        self.packed, self.first, self.recent = None, self.first[:, :, :0], self.recent[:, :, :0]
        self.append(kept)

    def pick(self, choose: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Replace every tensor by its rows that `choose` returns."""
        self.first, self.recent = choose(self.first), choose(self.recent)
        self.packed = Packed(*map(choose, self.packed)) if self.packed else None


class StoredLayer(DynamicLayer):
    """One layer's cache, stored in `bits`; `latent`: what stands beside the keys is rotated by position too."""

    def __init__(self, bits: int, *, latent: bool = False) -> None:
        super().__init__()
        self.bits, self.latent = bits, latent
        self.shelves: list[Shelf] = []

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.shelves = [
            Shelf(key_states, self.bits, by_channel=True),
            Shelf(value_states, self.bits, by_channel=self.latent),
        ]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store, and return all tokens as they were stored."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        for shelf, new in zip(self.shelves, (key_states, value_states), strict=True):
            shelf.append(new)
        keys, values = (shelf.read(self.dtype) for shelf in self.shelves)
        return keys, values

    def get_seq_length(self) -> int:
        """Tokens held."""
        return len(self.shelves[0]) if self.shelves else 0

    def stored_bytes(self) -> int:
        """Bytes of all tensors held, full blocks packed."""
        for shelf in self.shelves:
            shelf.settle()
        return sum(t.numel() * t.element_size() for shelf in self.shelves for t in shelf.tensors())

    def reset(self) -> None:
        """Forget everything."""
        self.shelves, self.is_initialized = [], False

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest −`tokens_to_remove` tokens, as transformers counts them: a negative number.

        Raises:
            ValueError: a positive number.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"found crop({tokens_to_remove}); wanted a negative number, the tokens to remove")
        for shelf in self.shelves:
            shelf.crop(-tokens_to_remove)

    def _pick(self, choose: Callable[[torch.Tensor], torch.Tensor]) -> None:
        for shelf in self.shelves:
            shelf.pick(choose)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Rows in another order, for beam search."""
        self._pick(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times."""
        self._pick(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Only these rows."""
        self._pick(lambda x: x[indices])


def check_kind(kind: str | None) -> None:
    """Refuse a cache kind that is not known.

    Raises:
        RecipeError: not one of `KINDS`.
    """
    if kind is not None and kind not in KINDS:
        raise RecipeError(f"unknown cache kind {kind!r}{closest(kind, KINDS)}; known: {', '.join(KINDS)}")


def kv_cache(config: Any, kind: str | None) -> Cache:
    """An empty cache for a model of this config: transformers' own for None, else one that stores `kind`.

    Raises:
        RecipeError: an unknown kind.
        IncompatibleModel: a model with sliding-window or recurrent layers.
    """
    check_kind(kind)
    plain = DynamicCache(config=config)
    if kind is None:
        return plain
    others = sorted({type(layer).__name__ for layer in plain.layers if type(layer) is not DynamicLayer})
    if others:
        raise IncompatibleModel(f"the cache has {others[0]} layers; only full-attention layers are stored as {kind}")
    latent = is_latent(config)
    return Cache(layers=[StoredLayer(KINDS[kind], latent=latent) for _ in plain.layers])


def parts(length: int, kind: str | None, chunk: int | None = None) -> list[slice]:
    """How to feed a text so that every query reads what it would read in decoding: one block at a time for integers.

    A query then finds the earlier blocks packed, and its own block in 16 bits up to itself. Other kinds take
    `chunk` tokens at a time, or all at once.
    """
    if kind is None or KINDS[kind] == 16:
        starts = list(range(0, length, chunk or length))
    else:
        starts = [0, *range(FIRST + BLOCK, length, BLOCK)]
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], length], strict=True)]


def is_latent(config: Any) -> bool:
    """Whether the cache holds latents (any MLA) and not keys and values."""
    return bool(getattr(config, "kv_lora_rank", None) or getattr(config, "latent_ranks", None))


def kv_bytes_per_token(shapes: list[tuple[tuple[int, int], tuple[int, int]]], kind: str, *, latent: bool) -> float:
    """Bytes that one more token takes once its block is packed, by formula.

    Args:
        shapes: per layer, (heads, width) of what is cached as keys and as values.
        kind: of the cache.
        latent: as `is_latent`.
    """
    bits = KINDS[kind]
    total = 0.0
    for keys, values in shapes:
        total += _bytes(*keys, bits, by_channel=True) + _bytes(*values, bits, by_channel=latent)
    return total


def _bytes(heads: int, width: int, bits: int, *, by_channel: bool) -> float:
    if bits == 16 or not width:
        return heads * width * 2
    if by_channel:  # a scale and a least value, two bytes each, for every channel of a block
        return heads * width * (bits / 8 + 4 / BLOCK)
    group = group_width(width)
    return heads * (width // group) * (-(-group * bits // 8) + 4)
