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
from regear.engine import attention
from regear.engine.cache import Pass, RowCache, row_cache
from regear.models.head import check_head
from regear.ops.linear import adopt, pack

Array = npt.NDArray[Any]


class Runner(Protocol):
    """A model, and what it has read of every row."""

    bytes_per_token: int
    shares: bool
    """Whether a row can begin as part of another."""

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

    def __init__(self, model: Any, *, packed: bool = True) -> None:
        self.model, self.device = model, model.device
        attention.register()
        if packed:
            adopt(model)
            pack(model)
        self.bytes_per_token, self.cache = self._probe()
        self.split = self._split()

    @torch.no_grad()
    def _probe(self) -> tuple[int, RowCache]:
        """Bytes of a token in the cache, and an empty cache, by letting the model fill one of its own."""
        own = DynamicCache(config=self.model.config)
        self.model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device), past_key_values=own)
        cache = row_cache(self.model.config, own)
        held: Any = own.layers
        return sum(x.numel() * x.element_size() for layer in held for x in (layer.keys, layer.values)), cache

    def _split(self) -> bool:
        """Whether scores are the head's product with last hidden states, so that only wanted ones need be made."""
        try:
            check_head(self.model)
        except IncompatibleModel:
            return False
        return True

    def reserve(self, rows: int, slots: int, live: int) -> None:
        """Room for so many rows of so many tokens."""
        self.cache.reserve(rows, slots, live)

    @torch.no_grad()
    def read(self, first: int, tokens_NQ: Array, counts_N: Array, starts_N: Array, wanted_NQ: Array) -> torch.Tensor:
        """Scores [R, V]; what padding reads lands behind a row's end, where it is masked and overwritten."""
        plan = Pass(first, starts_N.tolist(), tokens_NQ.shape[1], self.device)
        self.cache.begin(plan)
        places = torch.from_numpy(np.flatnonzero(wanted_NQ)).to(self.device)
        inputs = {
            "input_ids": torch.from_numpy(tokens_NQ.astype(np.int64)).to(self.device),
            "position_ids": plan.positions_NQ,
            "attention_mask": plan.mask(),
            "past_key_values": self.cache,
            "use_cache": True,
        }
        with self._attending():
            if not self.split:
                logits: torch.Tensor = self.model(**inputs).logits
                return logits.flatten(0, 1)[places]
            hidden = self.model.get_decoder()(**inputs).last_hidden_state
            scores: torch.Tensor = self.model.get_output_embeddings()(hidden.flatten(0, 1)[places])
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
