"""Perplexity by position: how well a model uses a long context, alone or paired against another."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from regear.core.errors import DataError
from regear.core.stats import perplexity_ratio
from regear.measure.forward import CHUNK
from regear.models.kvcache import kv_cache, parts
from regear.ops.divergence import token_kl, token_nll
from regear.tasks.text import Document

FIRST_BIN = 64


@dataclass(frozen=True)
class PositionScores:
    """Sums over tokens: nll [models, windows, bins], kl [windows, bins]; `edges` [bins + 1] are positions.

    A token counts where it stands: the token at position p is predicted from p tokens before it.
    """

    edges: list[int]
    nll: np.ndarray
    kl: np.ndarray

    def rows(self, seed: int = 0) -> list[dict[str, Any]]:
        """One row a bin: `from`, `to`, perplexity; with two models the ratio, its paired interval and KL."""
        rows = []
        windows = self.nll.shape[1]
        for b, (start, end) in enumerate(pairwise(self.edges)):
            tokens = [end - start] * windows
            mean = self.nll[:, :, b].sum(1) / sum(tokens)
            row: dict[str, Any] = {
                "from": start,
                "to": end,
                "tokens": sum(tokens),
                "perplexity": float(np.exp(mean[0])),
            }
            if len(mean) == 2:
                ratio = perplexity_ratio(self.nll[0, :, b], self.nll[1, :, b], tokens, seed=seed)
                row |= {"against": float(np.exp(mean[1])), "ratio": ratio.value, "ratio_ci": [ratio.low, ratio.high]}
                row["kl"] = float(self.kl[:, b].sum() / sum(tokens))
            rows.append(row)
        return rows


def bin_edges(context: int) -> list[int]:
    """Positions 1, 64, 128, 256, … up to the context; the last bin ends there."""
    edges = [1]
    while (following := FIRST_BIN << (len(edges) - 1)) < context:
        edges.append(following)
    return [*edges, context]


def long_rows(documents: Sequence[Document], tokenizer: Any, context: int) -> list[list[int]]:
    """Consecutive windows of `context` tokens, cut from all texts in a row, each begun as the tokenizer begins a text.

    Raises:
        DataError: the texts hold no whole window.
    """
    text = "\n\n".join(document.text for document in documents)
    bare = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    whole = list(tokenizer(text)["input_ids"])
    begin = whole[: whole.index(bare[0])] if whole != bare else []
    size = context - len(begin)
    rows = [[*begin, *bare[i : i + size]] for i in range(0, len(bare) - size + 1, size)]
    if not rows:
        raise DataError(
            f"the text holds {len(bare):,} tokens; wanted {context:,}; give more text or a smaller --context"
        )
    return rows


@torch.no_grad()
def score_positions(
    models: Sequence[Any], rows: Sequence[Sequence[int]], kinds: Sequence[str | None]
) -> PositionScores:
    """Score one or two models on the same long windows, a block at a time, each through a cache of its kind.

    With two, `kl` is KL(second ‖ first).
    """
    edges = bin_edges(len(rows[0]))
    nll = np.zeros((len(models), len(rows), len(edges) - 1))
    kl = np.zeros((len(rows), len(edges) - 1))
    for w, row in enumerate(rows):
        tokens = torch.tensor([list(row)], device=models[0].device)
        losses, divergence = _read(models, tokens, kinds)
        for b, (start, end) in enumerate(pairwise(edges)):
            nll[:, w, b] = losses[:, start - 1 : end - 1].sum(1)
            kl[w, b] = divergence[start - 1 : end - 1].sum()
    return PositionScores(edges, nll, kl)


def _read(
    models: Sequence[Any], tokens: torch.Tensor, kinds: Sequence[str | None]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of every token but the first, [models, T - 1], and the KL at its place, [T - 1], in float64."""
    caches = [kv_cache(model.config, kind) for model, kind in zip(models, kinds, strict=True)]
    targets = tokens[0, 1:]
    losses = torch.zeros(len(models), len(targets), dtype=torch.float64)
    divergence = torch.zeros(len(targets), dtype=torch.float64)
    few = next((kind for kind in kinds if kind in ("int8", "int4")), None)
    for part in parts(len(targets), few, CHUNK):
        logits = [
            model(input_ids=tokens[:, part], past_key_values=cache, use_cache=True).logits[0]
            for model, cache in zip(models, caches, strict=True)
        ]
        for i, found in enumerate(logits):
            losses[i, part] = token_nll(found, targets[part]).double().cpu()
        if len(models) == 2:
            divergence[part] = token_kl(logits[1], logits[0]).double().cpu()
    return losses, divergence
