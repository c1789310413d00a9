"""How many tokens to guess for each text of a batch that ends with its last text.

    A = k l (1 − exp(−α p / l))                 tokens of a text of length l that p guessed tokens spare a forward pass
    J(F) = base · F + token · Σ p(F)            F = max (l − A) forward passes, seconds

Source: DAS (arXiv 2511.13841). Its equations 7 and 9 hold for k = 1 only: with k < 1 the printed guesses leave more
than F passes, for k multiplies where it must divide. They stand here beside the corrected forms, to be compared with.

Shape letters: N texts. A capacity k is in (0, 1], an efficiency α above 0, `base` and `token` are seconds above 0.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

HALVINGS = 100  # of an interval of floats: until nothing is left of it
NEAR = 1e-9  # relative: lengths that are one


def accepted(drafted: Array, lengths: Array, alpha: Array, capacity: Array) -> Array:
    """Tokens that are kept of those guessed for whole texts, [N]."""
    return capacity * lengths * -np.expm1(-alpha * drafted / lengths)


def draft_tokens(lengths: Array, alpha: Array, capacity: Array, forwards: float) -> Array:
    """Tokens to guess so that each text takes `forwards` passes at most, [N]; infinite where no number is enough."""
    spared = np.maximum(0.0, 1 - forwards / lengths)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = -lengths / alpha * np.log1p(-spared / capacity)
    return np.where(spared < capacity, found, np.inf)


def draft_tokens_as_printed(lengths: Array, alpha: Array, capacity: Array, forwards: float) -> Array:
    """DAS's equation 7, [N]. For k < 1 a text with so many guesses takes more than `forwards` passes."""
    spared = np.maximum(0.0, 1 - forwards / lengths)
    with np.errstate(divide="ignore"):
        return -lengths / alpha * np.log1p(-capacity * spared)


def seconds(lengths: Array, alpha: Array, capacity: Array, forwards: float, base: float, token: float) -> float:
    """J: what the batch takes, beyond what does not depend on the guesses."""
    return base * forwards + token * float(draft_tokens(lengths, alpha, capacity, forwards).sum())


def best_forwards(lengths: Array, alpha: Array, capacity: Array, base: float, token: float) -> float:
    """The number of passes with the least J; the longest length where guessing pays for no text."""
    low, high = float((lengths * (1 - capacity)).max()), float(lengths.max())
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _price(lengths, alpha, capacity, middle, token).sum() > base:
            low = middle
        else:
            high = middle
    return high


def best_forwards_as_printed(lengths: Array, alpha: Array, capacity: Array, base: float, token: float) -> float:
    """The number of passes by DAS's equation 9, in which k multiplies as in equation 7."""
    low, high = 0.0, float(lengths.max())
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        steepness = capacity / (alpha * (1 - capacity * (1 - middle / lengths)))
        if token * steepness[lengths > middle].sum() > base:
            low = middle
        else:
            high = middle
    return high


def prices(lengths: Array, alpha: Array, capacity: Array, base: float, token: float) -> Array:
    """Seconds that one more kept token of each text is worth, [N]; together `base`, 0 for texts shorter than F.

    Texts as long as F get what the longer ones leave: at such an F the price is what keeps the minimum there.
    """
    forwards = best_forwards(lengths, alpha, capacity, base, token)
    on_edge = np.abs(lengths - forwards) <= NEAR * lengths
    found = np.where(on_edge, 0.0, _price(lengths, alpha, capacity, forwards, token))
    return found + on_edge * (max(0.0, base - found.sum()) / max(1, on_edge.sum()))


def thresholds(lengths: Array, alpha: Array, capacity: Array, base: float, token: float) -> Array:
    """How likely a guessed token must be to stand for it to pay, [N]; infinite for texts shorter than F."""
    with np.errstate(divide="ignore"):
        return token / prices(lengths, alpha, capacity, base, token)


def _price(lengths: Array, alpha: Array, capacity: Array, forwards: float, token: float) -> Array:
    """token · dp/dA at the end of each text that needs guesses to end within so many passes; 0 for the others."""
    with np.errstate(divide="ignore"):
        found = token / (alpha * np.maximum(capacity - 1 + forwards / lengths, 0.0))
    return np.where(lengths > forwards, found, 0.0)
