"""Keys and values of many texts of different lengths, each in a row of its own that can be cut back.

A row's tokens lie from slot 0 on, so that a token's slot is its position. Rows 0 to n − 1 are in use: a row that ends
is overwritten by the last one. Cutting a row back is free: what lies behind a row's length is masked, and overwritten
by what comes next.

Shape letters: N rows of a pass, S slots, H heads, Q new tokens of a row, T tokens read, D width.
"""

from typing import Any

import numpy as np
import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from regear.core.errors import IncompatibleModel


class Pass:
    """One forward pass: rows [first, first + N), where each row's new tokens start, and how many there are at most.

    Args:
        starts: tokens each row holds already.
        width: Q, new tokens of a row, padded.
        device: where the model is.
    """

    def __init__(self, first: int, starts: list[int], width: int, device: torch.device) -> None:
        self.first, self.count, self.width = first, len(starts), width
        self.total = max(starts) + width  # T
        self.level = min(starts) == max(starts)
        self.start = starts[0] if self.level else -1
        self.starts = np.array(starts, np.int64)
        self.starts_N = torch.tensor(starts, device=device)
        self.positions_NQ = self.starts_N.unsqueeze(1) + torch.arange(width, device=device)

    def mask(self) -> torch.Tensor | None:
        """Which slots each new token may read, bool [N, 1, Q, T]: those up to its own. None where it may read all."""
        if self.level and self.width == 1:
            return None
        slots = torch.arange(self.total, device=self.positions_NQ.device)
        return (slots <= self.positions_NQ.unsqueeze(2)).unsqueeze(1)


class RowLayer(DynamicLayer):
    """One layer's keys and values, [S, H, slots, D]; `plan` says which rows the current pass writes and reads."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.plan: Pass | None = None
        self.rows = self.slots = 0

    def reserve(self, rows: int, slots: int, live: int) -> None:
        """Hold so many rows of so many slots; of what is held, the first `live` rows stay."""
        if (rows, slots) == (self.rows, self.slots):
            return
        self.rows, self.slots = rows, slots
        if self.is_initialized:
            self.keys, self.values = self._moved(self.keys, live), self._moved(self.values, live)

    def _moved(self, old: torch.Tensor, live: int) -> torch.Tensor:
        new = old.new_zeros(self.rows, old.shape[1], self.slots, old.shape[3])
        rows, shared = min(live, len(old)), min(self.slots, old.shape[2])
        new[:rows, :, :shared] = old[:rows, :, :shared]
        return new

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Take the widths of the first keys and values."""
        self.dtype, self.device = key_states.dtype, key_states.device
        # Zeros: a masked slot is multiplied by 0, and what memory held before may be NaN.
        self.keys, self.values = (
            x.new_zeros(self.rows, x.shape[1], self.slots, x.shape[3]) for x in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new tokens [N, H, Q, D] where they belong; every slot of these rows, [N, H, T, D], as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.plan is not None
        keys, values = write(self.keys, key_states, self.plan), write(self.values, value_states, self.plan)
        return keys, values

    def get_seq_length(self) -> int:
        """Slots that were read before this pass; models take it for the number of earlier tokens."""
        return 0 if self.plan is None else self.plan.total - self.plan.width


def write(held: torch.Tensor, new: torch.Tensor, plan: Pass) -> torch.Tensor:
    """Put new [N, H, Q, D] into held [S, H, slots, D]; returns the rows' view [N, H, T, D]."""
    rows = held[plan.first : plan.first + plan.count]
    if not new.shape[-1]:
        return rows[:, :, : plan.total]
    if plan.level:
        rows[:, :, plan.start : plan.start + plan.width] = new
    else:
        index = plan.positions_NQ[:, None, :, None].expand(new.shape)
        rows.scatter_(2, index, new)
    return rows[:, :, : plan.total]


class RowCache(Cache):
    """The cache of an engine, as transformers' models take it."""

    slots_are_positions = True  # read by models that rotate what they cached

    def __init__(self, layers: int) -> None:
        self.held = [RowLayer() for _ in range(layers)]
        super().__init__(layers=list(self.held))

    @classmethod
    def fits(cls, cache: Cache) -> bool:
        """Whether a model whose own cache is this can use rows instead: all layers attend to everything."""
        return all(type(layer) is DynamicLayer for layer in cache.layers)

    def reserve(self, rows: int, slots: int, live: int) -> None:
        """Hold so many rows of so many slots; of what is held, the first `live` rows stay."""
        for layer in self.held:
            layer.reserve(rows, slots, live)

    def begin(self, plan: Pass) -> None:
        """The rows that the next forward pass is about."""
        for layer in self.held:
            layer.plan = plan

    def copy(self, source: int, target: int, length: int) -> None:
        """Row `target` begins as the first `length` tokens of row `source`."""
        for layer in self.held:
            if layer.is_initialized and length:
                for held in (layer.keys, layer.values):
                    held[target, :, :length] = held[source, :, :length]


def row_cache(config: Any, own: Cache) -> RowCache:
    """Rows for a model whose own cache is `own`.

    Raises:
        IncompatibleModel: some layers keep a window or a state.
    """
    if not RowCache.fits(own):
        names = sorted({type(layer).__name__ for layer in own.layers if type(layer) is not DynamicLayer})
        raise IncompatibleModel(f"{config.model_type} keeps {', '.join(names)}; rows hold full attention only")
    return RowCache(len(own.layers))
