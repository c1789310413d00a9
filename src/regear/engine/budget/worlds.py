"""Prices of the texts in flight, in worlds drawn from what is known of their lengths."""

from collections.abc import Sequence

import numpy as np

from regear.engine.budget.choose import Array
from regear.engine.budget.cost import StepCost
from regear.engine.budget.lengths import Lengths
from regear.engine.budget.prices import makespan_prices, round_seconds
from regear.engine.drafters.base import Text

WORLDS = 32  # in which the lengths of texts are drawn
DOUBT = 0.2  # how likely it is that nothing drawn holds, and each text is as likely as another to be the last
STALE = 16  # steps after which prices are found anew


class Worlds:
    """Prices of texts, found anew when texts come or go and every few steps."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.held: dict[int, float] = {}
        self.age = STALE

    def stale(self) -> None:
        """Texts came or went."""
        self.age = STALE

    def prices(self, texts: Sequence[Text], lengths: Lengths, cost: StepCost, kept: Array) -> Array:
        """Seconds that a kept token of each text is worth."""
        self.age += 1
        if self.age >= STALE or any(text.number not in self.held for text in texts):
            self.age = 0
            left = np.stack([self._left(text, lengths) for text in texts], 1)
            rounds = round_seconds(len(texts), cost.seconds, kept)
            found = (1 - DOUBT) * makespan_prices(left, rounds) + DOUBT * rounds[-1] / len(texts)
            self.held = {text.number: price for text, price in zip(texts, found.tolist(), strict=True)}
        return np.array([self.held[text.number] for text in texts])

    def _left(self, text: Text, lengths: Lengths) -> Array:
        risks = self.random.permutation(-np.log1p(-(np.arange(WORLDS) + 0.5) / WORLDS))
        return lengths.draws(text.request.group, len(text.tokens) - text.prompt, text.request.max_tokens, risks)
