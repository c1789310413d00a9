"""What a step takes, by how many tokens it processes, learned from the steps themselves.

The curve is continuous, linear between powers of two and never falls: flat while weights are read, linear where
products decide, with a knee wherever the machine has one. Steps of nearly the same number of tokens count as one point,
the median of the last few, so that a neighbour who takes the processor now and then changes nothing. A point
counts for less the older it is, and the sooner the fewer its steps, so that a size that took long once is tried again.
Beyond what was measured a token costs what it does beside it; from one size alone the time grows with the root of the
number of tokens.
"""

from collections import deque
from dataclasses import dataclass, field
from math import log2
from statistics import median

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

FINE = 4  # points an octave
SAMPLES = 9  # steps that a point is the median of
YOUNG, OLD = 10, 200  # steps after which a point of one step, and one of many, counts for half
REFIT = 8  # steps after which a curve of many steps is fitted anew
ROOT, STEADY = 0.02, 0.1  # weights of the root law between two knots and of an even slope; a step just measured: 1
KNOTS = 2.0 ** np.arange(40)


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
        self.widest = 0  # tokens of the largest step
        self.values: Array = np.zeros(2)

    @property
    def known(self) -> bool:
        """Whether any step was timed."""
        return self.count > 0

    def observe(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        point = self.points.setdefault(round(FINE * log2(tokens)), _Point())
        self.count += 1
        self.widest = max(self.widest, tokens)
        point.add(tokens, seconds)
        point.last = self.count

    def seconds(self, tokens: npt.ArrayLike) -> Array:
        """What steps of so many tokens take, in the shape of `tokens`, which may be fractions; 0 for 0 tokens.

        Beyond the last knot a token costs what it does between the last two.
        """
        self._fit()
        wanted = np.asarray(tokens, np.float64)
        knots, values = np.concatenate([[0.0], KNOTS[: len(self.values)]]), np.concatenate([[0.0], self.values])
        slope = (values[-1] - values[-2]) / (knots[-1] - knots[-2])
        return np.interp(wanted, knots, values) + np.maximum(wanted - knots[-1], 0) * slope

    def marginal(self, tokens: int, more: int = 1) -> float:
        """Seconds a token that `more` tokens add to a step of so many."""
        before, after = self.seconds([tokens, tokens + more])
        return float(after - before) / more

    def _fit(self) -> None:
        """Weighted least squares of relative errors on what was measured and on both priors, then never falling."""
        if self.count - self.fitted < min(REFIT, 1 + self.fitted // REFIT):
            return
        self.fitted = self.count
        points = list(self.points.values())
        tokens, seconds = np.array([(point.tokens, point.seconds) for point in points]).T
        age = np.array([self.count - point.last for point in points])
        held = np.array([len(point.steps) for point in points])
        trust = np.sqrt(held * 0.5 ** (age / np.minimum(YOUNG * held**2, OLD)))
        order = np.argsort(tokens)
        knots = KNOTS[: max(3, int(np.ceil(np.log2(tokens.max()))) + 2)]
        usual = np.interp(knots, tokens[order], seconds[order])  # what errors are relative to
        measured = _hats(tokens, len(knots)) * (trust / seconds)[:, None]
        here, next_ = np.eye(len(knots))[:-1], np.eye(len(knots))[1:]
        root = ROOT * (next_ - np.sqrt(2) * here) / usual[1:, None]
        even = STEADY * ((next_ - here)[1:] - 2 * (next_ - here)[:-1]) / usual[2:, None]
        matrix = np.concatenate([measured, root, even])
        wanted = np.concatenate([trust, np.zeros(len(root) + len(even))])
        normal = matrix.T @ matrix
        values = np.linalg.solve(normal, matrix.T @ wanted)
        least = usual * np.minimum(1, knots / tokens.min())  # fewer tokens spare no more than their share
        values = np.where(knots < tokens.min(), np.maximum(values, least), values)
        self.values = _never_falling(values, np.diag(normal))


def _hats(tokens: Array, knots: int) -> Array:
    """What each knot counts for at each number of tokens, [points, knots]: linear between the two beside it."""
    left = np.clip(np.log2(tokens).astype(int), 0, knots - 2)
    share = (tokens - KNOTS[left]) / (KNOTS[left + 1] - KNOTS[left])
    found = np.zeros((len(tokens), knots))
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
