"""Guess that a text goes on as it did the last time its newest tokens stood in it (prompt lookup).

Source: Saxena, "Prompt Lookup Decoding" (2023); the longest of several lengths is tried first, the latest place wins.
"""

from collections.abc import Hashable, Sequence

import numpy as np

from regear.core.errors import RecipeError
from regear.engine.drafters.base import NOTHING, Array, Outcome, Target, Text, Tokens

BYTES = 4  # of a token


class NgramDrafter:
    """Looks for the last n tokens, n from `longest` down to `shortest`, earlier in the same text.

    An index of every n-gram's latest place is kept a text, so that a step costs the same however long the text is.
    """

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        self.lengths = range(longest, shortest - 1, -1)
        self.places: dict[int, dict[bytes, int]] = {}
        self.read: dict[int, int] = {}

    def propose(self, texts: Sequence[Text], most: Array) -> list[Tokens]:
        """The tokens that followed, over again where the text ends before `most` of them."""
        return [self._one(text, count) for text, count in zip(texts, most.tolist(), strict=True)]

    def _one(self, text: Text, most: int) -> Tokens:
        tokens, length = text.tokens, len(text.tokens)
        places = self._index(text)
        if most < 1:
            return NOTHING
        for n in self.lengths:
            if length >= n and (found := places.get(tokens[length - n :].tobytes())) is not None:
                return np.resize(tokens[found:], most)
        return NOTHING

    def _index(self, text: Text) -> dict[bytes, int]:
        """Where each n-gram of a text last ended, but for those that end it: they would find themselves."""
        places = self.places.setdefault(text.number, {})
        start, length = self.read.get(text.number, 0), len(text.tokens)
        first = max(0, start - self.lengths.start)
        new = text.tokens[first:length].tobytes()
        for end in range(start, length):
            stop = (end - first) * BYTES
            for n in self.lengths:
                if end >= n:
                    places[new[stop - n * BYTES : stop]] = end
        self.read[text.number] = length
        return places

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """Nothing is learnt."""

    def finish(self, number: int, tokens: Tokens, prompt: int, group: Hashable) -> None:
        """Forget the text."""
        self.places.pop(number, None)
        self.read.pop(number, None)


def open_ngram(argument: str, target: Target) -> NgramDrafter:
    """The drafter of `ngram`.

    Raises:
        RecipeError: something stands after it.
    """
    if argument:
        raise RecipeError(f"--draft ngram:{argument}: found {argument!r} after the colon; wanted ngram alone")
    return NgramDrafter()
