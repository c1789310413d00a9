"""The audit's arithmetic once more, in loops."""

import math

import numpy as np


def effect(totals, signs):
    return sum(sign * totals[2 * k] / totals[2 * k + 1] for k, sign in enumerate(signs))


def error(rows, signs):
    """Linearised: every pack's influence on the effect, squared and summed."""
    rows = [row for row in rows if any(row)]
    totals = [sum(column) for column in zip(*rows, strict=True)]
    total = 0.0
    for row in rows:
        influence = 0.0
        for k, sign in enumerate(signs):
            top, bottom = totals[2 * k], totals[2 * k + 1]
            influence += sign * (row[2 * k] - top / bottom * row[2 * k + 1]) / bottom
        total += influence**2
    return math.sqrt(total * len(rows) / (len(rows) - 1))


def bounds(sums_GSC, signs, level, resamples, seed):
    """Simultaneous bounds of every slice, one resample and one slice at a time."""
    packs, slices, _ = sums_GSC.shape
    value = [effect(sums_GSC[:, s].sum(0), signs) for s in range(slices)]
    spread = [error(sums_GSC[:, s], signs) for s in range(slices)]
    present = [int((sums_GSC[:, s] != 0).any(-1).sum()) for s in range(slices)]
    most, least = [], []
    drawn = np.random.default_rng(seed).integers(0, packs, size=(resamples, packs))
    for picks in drawn:
        found = []
        for s in range(slices):
            rows = sums_GSC[picks, s]
            own = error_of_draw(rows, signs, present[s])
            own = own if own > 0.1 * spread[s] else spread[s]
            found.append((effect(rows.sum(0), signs) - value[s]) / own)
        most.append(max(found))
        least.append(min(found))
    up, down = np.quantile(most, (1 + level) / 2), -np.quantile(least, (1 - level) / 2)
    wide = [e * (1 + 2 / n) for e, n in zip(spread, present, strict=True)]
    return [(v - up * e, v + down * e) for v, e in zip(value, wide, strict=True)]


def error_of_draw(rows, signs, present):
    """As `error`, with the sample's own count of packs in the correction."""
    totals = rows.sum(0)
    total = 0.0
    for row in rows:
        influence = 0.0
        for k, sign in enumerate(signs):
            top, bottom = totals[2 * k], totals[2 * k + 1]
            influence += sign * (row[2 * k] - top / bottom * row[2 * k + 1]) / bottom
        total += influence**2
    return math.sqrt(total * present / (present - 1))
