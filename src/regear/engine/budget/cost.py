"""What a step takes, by how many tokens it processes, learned from the steps themselves.

The curve is continuous, linear between powers of two and never falls: flat while weights are read, linear where
products decide, with a knee wherever the machine has one. Steps of nearly the same number of tokens count as one point,
the median of the last few, so that a neighbour who takes the processor now and then changes nothing; a point counts for
less the older it is. Where nothing was measured the time grows with the root of the number of tokens.
"""

from collections import deque
from dataclasses import dataclass, field
from math import log2
from statistics import median

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

LARGEST = 16  # log2 of the largest number of tokens with a knot of its own
FINE = 4  # points an octave
SAMPLES = 9  # steps that a point is the median of
HALF_LIFE = 128  # steps after which a point counts for half
REFIT = 8  # steps after which a curve of many steps is fitted anew
PRIOR = 0.05  # weight of the root law between two knots; a step that was just measured weighs 1
KNOTS = 2.0 ** np.arange(LARGEST + 1)


@dataclass
class _Point:
    """Steps of nearly the same number of tokens: of the last few, how many tokens and seconds each."""

    steps: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    last: int = 0
    tokens: float = 0.0  # their mean
    seconds: float = 0.0  # their median

    def add(self, tokens: int, seconds: float) -> None:
        """One more step."""
        self.steps.append((tokens, seconds))
        self.tokens = sum(tokens for tokens, _ in self.steps) / len(self.steps)
        self.seconds = median(seconds for _, seconds in self.steps)


class StepCost:
    """Seconds of a step by its tokens. Without a measurement there is no curve: `known` says whether there is one."""

    def __init__(self) -> None:
        self.points: dict[int, _Point] = {}
        self.count = self.fitted = 0
        self.values: Array = np.zeros(len(KNOTS))

    @property
    def known(self) -> bool:
        """Whether any step was timed."""
        return self.count > 0

    def observe(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        self.count += 1
        point = self.points.setdefault(round(FINE * log2(tokens)), _Point())
        point.add(tokens, seconds)
        point.last = self.count

    def measured(self, tokens: int) -> int:
        """How many of the steps that are remembered had nearly so many tokens."""
        point = self.points.get(round(FINE * log2(tokens)))
        return len(point.steps) if point else 0

    def seconds(self, tokens: npt.ArrayLike) -> Array:
        """What steps of so many tokens take, in the shape of `tokens`, which may be fractions; 0 for 0 tokens.

        Beyond the last knot the time grows as between the last two.
        """
        self._fit()
        wanted = np.asarray(tokens, np.float64)
        found = np.interp(wanted, np.concatenate([[0.0], KNOTS]), np.concatenate([[0.0], self.values]))
        slope = (self.values[-1] - self.values[-2]) / (KNOTS[-1] - KNOTS[-2])
        return found + np.maximum(wanted - KNOTS[-1], 0) * slope

    def marginal(self, tokens: int, more: int = 1) -> float:
        """Seconds a token that `more` tokens add to a step of so many."""
        before, after = self.seconds([tokens, tokens + more])
        return float(after - before) / more

    def _fit(self) -> None:
        """Weighted least squares of relative errors on what was measured and on the root law, then never falling."""
        if self.count - self.fitted < min(REFIT, 1 + self.fitted // REFIT):
            return
        self.fitted = self.count
        points = list(self.points.values())
        tokens, seconds = np.array([(point.tokens, point.seconds) for point in points]).T
        age = np.array([self.count - point.last for point in points])
        held = np.array([len(point.steps) for point in points])
        trust = np.sqrt(held * 0.5 ** (age / HALF_LIFE))
        left, right = KNOTS[:-1], KNOTS[1:]
        law = np.sqrt(KNOTS) * median(seconds / np.sqrt(tokens))  # of the right size, to weigh by
        measured = _hats(tokens) * (trust / seconds)[:, None]
        roots = np.zeros((len(left), len(KNOTS)))
        rows = np.arange(len(left))
        roots[rows, rows], roots[rows, rows + 1] = -PRIOR * np.sqrt(right / left) / law[1:], PRIOR / law[1:]
        matrix = np.concatenate([measured, roots])
        wanted = np.concatenate([trust, np.zeros(len(left))])
        normal = matrix.T @ matrix
        values = np.linalg.solve(normal, matrix.T @ wanted)
        self.values = _never_falling(values, np.diag(normal))


def _hats(tokens: Array) -> Array:
    """What each knot counts for at each number of tokens, [points, knots]: linear between the two beside it."""
    left = np.clip(np.log2(tokens).astype(int), 0, LARGEST - 1)
    share = (tokens - KNOTS[left]) / (KNOTS[left + 1] - KNOTS[left])
    found = np.zeros((len(tokens), len(KNOTS)))
    rows = np.arange(len(tokens))
    found[rows, left], found[rows, left + 1] = 1 - share, share
    return found


def _never_falling(values: Array, weights: Array) -> Array:
    """The nearest values that never fall: neighbours that do are pooled into their weighted mean."""
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        pool = (value, weight, 1)
        while pools and pools[-1][0] > pool[0]:
            other = pools.pop()
            total = other[1] + pool[1]
            pool = ((other[0] * other[1] + pool[0] * pool[1]) / total, total, other[2] + pool[2])
        pools.append(pool)
    return np.repeat([value for value, _, _ in pools], [count for _, _, count in pools])
