"""Scoring planted facts: the number asked for among its rivals by log-probability, and whole by greedy decoding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from regear.core.stats import Interval, paired_bootstrap
from regear.measure.forward import fill
from regear.models.kvcache import kv_cache
from regear.tasks.needle import OPTIONS, NeedleItem


@dataclass(frozen=True)
class NeedleScores:
    """Per item: 1 if the right number beats its rivals, 1 if greedy decoding writes it whole."""

    items: list[NeedleItem]
    right: list[int]
    exact: list[int]

    def rows(self) -> list[dict[str, Any]]:
        """Accuracy and exact retrieval by length and depth, and by length over all depths (depth null)."""
        lengths = sorted({item.length for item in self.items})
        keys = [(n, d) for n in lengths for d in (None, *sorted({i.depth for i in self.items if i.length == n}))]
        return [{"length": n, "depth": d, "chance": 1 / OPTIONS, **self._means(n, d)} for n, d in keys]

    def where(self, length: int, depth: float | None = None) -> list[int]:
        """Indices of the items of a length (and a depth)."""
        return [i for i, x in enumerate(self.items) if x.length == length and depth in (None, x.depth)]

    def _means(self, length: int, depth: float | None) -> dict[str, Any]:
        at = self.where(length, depth)
        right, exact = (sum(found[i] for i in at) / len(at) for found in (self.right, self.exact))
        return {"items": len(at), "accuracy": right, "exact": exact}

    def change_from(self, before: "NeedleScores", length: int, *, seed: int = 0) -> dict[str, Interval]:
        """Paired differences after − before at a length, by item."""
        at = self.where(length)
        pairs = {"accuracy": (self.right, before.right), "exact": (self.exact, before.exact)}
        return {
            name: paired_bootstrap([after[i] - base[i] for i in at], [1.0] * len(at), seed=seed)
            for name, (after, base) in pairs.items()
        }


@torch.no_grad()
def score_needles(model: Any, items: Sequence[NeedleItem], kv: str | None = None) -> NeedleScores:
    """Score every item, through a cache of kind `kv` if one is given."""
    right, exact = [], []
    for item in items:
        cache = kv_cache(model.config, kv)
        first = fill(model, torch.tensor([item.prompt], device=model.device), cache, kv)
        sums, greedy = [], []
        for option in item.options:
            rest = [_continue(model, cache, option[:-1])] if len(option) > 1 else []
            logits = torch.cat([first, *rest]).log_softmax(-1)
            targets = torch.tensor(option, device=logits.device)
            sums.append(float(logits.gather(1, targets.unsqueeze(1)).double().sum()))
            greedy.append(bool((logits.argmax(-1) == targets).all()))
        right.append(int(max(range(len(sums)), key=sums.__getitem__) == item.answer))
        exact.append(int(greedy[item.answer]))
    return NeedleScores(list(items), right, exact)


def _continue(model: Any, cache: Any, tokens: Sequence[int]) -> torch.Tensor:
    """Logits after each token behind the cached text, [len, V]; the cache is left as it was."""
    ids = torch.tensor([list(tokens)], dtype=torch.long, device=model.device)
    logits = model(input_ids=ids, past_key_values=cache, use_cache=True).logits[0].float()
    cache.crop(-len(tokens))
    return logits
