"""From totals to verdicts: effects of every slice and metric, their simultaneous intervals, and what is known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regear.auditing.intervals import Estimates, simultaneous
from regear.auditing.rare import FEW, widened
from regear.auditing.tables import Metric
from regear.auditing.units import Slices
from regear.auditing.verdict import LEAST, Verdict, Word, decide, units_needed

Array = NDArray[np.float64]
ROUNDING = 1e-12  # of a total: what is left of it, when a slice is all there is


@dataclass(frozen=True)
class Found:
    """One slice's numbers, its bounds already as wide as they must be."""

    totals: Array
    value: float
    error: float
    bounds: tuple[float, float]
    critical: float
    apart: dict[str, Any] | None


def judge(
    tables: Sequence[Slices],
    metrics: Sequence[Metric],
    typical: Sequence[float],
    margin: Mapping[str, float],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    differential: bool = True,
) -> list[Verdict]:
    """Verdicts of the slices of every metric's table, the first of each being all units.

    Args:
        tables: totals a metric, all of the same packs.
        metrics: in the order of the tables.
        typical: by how much a unit that changed did, a metric.
        margin: by metric, the loss that still counts as none.
        level: of all intervals together.
        resamples: bootstrap draws.
        seed: of the draws.
        differential: also compare every slice with its complement, which is most of the work.
    """
    signs = np.concatenate([np.full(len(t.names), m.sign) for t, m in zip(tables, metrics, strict=True)])
    sums = _oriented(np.concatenate([table.sums for table in tables], axis=1), signs)
    wholes = [np.repeat(table.sums[:, :1], len(table.names), axis=1) for table in tables]
    rest = _oriented(np.concatenate(wholes, axis=1), signs)
    whole = np.abs(rest).sum(0)
    rest -= sums
    rest[np.broadcast_to(np.abs(rest).sum(0) <= ROUNDING * whole, rest.shape)] = 0.0
    # What hardly changes is judged by counting, and would only add noise to the shared factors. It keeps its part of
    # the errors allowed: a slice of few changes that stands out by chance must not be judged as if it were alone.
    judged = np.concatenate([table.clusters >= LEAST for table in tables])
    family = judged & np.concatenate([table.changed >= FEW for table in tables])
    error = (1 - level) / max(1, int(judged.sum()))
    settings = {"family": family, "level": 1 - error * max(1, int(family.sum())), "resamples": resamples}
    estimates = _effects(sums, **settings, seed=seed)
    apart = _differences(sums, rest, **settings, seed=seed + 1) if differential else None
    found, place = [], 0
    for table, metric, size in zip(tables, metrics, typical, strict=True):
        for i in range(len(table.names)):
            effect = float(estimates.value[place])
            bounds = _bounds(estimates, place, int(table.clusters[i]))
            bounds = widened(bounds, effect, int(table.changed[i]), int(table.clusters[i]), size, 1 - error / 2)
            difference = _apart(apart, place) if apart and table.names[i] else None
            spread = float(estimates.error[place])
            numbers = Found(table.sums[:, i].sum(0), effect, spread, bounds, max(estimates.critical), difference)
            found.append(_verdict(table, i, metric, numbers, margin[metric.name]))
            place += 1
    return found


def estimated(sums: Array, sign: int) -> Estimates:
    """Effects and standard errors of the slices [G, S, 4] of one metric; the bounds mean nothing."""
    return _effects(_oriented(sums, np.full(sums.shape[1], sign)), resamples=2)


def _oriented(sums: Array, signs: NDArray[np.int64]) -> Array:
    """Numerators turned so that more is better, [G, S, 4]."""
    turned = sums.copy()
    turned[..., 0::2] *= signs[:, None]
    return turned


def _paired(sums: Array) -> Array:
    """[G, S, 2]: differences and weights, where both sides weigh the same."""
    return np.stack([sums[..., 0] - sums[..., 2], sums[..., 1]], axis=-1)


def _effects(sums: Array, **settings: Any) -> Estimates:
    """A paired mean is one ratio; a ratio metric is one ratio after less one before."""
    same = np.array_equal(sums[..., 1], sums[..., 3])
    return simultaneous(_paired(sums), (1,), **settings) if same else simultaneous(sums, (1, -1), **settings)


def _differences(sums: Array, rest: Array, **settings: Any) -> Estimates:
    """The effect in a slice less that in its complement: a loss that all share is none."""
    if np.array_equal(sums[..., 1], sums[..., 3]):
        return simultaneous(np.concatenate([_paired(sums), _paired(rest)], axis=-1), (1, -1), **settings)
    return simultaneous(np.concatenate([sums, rest], axis=-1), (1, -1, -1, 1), **settings)


def _bounds(estimates: Estimates, place: int, clusters: int) -> tuple[float, float]:
    """The shared bounds; wider, by Student's distribution, where there are few clusters."""
    value, low, high = (float(x[place]) for x in (estimates.value, estimates.low, estimates.high))
    if clusters >= LEAST:
        return low, high
    more, less = (_student(z, clusters - 1) / z if z else 1.0 for z in estimates.critical)
    return value - (value - low) * more, value + (high - value) * less


def _student(z: float, freedom: int) -> float:
    """Student's quantile from the normal one, by the first two terms of its expansion (Abramowitz & Stegun 26.7.5)."""
    if freedom < 1:
        return float("nan")
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _verdict(table: Slices, i: int, metric: Metric, found: Found, allowed: float) -> Verdict:
    clusters, units = int(table.clusters[i]), int(table.units[i])
    place = (table.names[i], metric.name, units, clusters)
    if not (found.totals[1] > 0 and found.totals[3] > 0):
        empty = f"not assessable: no unit of the slice has {metric.name}"
        return Verdict(*place, None, None, None, None, allowed, "undetermined", empty)
    word, reason = _word(clusters, found.bounds, allowed)
    needed = None
    if word == "undetermined" and allowed > 0 and clusters > 1:
        needed = units_needed(units, found.value, found.error, allowed, found.critical)
    return Verdict(
        *place,
        before=float(found.totals[2] / found.totals[3]),
        after=float(found.totals[0] / found.totals[1]),
        effect=found.value,
        ci=found.bounds if np.isfinite(found.bounds).all() else None,
        margin=allowed,
        verdict=word,
        reason=reason,
        units_needed=needed,
        differential=found.apart,
    )


def _word(clusters: int, bounds: tuple[float, float], margin: float) -> tuple[Word, str | None]:
    if clusters < LEAST:
        return "undetermined", f"{clusters} independent units; wanted at least {LEAST}"
    word = decide(*bounds, margin)
    if word != "undetermined":
        return word, None
    if not margin:
        return word, "no margin: the metric does not vary before; name the loss that counts as none"
    return word, "the interval reaches across the margin"


def _apart(apart: Estimates, place: int) -> dict[str, Any] | None:
    numbers = [float(x[place]) for x in (apart.value, apart.low, apart.high)]
    if not np.isfinite(numbers).all():
        return None
    return {"effect": numbers[0], "ci": numbers[1:]}
