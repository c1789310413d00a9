"""Exhaustive search of the conjunctions of up to three attribute values that lose most.

Every cell of every crossing is counted, by `bincount` over integer codes. A conjunction with enough support is made of
values and pairs that have it too, and at most `1 / share` of these do: codes of the rest collapse into one, so that a
crossing has at most some `(1 / share)²` cells however many values its dimensions have (Agrawal & Srikant 1994).

The score of a cell of n units is `(min(loss, excess) − 1.645 · se) · √n`: the 95 % lower bound of what it loses, and
loses beyond all units together, times √n. A loss that all share scores nothing; nor does less of a gain.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Codes = Sequence[NDArray[np.uint8]]
SURE = 1.645  # normal quantile of 95 %


@dataclass(frozen=True)
class Candidate:
    """`where`: (dimension, code) pairs; `count` units, their `effect` (below zero is worse) and `score`."""

    where: tuple[tuple[int, int], ...]
    count: int
    effect: float
    score: float


@dataclass(frozen=True)
class Rows:
    """What is searched: effects and weights of the units, the former less the mean effect of all times the weight."""

    columns: list[Array]
    whole: float
    plain: bool

    @classmethod
    def of(cls, changes: Array, weights: Array) -> "Rows":
        """From the change of every unit (below zero is worse, times its weight) and its weight."""
        whole = float(changes.sum() / weights.sum())
        rest, plain = changes - whole * weights, bool((weights == 1).all())
        return cls([rest, rest**2] if plain else [rest, rest**2, weights, rest * weights, weights**2], whole, plain)

    def scores(self, keys: NDArray[np.integer], cells: int) -> tuple[NDArray[np.int64], Array, Array]:
        """Units, effect and score of every cell."""
        counts = np.bincount(keys, minlength=cells)
        total, square, *others = (np.bincount(keys, column, cells) for column in self.columns)
        weight, cross, heavy = (counts, total, counts) if self.plain else others
        with np.errstate(divide="ignore", invalid="ignore"):
            apart = total / weight
            error = np.sqrt(np.maximum(square - 2 * apart * cross + apart**2 * heavy, 0.0)) / weight
            loss = np.minimum(-apart, -(apart + self.whole))
            return counts, apart + self.whole, (loss - SURE * error) * np.sqrt(counts)


def search(codes: Codes, rows: Rows, *, depth: int, least: int, most: int) -> list[Candidate]:
    """The `most` best cells with at least `least` units and a score above zero, best first.

    Args:
        codes: one array of codes a dimension.
        rows: what the units lose.
        depth: how many dimensions a cell may fix, 1 to 3.
        least: units a cell must have.
        most: cells kept.
    """
    found: list[Candidate] = []
    for names, keys, labels in _crossings(codes, depth, least):
        counts, effect, score = rows.scores(keys, len(labels) + 1)
        good = np.flatnonzero((counts[1:] >= least) & (score[1:] > 0)) + 1
        for cell in good[np.argsort(-score[good], kind="stable")[:most]]:
            where = tuple(zip(names, (int(x) for x in labels[cell - 1]), strict=True))
            found.append(Candidate(where, int(counts[cell]), float(effect[cell]), float(score[cell])))
        found = sorted(found, key=lambda c: (-c.score, len(c.where), c.where))[:most]
    return found


Crossing = tuple[tuple[int, ...], NDArray[np.integer], NDArray[np.int64]]


def _crossings(codes: Codes, depth: int, least: int) -> Iterator[Crossing]:
    """Dimensions, a key a unit (0: too rare) and the codes that each key above 0 stands for, [keys, dimensions]."""
    ones = [_frequent(code, np.arange(int(code.max(initial=0)) + 1)[:, None], least) for code in codes]
    singles = range(len(codes))
    for i in singles:
        yield (i,), *ones[i]
    for i, j in itertools.combinations(singles, 2) if depth > 1 else ():
        pair = _crossed(ones[i], ones[j])
        yield (i, j), *pair
        if depth > 2 and j + 1 < len(codes):
            frequent = _frequent(pair[0] - 1, pair[1], least)
            for k in range(j + 1, len(codes)):
                yield (i, j, k), *_crossed(frequent, ones[k])


Keyed = tuple[NDArray[np.integer], NDArray[np.int64]]


def _frequent(keys: NDArray[np.integer], labels: NDArray[np.int64], least: int) -> Keyed:
    """Keys with at least so many units, from 1; the others, and those below zero, become 0."""
    counts = np.bincount(keys[keys >= 0], minlength=len(labels))
    kept = np.flatnonzero(counts >= least)
    fresh = np.zeros(len(labels) + 1, np.int32)  # the last place is where −1 points
    fresh[kept] = np.arange(1, len(kept) + 1, dtype=np.int32)
    return fresh[keys], labels[kept]


def _crossed(one: Keyed, two: Keyed) -> Keyed:
    (a, first), (b, second) = one, two
    keys = (a.astype(np.int64) - 1) * len(second) + b
    keys[(a == 0) | (b == 0)] = 0
    labels = np.concatenate([np.repeat(first, len(second), axis=0), np.tile(second, (len(first), 1))], axis=1)
    return keys, labels
