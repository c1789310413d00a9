"""Seconds that a kept token is worth to the end of the last text, by how much is left of every text.

With m texts in flight a round in which each gets a token takes G(m) seconds. Texts that end after r_1 ≤ r_2 ≤ … rounds
take Σ (r_i − r_(i−1)) G(number still in flight); one token less of a text therefore saves G(m) − G(m − 1), where m
texts, itself among them, are in flight at its end: all of G(1) for the last text, for others what their own token
costs. How much is left is not known, so the mean over possible worlds is taken. Prices of a batch of N sum to G(N), as
those of DAS's corrected budget sum to its base.

Shape letters: N texts, W worlds, K guesses a text.
"""

import numpy as np
import numpy.typing as npt

from regear.engine.budget.choose import Seconds

Array = npt.NDArray[np.float64]


def makespan_prices(left_WN: Array, rounds: Array) -> Array:
    """Seconds that a kept token of each text is worth, [N].

    Args:
        left_WN: tokens still to come of each text in each world.
        rounds: G(0) = 0 to G(N).
    """
    steps = np.diff(rounds)
    later = np.sort(-left_WN, axis=1)  # the last text first
    worlds, texts = left_WN.shape
    upto = np.concatenate([[0.0], np.cumsum(steps)])
    found = np.zeros(texts)
    for left, ordered in zip(-left_WN, later, strict=True):
        first, end = np.searchsorted(ordered, left, "left"), np.searchsorted(ordered, left, "right")
        found += (upto[end] - upto[first]) / (end - first)  # texts that end together share
    return found / worlds


def round_seconds(texts: int, seconds: Seconds, kept_K: Array) -> Array:
    """G(0) to G(N), where the last text has as many guesses as are best, and every other one adds a token without.

    Args:
        kept_K: how many of 0 to K guesses of a text stand on average.
    """
    widths = 1 + np.arange(len(kept_K))
    last = (seconds(widths) / (1 + kept_K)).min()
    found = last + seconds(np.arange(texts + 1)) - seconds(1)
    found[0] = 0.0
    return found
