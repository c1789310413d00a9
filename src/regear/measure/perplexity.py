"""Perplexity, bits per byte and KL over fixed windows, per window, so that two models can be paired.

Each window is read alone, with what the tokenizer puts before a text by itself (a beginning-of-text token, or
nothing); its first token has no context and is not scored. With a cache kind (`int8`, …) every query reads the keys
and values of its context as that cache stored them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from regear.core.errors import CheckpointError
from regear.core.stats import Interval, perplexity_ratio
from regear.measure.forward import logits_of
from regear.ops.divergence import token_kl, token_nll
from regear.tasks.text import Window


@dataclass
class Scores:
    """Per window: summed negative log-likelihood (nats), scored tokens, scored bytes; KL from a reference if paired."""

    nll: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)

    @property
    def log_perplexity(self) -> float:
        return sum(self.nll) / sum(self.tokens)

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.log_perplexity, 700.0))

    @property
    def bits_per_byte(self) -> float:
        return sum(self.nll) / math.log(2) / sum(self.bytes)

    @property
    def mean_kl(self) -> float:
        return sum(self.kl) / sum(self.tokens)

    def ratio_to(self, reference: "Scores", *, seed: int = 0) -> Interval:
        """Perplexity over the reference's, paired by window."""
        return perplexity_ratio(self.nll, reference.nll, self.tokens, seed=seed)

    def add(self, window: Window, ids: Sequence[int], nll: torch.Tensor, first_bytes: int) -> None:
        total = float(nll.double().sum())
        if not math.isfinite(total):
            raise CheckpointError("the model computes NaN or infinity on this text; its weights are damaged")
        self.nll.append(total)
        self.tokens.append(len(ids) - 1)
        self.bytes.append(window.bytes - first_bytes)


@torch.no_grad()
def score(model: Any, tokenizer: Any, windows: Sequence[Window], kv: str | None = None) -> Scores:
    """Score one model over windows, read through a cache of kind `kv` if one is given."""
    scores = Scores()
    for window in windows:
        ids = tokenizer(window.text)["input_ids"]
        logits, targets = _forward(model, ids, kv)
        scores.add(window, ids, token_nll(logits, targets), _first_bytes(tokenizer, ids))
    return scores


@torch.no_grad()
def score_pair(
    model: Any,
    reference: Any,
    tokenizer: Any,
    windows: Sequence[Window],
    kv: tuple[str | None, str | None] = (None, None),
) -> tuple[Scores, Scores]:
    """Score two models that share a tokenizer, interleaved by window; the first's `kl` is KL(reference ‖ model).

    `kv` are their cache kinds.
    """
    after, before = Scores(), Scores()
    for window in windows:
        ids = tokenizer(window.text)["input_ids"]
        first = _first_bytes(tokenizer, ids)
        logits, targets = _forward(model, ids, kv[0])
        reference_logits, reference_targets = _forward(reference, ids, kv[1])
        after.add(window, ids, token_nll(logits, targets), first)
        before.add(window, ids, token_nll(reference_logits, reference_targets), first)
        after.kl.append(float(token_kl(reference_logits.to(logits.device), logits).double().sum()))
    return after, before


def _forward(model: Any, ids: Sequence[int], kv: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of every position but the last, [T - 1, V], and the tokens they predict."""
    tokens = torch.tensor([list(ids)], device=model.device)
    return logits_of(model, tokens, kv)[0, :-1], tokens[0, 1:]


def _first_bytes(tokenizer: Any, ids: Sequence[int]) -> int:
    """Bytes of the text in the token that is not scored: none if the tokenizer put it there itself."""
    return len(tokenizer.decode(ids[:1], skip_special_tokens=True).encode())
