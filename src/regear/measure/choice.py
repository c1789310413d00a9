"""Multiple choice by the log-probability of each option's text after the question."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from regear.core.stats import Interval, paired_bootstrap
from regear.measure.forward import logits_of
from regear.ops.divergence import token_nll
from regear.tasks.choice import ChoiceItem


@dataclass(frozen=True)
class ChoiceScores:
    """Per item: right by summed log-probability, right by log-probability per byte, and the gold option's
    log-probability in nats per byte."""

    right: list[int]
    right_per_byte: list[int]
    gold_logprob: list[float]
    chance: float

    @property
    def accuracy(self) -> float:
        return sum(self.right) / len(self.right)

    def summary(self) -> dict[str, float]:
        """The figures of a report; `chance` is the accuracy of blind guessing."""
        count = len(self.right)
        return {
            "items": count,
            "chance": self.chance,
            "accuracy": self.accuracy,
            "accuracy_per_byte": sum(self.right_per_byte) / count,
            "gold_logprob": sum(self.gold_logprob) / count,
        }

    def change_from(self, before: "ChoiceScores", *, seed: int = 0) -> dict[str, Interval]:
        """Paired differences after − before, by item."""
        ones = [1.0] * len(self.right)
        pairs: dict[str, tuple[Sequence[float], Sequence[float]]] = {
            "accuracy": (self.right, before.right),
            "gold_logprob": (self.gold_logprob, before.gold_logprob),
        }
        return {
            name: paired_bootstrap([a - b for a, b in zip(after, base, strict=True)], ones, seed=seed)
            for name, (after, base) in pairs.items()
        }


@torch.no_grad()
def score_choices(model: Any, tokenizer: Any, items: Sequence[ChoiceItem], kv: str | None = None) -> ChoiceScores:
    """Score every item, through a cache of kind `kv` if one is given; the options of one item run as one batch."""
    right, right_per_byte, gold = [], [], []
    for item in items:
        logprobs = _option_logprobs(model, tokenizer, item, kv)
        lengths = torch.tensor([len(option.encode()) for option in item.options])
        right.append(int(logprobs.argmax() == item.answer))
        right_per_byte.append(int((logprobs / lengths).argmax() == item.answer))
        gold.append(float((logprobs / lengths)[item.answer]))
    return ChoiceScores(right, right_per_byte, gold, sum(1 / len(i.options) for i in items) / len(items))


def _option_logprobs(model: Any, tokenizer: Any, item: ChoiceItem, kv: str | None) -> torch.Tensor:
    """Summed log-probability of each option, [options]."""
    prompt = tokenizer(item.prompt)["input_ids"]
    options = [tokenizer(" " + option, add_special_tokens=False)["input_ids"] for option in item.options]
    longest = max(map(len, options))
    rows = torch.tensor([option + [0] * (longest - len(option)) for option in options], device=model.device)
    mask = [[1] * (len(prompt) + len(option)) + [0] * (longest - len(option)) for option in options]
    logits = _logits(model, torch.tensor([prompt], device=model.device), rows, torch.tensor(mask).to(rows.device), kv)
    sums = []
    for row, option in enumerate(options):
        sums.append(-token_nll(logits[row, : len(option)], rows[row, : len(option)]).double().sum())
    return torch.stack(sums).cpu()


def _logits(model: Any, prompt: torch.Tensor, rows: torch.Tensor, mask: torch.Tensor, kv: str | None) -> torch.Tensor:
    """Logits before each token of the options, [options, longest + 1, V]; the prompt [1, T] is read once."""
    many, longest = rows.shape
    if kv is not None:  # whose blocks depend on how a text is cut, so each option is read as one text
        return logits_of(model, torch.cat([prompt.expand(many, -1), rows], 1), kv, mask=mask, keep=longest + 1)
    cache = DynamicCache(config=model.config)
    first = model(input_ids=prompt, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    cache.batch_repeat_interleave(many)
    rest = model(input_ids=rows, attention_mask=mask, past_key_values=cache, use_cache=True).logits
    return torch.cat([first.expand(many, -1, -1), rest], dim=1)
