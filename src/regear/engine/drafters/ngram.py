"""Guess that a text goes on as it did the last time its newest tokens stood in it (prompt lookup).

Source: Saxena, "Prompt Lookup Decoding" (2023); the longest of several lengths is tried first, the latest place wins.
"""

from collections.abc import Hashable, Sequence

import numpy as np

from regear.engine.drafters.base import Array, Outcome, Text, Tokens

NOTHING: Tokens = np.empty(0, np.int32)


class NgramDrafter:
    """Looks for the last n tokens, n from `longest` down to `shortest`, earlier in the same text.

    An index of every n-gram's latest place is kept a text, so that a step costs the same however long the text is.
    """

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        self.lengths = range(longest, shortest - 1, -1)
        self.places: dict[int, dict[bytes, int]] = {}
        self.read: dict[int, int] = {}

    def propose(self, texts: Sequence[Text], most: Array) -> list[Tokens]:
        """The tokens that followed."""
        return [self._one(text, int(count)) for text, count in zip(texts, most, strict=True)]

    def _one(self, text: Text, most: int) -> Tokens:
        places, tokens = self.places.setdefault(text.number, {}), text.tokens
        start, length = self.read.get(text.number, 0), len(tokens)
        for end in range(start, length):  # places where a gram ends, but not the newest: it would find itself
            for n in self.lengths:
                if end >= n:
                    places[tokens[end - n : end].tobytes()] = end
        self.read[text.number] = length
        if most < 1:
            return NOTHING
        for n in self.lengths:
            if length >= n and (found := places.get(tokens[length - n : length].tobytes())) is not None:
                return tokens[found : found + most].copy()
        return NOTHING

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """Nothing is learnt."""

    def finish(self, number: int, tokens: Tokens, prompt: int, group: Hashable) -> None:
        """Forget the text."""
        self.places.pop(number, None)
        self.read.pop(number, None)
