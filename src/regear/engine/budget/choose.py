"""Which guessed tokens a step takes, of those a drafter offers with the chance of each to stand.

Chances never rise along a row, so the best set of any size is the likeliest tokens, and it is a prefix of every row.

Shape letters: N texts, G guessed tokens of all of them.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Seconds = Callable[[npt.ArrayLike], Array]


class Offer:
    """Guessed tokens of N texts, the most valuable first: their gains, and how many of each text come among the first.

    Args:
        chances: of each text, of its guessed tokens to stand with all those before them.
        worth: of each text, what a token that stands is worth.
    """

    def __init__(self, chances: Sequence[npt.ArrayLike], worth: npt.ArrayLike) -> None:
        self.texts = len(chances)
        lengths = [len(np.asarray(found)) for found in chances]
        self.row = np.repeat(np.arange(self.texts), lengths)
        flat = np.concatenate([np.asarray(found, np.float64) for found in chances]) if lengths else np.empty(0)
        gains = flat * np.asarray(worth, np.float64)[self.row]
        self.order = np.argsort(-gains, kind="stable")
        self.gains = gains[self.order]
        self.chances = flat[self.order]

    def counts(self, first: int) -> Counts:
        """How many tokens of each text are among the `first` ones."""
        return np.bincount(self.row[self.order[:first]], minlength=self.texts)


def most_tokens_a_second(offer: Offer, seconds: Seconds, overhead: float = 0.0) -> int:
    """How many of the offered tokens to take for the most tokens a second; each text has one token without a guess."""
    tokens = offer.texts + np.concatenate([[0.0], np.cumsum(offer.gains)])
    times = seconds(offer.texts + np.arange(len(tokens))) + overhead
    return int((tokens / times).argmax())


def most_seconds_saved(offer: Offer, seconds: Seconds) -> int:
    """How many of the offered tokens to take, where gains are seconds that a step's own time is paid from."""
    gains = np.concatenate([[0.0], np.cumsum(offer.gains)])
    return int((gains - seconds(offer.texts + np.arange(len(gains)))).argmax())
