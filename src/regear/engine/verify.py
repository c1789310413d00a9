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


def descend(drawn_NQ: Array, tokens_NM: Array, parents_NM: Array) -> tuple[Array, Array]:
    """The nodes of each text's tree of guesses that stand, from its first on, [N, depth] (−1 behind the last); and the
    token that was drawn after them, [N].

    A node stands where its parent does and its token was drawn there: exact for any tree. The engine guesses chains,
    which are trees of one branch.

    Args:
        drawn_NQ: what was drawn after the text itself (place 0) and after node j (place j + 1), Q = M + 1.
        parents_NM: a node's parent; −1 is the text itself, −2 no node.
    """
    rows = np.arange(len(drawn_NQ))
    place = np.zeros(len(rows), np.int64)
    path: list[Array] = []
    while tokens_NM.shape[1]:
        fits = (parents_NM == place[:, None] - 1) & (tokens_NM == drawn_NQ[rows, place][:, None])
        found = fits.any(1) & (not path or path[-1] >= 0)
        if not found.any():
            break
        path.append(np.where(found, fits.argmax(1), -1))
        place = np.where(found, path[-1] + 1, place)
    nodes = np.stack(path, 1) if path else np.zeros((len(rows), 0), np.int64)
    return nodes, drawn_NQ[rows, place]
