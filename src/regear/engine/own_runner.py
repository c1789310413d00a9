"""Any model that goes on from transformers' own cache: one cache a text, one forward pass a text.

Nothing is padded, so that no recurrent state reads what is not text. Cutting a text back puts back the cache of before
the pass and reads again what stands of it.
"""

import copy
import inspect
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from regear.core.errors import IncompatibleModel

Array = npt.NDArray[Any]

REPLACED = (  # layers whose keys and values are replaced by longer ones, never written to; states are
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
    LinearAttentionAndFullAttentionLayer,
)
PROBE = (6, 11, 16)  # tokens of a probe: read at once, then one at a time, and in all


class OwnCacheRunner:
    """Models with any cache of transformers; exact before fast.

    Raises:
        IncompatibleModel: the model keeps its state elsewhere.
    """

    shares = False
    states: torch.Tensor | None = None

    def __init__(self, model: Any) -> None:
        self.model, self.device, self.name = model, model.device, type(model).__name__
        self.known = set(inspect.signature(model.forward).parameters)
        self.rows: list[Cache | None] = []
        self.before: list[Cache | None] = []
        self.pending: list[torch.Tensor] = []
        self.bytes_per_token, self.bytes_per_row = self._bytes()
        self.continues = self._continues()

    @torch.no_grad()
    def _continues(self) -> bool:
        """Whether reading many tokens after others is reading them one at a time, and both as in a whole text."""
        if clamped(self.model):
            return False
        size = len(self.model.get_input_embeddings().weight)
        tokens = (torch.arange(PROBE[-1], device=self.device).unsqueeze(0) * 3 + 1) % size
        whole = self._forward(tokens, None, 0)
        close = True
        for ends in ([PROBE[0], PROBE[-1]], list(range(PROBE[0], PROBE[1]))):
            cache, start = self._empty(), 0
            for end in ends:
                found, expected = self._forward(tokens[:, start:end], cache, start), whole[:, start:end]
                close = close and bool((found - expected).abs().max() <= tolerance(self.model) * whole.abs().max())
                start = end
        return close

    def _empty(self) -> Cache:
        return DynamicCache(config=self.model.config)

    def _forward(self, tokens: torch.Tensor, cache: Cache | None, start: int, wanted: Any = None) -> torch.Tensor:
        """Scores [1, Q, V], or those after the `wanted` places only."""
        inputs: dict[str, Any] = {"input_ids": tokens, "use_cache": cache is not None}
        inputs["past_key_values" if "past_key_values" in self.known else "cache_params"] = cache
        if "position_ids" in self.known:
            inputs["position_ids"] = torch.arange(start, start + tokens.shape[1], device=self.device).unsqueeze(0)
        if wanted is not None and "logits_to_keep" in self.known:
            inputs["logits_to_keep"] = wanted
            wanted = None
        logits: torch.Tensor = self.model(**inputs).logits
        return logits if wanted is None else logits[:, wanted]

    @torch.no_grad()
    def _bytes(self) -> tuple[int, int]:
        """Bytes of a token in the cache, windows as if they kept everything, and of a text's states.

        Both twice: what was before a pass is held until the pass stands.
        """
        cache = self._empty()
        try:
            self._forward(torch.zeros(1, 1, dtype=torch.long, device=self.device), cache, 0)
        except (AttributeError, TypeError, ValueError) as error:
            raise IncompatibleModel(f"{self.name} takes no cache of transformers' common kind: {error}") from error
        layers: list[Any] = cache.layers
        token = sum(size(x) for layer in layers for x in (getattr(layer, "keys", None), getattr(layer, "values", None)))
        row = sum(size(x) for layer in layers for x in states(layer))
        linear = [layer for layer in layers if isinstance(layer, LinearAttentionCacheLayerMixin)]
        if not all(states(layer) for layer in linear) or not token + row:
            raise IncompatibleModel(
                f"{self.name} keeps its state outside the cache, one for all texts; it cannot be run here"
            )
        return max(1, 2 * token), 2 * row

    def reserve(self, rows: int, slots: int, live: int) -> None:
        """Room for so many rows; the first `live` stay."""
        held = self.rows[:live]
        self.rows = held + [None] * (rows - len(held))

    @torch.no_grad()
    def read(self, first: int, tokens_NQ: Array, counts_N: Array, starts_N: Array, wanted_NQ: Array) -> torch.Tensor:
        """Scores [R, V], of one row after the other."""
        self.pending = [
            torch.from_numpy(row[:n].astype(np.int64)).to(self.device)
            for row, n in zip(tokens_NQ, counts_N, strict=True)
        ]
        self.starts = starts_N.tolist()
        self.before = []
        found = []
        for row, (tokens, start, wanted) in enumerate(zip(self.pending, self.starts, wanted_NQ, strict=True), first):
            cache = self.rows[row] if start else None
            cache = self._empty() if cache is None else cache
            self.before.append(snapshot(cache) if len(tokens) > 1 else None)
            self.rows[row] = cache
            places = torch.from_numpy(np.flatnonzero(wanted[: len(tokens)])).to(self.device)
            found.append(self._read_row(tokens, cache, start, places))
        return torch.cat(found)

    def _read_row(self, tokens: torch.Tensor, cache: Cache, start: int, wanted: torch.Tensor) -> torch.Tensor:
        """Scores after the wanted places of one row, [R, V]."""
        if self.continues or not start:
            return self._forward(tokens.unsqueeze(0), cache, start, wanted)[0]
        steps = [self._forward(tokens[i : i + 1].unsqueeze(0), cache, start + i)[0] for i in range(len(tokens))]
        return torch.cat(steps)[wanted]

    @torch.no_grad()
    def keep(self, first: int, kept_N: Array) -> None:
        """Rows that lose tokens go back to before the pass and read again what stands."""
        nothing = torch.zeros(0, dtype=torch.long, device=self.device)
        for i, kept in enumerate(kept_N.tolist()):
            if kept < len(self.pending[i]):
                cache = self.before[i]
                assert cache is not None, "a pass of one token keeps it"
                self.rows[first + i] = cache
                if kept:
                    self._read_row(self.pending[i][:kept], cache, self.starts[i], nothing)
        self.before = []

    def copy(self, source: int, target: int, length: int) -> None:
        """Row `target` takes the place of row `source`, as a whole."""
        self.rows[target] = self.rows[source]


