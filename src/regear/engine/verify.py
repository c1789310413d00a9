"""Which of the guessed tokens stand, and where a text ends.

Sample-then-match: the engine draws its own token at every place, by its own scores and noise; a guess stands where it
is that token and all guesses before it stood. The law is that of plain sampling for any guess that is a token and not a
distribution, and with noise keyed by place the tokens themselves are those of plain sampling.

Shape letters: N texts, Q places of a text (its newest token, then its guesses), K = Q − 1 guesses.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def kept(drawn_NQ: Array, guessed_NK: Array, counts_N: Array) -> Array:
    """How many guesses of each text stand, [N]; `counts` says how many it had."""
    places = np.arange(guessed_NK.shape[1])
    same = (drawn_NQ[:, :-1] == guessed_NK) & (places < counts_N[:, None])
    return np.logical_and.accumulate(same, axis=1).sum(1)


def ends(drawn_NQ: Array, kept_N: Array, room_N: Array, stops_NS: Array) -> tuple[Array, Array]:
    """How many of its drawn tokens each text takes, and whether the last one taken is a stop token, [N] each.

    Taken are the standing guesses and the token after them, up to the first stop token, at most `room`.
    """
    taken = np.minimum(kept_N + 1, room_N)
    places = np.arange(drawn_NQ.shape[1])
    stop = (drawn_NQ[:, :, None] == stops_NS[:, None, :]).any(2) & (places < taken[:, None])
    stopped = stop.any(1)
    return np.where(stopped, stop.argmax(1) + 1, taken), stopped
