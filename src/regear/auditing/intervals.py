"""Simultaneous intervals of many effects that share their units: a studentised cluster bootstrap with max-T.

An effect is a signed sum of ratios of totals, `sum_k sign_k * N_k / D_k`: a paired mean difference is one ratio
(differences over weights), a slice against its complement two, a ratio metric after and before two. Whole packs of
units are resampled together, so that what lies in several slices stays correlated, and every resample is studentised
by its own linearised standard error. The lower bounds use the largest of all slices' statistics, the upper bounds the
smallest (Romano & Wolf 2005; Hall 1988 for the studentised bootstrap): all bounds hold at once at `level`.

The linearised error of a slice of n packs is too small by a share of order 1/n, and so are the factors where n is
small; bounds are widened by 1 + 2/n, which brings normal changes to their level or a little above at n = 30 and is
nothing soon after. Intervals of very skewed changes (log-normal, sigma 1) still hold a point or two too rarely:
benchmarks/results/audit_power.json has the figures.

Shape suffixes: G packs, S effects, C = 2K columns (numerator, denominator, …), B resamples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
CHUNK = 1 << 22  # numbers of one block of resampling weights
BLOCK = 1 << 24  # numbers of one block of slices
WIDER = 2.0  # over the packs: how much wider bounds are than by the linearised error
ROUNDING = 1e-13  # spread, beside the totals, that is no more than rounding


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


def centred(sums_GSC: Array) -> Array:
    """Numerators less their slice's ratio times the denominator: then their totals are zero and no digits are lost."""
    totals = sums_GSC.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.nan_to_num(totals[..., 0::2] / totals[..., 1::2], posinf=0.0, neginf=0.0)
    found = sums_GSC.copy()
    found[..., 0::2] -= ratio * sums_GSC[..., 1::2]
    return found


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
        family: which effects count towards the simultaneous level (all by default, and where it would be empty); the
            others get the same factors.
        level: coverage of all bounds together.
        resamples: bootstrap draws.
        seed: of the draws.

    Raises:
        ValueError: fewer than two packs, or columns that do not pair up with the signs.
    """
    packs, _, columns = sums_GSC.shape
    if packs < 2 or columns != 2 * len(signs):
        raise ValueError(f"wanted at least 2 packs and {2 * len(signs)} columns; found shape {sums_GSC.shape}")
    value = effects(sums_GSC.sum(0), signs)
    error, noise, present = _errors(sums_GSC, signs)
    usable = np.isfinite(value) & np.isfinite(error) & (error > noise)
    chosen = usable & family if family is not None and (usable & family).any() else usable
    up = down = 0.0
    if chosen.any():
        most, least = np.full(resamples, -np.inf), np.full(resamples, np.inf)
        for some in _blocks(np.flatnonzero(chosen), packs * (columns + len(pairs(columns)))):
            _extremes(sums_GSC[:, some], signs, most, least, seed)
        up, down = (max(float(np.quantile(t, (1 + level) / 2)), 0.0) for t in (most, -least))
    wide = error * (1 + WIDER / np.maximum(present, 1))
    return Estimates(value, error, value - up * wide, value + down * wide, (up, down))


def _errors(sums_GSC: Array, signs: Sequence[int]) -> tuple[Array, Array, Array]:
    """Standard errors [S], what rounding alone would make of them, and how many packs there are to each."""
    found, scale, counts = [], [], []
    for some in _blocks(np.arange(sums_GSC.shape[1]), 4 * sums_GSC.shape[0] * sums_GSC.shape[2]):
        sums = sums_GSC[:, some]
        residuals = centred(sums)
        totals = residuals.sum(0)
        slope = gradient(totals, signs)
        present = (sums != 0).any(-1).sum(0).astype(np.float64)
        counts.append(present)
        squares = np.stack([(residuals[..., i] * residuals[..., j]).sum(0) for i, j in pairs(sums.shape[-1])], axis=-1)
        found.append(standard_errors(totals, squares, slope, present))
        scale.append(np.abs(np.nan_to_num(slope, posinf=0.0, neginf=0.0) * np.abs(sums).sum(0)).sum(-1))
    return np.concatenate(found), ROUNDING * np.concatenate(scale), np.concatenate(counts)


def _blocks(indices: NDArray[np.int64], numbers: int) -> list[NDArray[np.int64]]:
    """Runs of indices, each of at most `BLOCK` numbers at so many an index."""
    return np.array_split(indices, max(1, -(-len(indices) * numbers // BLOCK)))


def _extremes(sums_GSC: Array, signs: Sequence[int], most: Array, least: Array, seed: int) -> None:
    """Raise `most` and lower `least` [B] to the extremes of these slices' studentised deviations."""
    packs, slices, columns = sums_GSC.shape
    residuals = centred(sums_GSC)
    moments = np.stack([residuals[..., i] * residuals[..., j] for i, j in pairs(columns)], axis=-1)
    present = (sums_GSC != 0).any(-1).sum(0).astype(np.float64)
    totals = residuals.sum(0)
    error = standard_errors(totals, moments.sum(0), gradient(totals, signs), present)
    flat = np.concatenate([residuals, moments], axis=-1).reshape(packs, -1)
    start = 0
    for weights_BG in _draws(packs, len(most), seed):
        drawn = (weights_BG @ flat).reshape(len(weights_BG), slices, -1)
        t = _statistics(drawn, columns, signs, error, present)
        here = slice(start, start + len(t))
        np.maximum(most[here], t.max(-1), out=most[here])
        np.minimum(least[here], t.min(-1), out=least[here])
        start += len(t)


def _statistics(drawn: Array, columns: int, signs: Sequence[int], error: Array, packs: Array) -> Array:
    """Studentised deviations of every resample, [B, S]; where a resample has no spread of its own, the sample's."""
    totals, squares = drawn[..., :columns], drawn[..., columns:]
    spread = standard_errors(totals, squares, gradient(totals, signs), packs)
    # A resample of a few distinct values can be all but constant; a tenth of the sample's error bounds what it says.
    spread = np.where(np.isfinite(spread) & (spread > 0.1 * error), spread, error)
    return np.nan_to_num(effects(totals, signs) / spread)


def _draws(packs: int, resamples: int, seed: int) -> Iterator[Array]:
    """How often each resample draws each pack, [B, G] in blocks."""
    generator = np.random.default_rng(seed)
    block = max(1, min(resamples, CHUNK // packs))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = generator.integers(0, packs, size=(rows, packs)) + np.arange(rows)[:, None] * packs
        yield np.bincount(drawn.ravel(), minlength=rows * packs).reshape(rows, packs).astype(np.float64)