def states(layer: Any) -> list[torch.Tensor]:
    """What a layer keeps of a text whatever its length."""
    if not isinstance(layer, LinearAttentionCacheLayerMixin):
        return []
    held = [*layer.conv_states.values(), *layer.recurrent_states.values()]
    return [x for x in held if x is not None]


def size(x: torch.Tensor | None) -> int:
    """Bytes."""
    return 0 if x is None else x.numel() * x.element_size()


def snapshot(cache: Cache) -> Cache:
    """A copy that stays as it is while the cache goes on."""
    found = copy.copy(cache)
    found.layers = [_snapshot_layer(layer) for layer in cache.layers]
    return found


def _snapshot_layer(layer: Any) -> Any:
    if type(layer) not in REPLACED:
        return copy.deepcopy(layer)
    found = copy.copy(layer)
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        for name, value in vars(layer).items():
            if isinstance(value, dict):
                held = {key: x.clone() if isinstance(x, torch.Tensor) else x for key, x in value.items()}
                setattr(found, name, held)
    return found


def clamped(model: Any) -> bool:
    """Whether steps of time are clamped, which transformers does for many tokens and not for one."""
    limits = [getattr(module, "time_step_limit", None) for module in model.modules()]
    return any(limit is not None and tuple(limit) != (0.0, float("inf")) for limit in limits)


def tolerance(model: Any) -> float:
    """A relative error that rounding stays below and a wrong state does not; states are float32 in wider models too."""
    return float(max(torch.finfo(model.dtype).eps, torch.finfo(torch.float32).eps) ** 0.5)
