"""Simultaneous intervals of many effects that share their units: a studentised cluster bootstrap with max-T.

An effect is a signed sum of ratios of totals, `sum_k sign_k * N_k / D_k`: a paired mean difference is one ratio
(differences over weights), a slice against its complement two, a ratio metric after and before two. Whole packs of
units are resampled together, so that what lies in several slices stays correlated, and every resample is studentised
by its own linearised standard error. The lower bounds use the largest of all slices' statistics, the upper bounds the
smallest (Romano & Wolf 2005; Hall 1988 for the studentised bootstrap): all bounds hold at once at `level`.

Shape suffixes: G packs, S effects, C = 2K columns (numerator, denominator, …), B resamples.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
CHUNK = 1 << 22  # numbers of one block of resampling weights


@dataclass(frozen=True)
class Estimates:
    """Per effect: its value, standard error and simultaneous bounds; `critical`: the factors below and above."""

    value: Array
    error: Array
    low: Array
    high: Array
    critical: tuple[float, float]


def effects(totals: Array, signs: Sequence[int]) -> Array:
    """The signed sums of ratios of totals [..., C]; NaN where a denominator is zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return (totals[..., 0::2] / totals[..., 1::2]) @ np.asarray(signs, dtype=np.float64)


def gradient(totals: Array, signs: Sequence[int]) -> Array:
    """Derivative of `effects` by each total, [..., C]."""
    sign, top, bottom = np.asarray(signs, dtype=np.float64), totals[..., 0::2], totals[..., 1::2]
    slope = np.empty_like(totals)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope[..., 0::2] = sign / bottom
        slope[..., 1::2] = -sign * top / bottom**2
    return slope


def standard_errors(totals: Array, squares: Array, slope: Array, packs: Array) -> Array:
    """Linearised standard errors from second moments [..., C(C+1)/2] in the order of `pairs`."""
    total = np.zeros(totals.shape[:-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        for index, (i, j) in enumerate(pairs(totals.shape[-1])):
            total += (1 if i == j else 2) * slope[..., i] * slope[..., j] * squares[..., index]
        return np.sqrt(np.maximum(total, 0.0) * packs / (packs - 1))


def pairs(columns: int) -> list[tuple[int, int]]:
    """Index pairs of the upper triangle of a symmetric matrix."""
    return [(i, j) for i in range(columns) for j in range(i, columns)]


def simultaneous(
    sums_GSC: Array,
    signs: Sequence[int],
    *,
    family: NDArray[np.bool_] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimates:
    """Effects with bounds that all hold at once, at `level`, over the family.

    Args:
        sums_GSC: totals of every pack in every slice.
        signs: of the K ratios.
        family: which effects count towards the simultaneous level (all by default); the others get the same factors.
        level: coverage of all bounds together.
        resamples: bootstrap draws.
        seed: of the draws.

    Raises:
        ValueError: fewer than two packs, or columns that do not pair up with the signs.
    """
    packs, _, columns = sums_GSC.shape
    if packs < 2 or columns != 2 * len(signs):
        raise ValueError(f"wanted at least 2 packs and {2 * len(signs)} columns; found shape {sums_GSC.shape}")
    present = (sums_GSC != 0).any(-1).sum(0).astype(np.float64)
    moments = np.stack([sums_GSC[..., i] * sums_GSC[..., j] for i, j in pairs(columns)], axis=-1)
    totals, squares = sums_GSC.sum(0), moments.sum(0)
    value = effects(totals, signs)
    error = standard_errors(totals, squares, gradient(totals, signs), present)
    usable = np.isfinite(value) & np.isfinite(error) & (error > 0)
    chosen = usable if family is None else usable & family
    if not chosen.any():
        return Estimates(value, error, value.copy(), value.copy(), (0.0, 0.0))
    most, least = [], []
    flat = np.concatenate([sums_GSC[:, chosen], moments[:, chosen]], axis=-1).reshape(packs, -1)
    for weights_BG in _draws(packs, resamples, seed):
        drawn = (weights_BG @ flat).reshape(len(weights_BG), int(chosen.sum()), -1)
        t = _statistics(drawn, columns, signs, value[chosen], error[chosen], present[chosen])
        most.append(t.max(-1))
        least.append(t.min(-1))
    tail = (1 - level) / 2
    up = max(float(np.quantile(np.concatenate(most), 1 - tail)), 0.0)
    down = max(-float(np.quantile(np.concatenate(least), tail)), 0.0)
    return Estimates(value, error, value - up * error, value + down * error, (up, down))


def _statistics(drawn: Array, columns: int, signs: Sequence[int], value: Array, error: Array, packs: Array) -> Array:
    """Studentised deviations of every resample, [B, S]; where a resample has no spread of its own, the sample's."""
    totals, squares = drawn[..., :columns], drawn[..., columns:]
    spread = standard_errors(totals, squares, gradient(totals, signs), packs)
    # A resample of a few distinct values can be all but constant; a tenth of the sample's error bounds what it says.
    spread = np.where(np.isfinite(spread) & (spread > 0.1 * error), spread, error)
    return np.nan_to_num((effects(totals, signs) - value) / spread)


def _draws(packs: int, resamples: int, seed: int) -> Iterator[Array]:
    """How often each resample draws each pack, [B, G] in blocks."""
    generator = np.random.default_rng(seed)
    block = max(1, min(resamples, CHUNK // packs))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = generator.integers(0, packs, size=(rows, packs)) + np.arange(rows)[:, None] * packs
        yield np.bincount(drawn.ravel(), minlength=rows * packs).reshape(rows, packs).astype(np.float64)


def most_changed(changed: int, units: int, level: float) -> float:
    """Upper bound, at `level`, of the share of units that a change touches, having seen `changed` of `units`.

    The exact binomial bound of Clopper and Pearson; with none seen, about `3 / units` at 95 % (the rule of three).
    """
    low, high = changed / units, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        seen = sum(math.comb(units, i) * middle**i * (1 - middle) ** (units - i) for i in range(changed + 1))
        low, high = (middle, high) if seen > 1 - level else (low, middle)
    return high
