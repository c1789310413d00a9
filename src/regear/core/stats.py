"""Paired statistics of a change measured on the same windows or items before and after."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Interval:
    """A point estimate and its two-sided bootstrap interval."""

    value: float
    low: float
    high: float


def paired_bootstrap(
    numerators: ArrayLike, weights: ArrayLike, *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile interval of `sum(numerators) / sum(weights)` when whole units (windows, items) are resampled.

    Args:
        numerators: one total per unit, such as the difference of two models' negative log-likelihoods.
        weights: what each unit counts for, such as its scored tokens.
        resamples: bootstrap draws.
        level: coverage of the interval.
        seed: of the draws, so that a report repeats.

    Raises:
        ValueError: the two lists differ in length or are empty.
    """
    top, bottom = np.asarray(numerators, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    if top.shape != bottom.shape or top.ndim != 1 or not len(top):
        raise ValueError(f"wanted two equal, non-empty lists; found shapes {top.shape} and {bottom.shape}")
    draws = np.random.default_rng(seed).integers(0, len(top), size=(resamples, len(top)))
    means = top[draws].sum(1) / bottom[draws].sum(1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(top.sum() / bottom.sum()), float(low), float(high))


def perplexity_ratio(nll_after: ArrayLike, nll_before: ArrayLike, tokens: ArrayLike, *, seed: int = 0) -> Interval:
    """Perplexity after over perplexity before, with its paired interval; the unit is the window."""
    excess = paired_bootstrap(np.subtract(nll_after, nll_before), tokens, seed=seed)
    return Interval(*(float(np.exp(x)) for x in (excess.value, excess.low, excess.high)))


def knee(costs: ArrayLike, losses: ArrayLike) -> int:
    """Index of the point of a trade-off curve that lies farthest below the chord between its ends.

    Both axes are scaled to [0, 1] first, so that units do not matter. With fewer than three points: the last.
    """
    x, y = np.asarray(costs, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    order = np.argsort(x)
    x, y = x[order], y[order]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return int(order[-1])
    u, v = (x - x[0]) / (x[-1] - x[0]), (y - y.min()) / np.ptp(y)
    chord = v[0] + (v[-1] - v[0]) * u
    return int(order[int(np.argmax(chord - v))])
