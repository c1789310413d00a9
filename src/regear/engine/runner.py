"""One forward pass over rows of a cache: new tokens in, scores after the wanted ones out.

Shape letters: N rows of a pass, Q new tokens of a row (padded), R wanted places, D hidden width, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from transformers import DynamicCache

from regear.core.errors import IncompatibleModel
from regear.engine import attention, compiled, lean
from regear.engine.cache import Pass, RowCache, row_cache
from regear.engine.compiled import CompiledDecoder
from regear.engine.lean import LeanDecoder
from regear.models.head import splits
from regear.ops.int8 import exact
from regear.ops.linear import adopt, pack

Array = npt.NDArray[Any]


class Runner(Protocol):
    """A model, and what it has read of every row."""

    bytes_per_token: int
    bytes_per_row: int
    """What a text takes whatever its length."""
    shares: bool
    """Whether a row can begin as part of another."""
    states: torch.Tensor | None
    """Last hidden states at the wanted tokens of the last pass, [R, D], where the model shows them."""

    def reserve(self, rows: int, slots: int, live: int) -> None:
        """Room for so many rows of so many tokens; the first `live` rows stay as they are."""
        ...

    def read(self, first: int, tokens_NQ: Array, counts_N: Array, starts_N: Array, wanted_NQ: Array) -> torch.Tensor:
        """Scores [R, V] after the wanted tokens; row first + i reads `counts[i]` tokens after `starts[i]` others."""
        ...

    def keep(self, first: int, kept_N: Array) -> None:
        """Of the tokens that each row of the last pass read, only the first `kept` stand."""
        ...

    def copy(self, source: int, target: int, length: int) -> None:
        """Row `target` becomes the first `length` tokens of row `source`."""
        ...


class AttentionRunner:
    """Models whose every layer attends to all earlier tokens, latents among them: cutting a row back is free."""

    shares = True
    bytes_per_row = 0
    states: torch.Tensor | None = None

    def __init__(self, model: Any, *, packed: bool = True) -> None:
        self.model, self.device = model, model.device
        attention.register()
        self.bytes_per_token, self.cache = self._probe()
        self.split = splits(model)  # so that only wanted scores need be made
        if packed:
            adopt(model)
        self.lean = self._lean(packed) if self.split and lean.fits(model) else None
        if packed:
            pack(model if self.lean is None else model.get_output_embeddings())

    @torch.no_grad()
    def _probe(self) -> tuple[int, RowCache]:
        """Bytes of a token in the cache, and an empty cache, by letting the model fill one of its own."""
        own = DynamicCache(config=self.model.config)
        self.model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device), past_key_values=own)
        cache = row_cache(self.model.config, own)
        held: Any = own.layers
        if any(layer.keys is None for layer in held):
            raise IncompatibleModel(f"{self.model.config.model_type} keeps nothing in a cache")
        return sum(x.numel() * x.element_size() for layer in held for x in (layer.keys, layer.values)), cache

    @torch.no_grad()
    def _lean(self, packed: bool) -> LeanDecoder | CompiledDecoder | None:
        """The decoder in fewest operations that finds the same states as the model's own on rows of unequal length."""
        few = LeanDecoder(self.model, packed=packed)
        with exact(self.model):
            if compiled.fits(few) and self._alike(fewer := CompiledDecoder(few)):
                return fewer
            return few if self._alike(few) else None

    def _alike(self, few: LeanDecoder | CompiledDecoder) -> bool:
        generator = torch.Generator().manual_seed(0)
        size = len(self.model.get_input_embeddings().weight)
        tokens = [torch.randint(size, (3, width), generator=generator).to(self.device) for width in (9, 1, 3)]
        found: list[list[torch.Tensor]] = [[], []]
        for held, states in zip((RowCache(len(few.layers)), RowCache(len(few.layers))), found, strict=True):
            held.reserve(3, 16, 0)
            for new, starts in zip(tokens, ([0, 0, 0], [9, 4, 7], [10, 5, 8]), strict=True):
                plan = Pass(0, starts, new.shape[1], self.device)
                held.begin(plan)
                if states is found[0]:
                    states.append(few(new, plan, held, np.full(3, new.shape[1])).view(3, new.shape[1], -1))
                else:
                    states.append(self._states(new, plan, held))
        ours, theirs = (torch.cat(states, dim=1).double() for states in found)
        # The models' norms compute in float32, whatever the rest does.
        eps = max(torch.finfo(self.model.dtype).eps, torch.finfo(torch.float32).eps)
        return bool((ours - theirs).abs().max() <= 256 * eps * theirs.abs().max())

    def _states(self, tokens: torch.Tensor, plan: Pass, cache: RowCache) -> torch.Tensor:
        """Last hidden states by the model's own decoder."""
        with self._attending():
            states: torch.Tensor = self.model.get_decoder()(**inputs(tokens, plan, cache)).last_hidden_state
            return states

    def reserve(self, rows: int, slots: int, live: int) -> None:
        """Room for so many rows of so many tokens."""
        self.cache.reserve(rows, slots, live)

    @torch.no_grad()
    def read(self, first: int, tokens_NQ: Array, counts_N: Array, starts_N: Array, wanted_NQ: Array) -> torch.Tensor:
        """Scores [R, V]; what padding reads lands behind a row's end, where it is masked and overwritten."""
        plan = Pass(first, starts_N.tolist(), tokens_NQ.shape[1], self.device)
        self.cache.begin(plan)
        places = torch.from_numpy(np.flatnonzero(wanted_NQ)).to(self.device)
        tokens = torch.from_numpy(tokens_NQ.astype(np.int64)).to(self.device)
        if not self.split:
            with self._attending():
                logits: torch.Tensor = self.model(**inputs(tokens, plan, self.cache)).logits
            return logits.flatten(0, 1)[places]
        if self.lean is None:
            hidden = self._states(tokens, plan, self.cache).flatten(0, 1)[places]
        else:
            real = np.arange(plan.width) < counts_N[:, None]
            places = torch.from_numpy(np.flatnonzero(wanted_NQ[real])).to(self.device)
            hidden = self.lean(tokens, plan, self.cache, counts_N)[places]
        self.states = hidden
        scores: torch.Tensor = self.model.get_output_embeddings()(hidden)
        return scores

    @contextmanager
    def _attending(self) -> Iterator[None]:
        """The model with the engine's attention, and afterwards as it was."""
        config = self.model.config
        before = config._attn_implementation
        config._attn_implementation = attention.NAME
        try:
            yield
        finally:
            config._attn_implementation = before

    def keep(self, first: int, kept_N: Array) -> None:
        """Nothing to do: a row's length is what its next pass says."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Row `target` becomes the first `length` tokens of row `source`."""
        self.cache.copy(source, target, length)


def inputs(tokens_NQ: torch.Tensor, plan: Pass, cache: RowCache) -> dict[str, Any]:
    """A pass as transformers' models take it."""
    return {
        "input_ids": tokens_NQ,
        "position_ids": plan.positions_NQ,
        "attention_mask": plan.mask(),
        "past_key_values": cache,
        "use_cache": True,
    }
