"""Paired effects of a change in every registered slice, with simultaneous intervals and verdicts."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regear.auditing.intervals import Estimates, most_changed, simultaneous
from regear.auditing.tables import Metric
from regear.auditing.units import Slices, Units
from regear.auditing.verdict import LEAST, Verdict, Word, decide, units_needed
from regear.core.errors import RecipeError

Array = NDArray[np.float64]

MOST_SLICES = 1000  # registered slices, metrics counted, that an audit compares
MARGIN = 0.1  # standard deviations of the metric before
FEW = 5  # changed units below which the bootstrap says nothing of how rare changes are


def crossings(by: Sequence[str], depth: int) -> list[tuple[str, ...]]:
    """The combinations of dimensions to register: what was written with `*`, and all of up to `depth` dimensions."""
    written = [tuple(name.split("*")) for name in by]
    alone = [names[0] for names in written if len(names) == 1]
    deeper = [c for size in range(2, depth + 1) for c in itertools.combinations(alone, size)]
    return list(dict.fromkeys([*written, *deeper]))


def margins(units: Units, given: Mapping[str, str | float]) -> dict[str, float]:
    """The margin of every metric: a number in its unit, `2%` of its mean before, or a tenth of its spread before.

    Raises:
        RecipeError: a margin for another metric, or one that is not a positive number.
    """
    names = [metric.name for metric in units.metrics]
    for name, value in given.items():
        if name not in names:
            raise RecipeError(f"found a margin for {name!r}; metrics here: {', '.join(names)}")
        if not _positive(value):
            raise RecipeError(f"found margin {name}={value}; wanted a positive number or a percentage such as 2%")
    found: dict[str, float] = {}
    for index, metric in enumerate(units.metrics):
        if metric.name not in given:
            found[metric.name] = MARGIN * units.spread(index)
            continue
        value = given[metric.name]
        if str(value).endswith("%"):
            totals = units.slices(index, ()).sums.sum((0, 1))
            found[metric.name] = float(str(value)[:-1]) / 100 * abs(float(totals[2] / totals[3]))
        else:
            found[metric.name] = float(value)
    return found


def _positive(value: str | float) -> bool:
    try:
        return 0 < float(str(value).removesuffix("%")) < float("inf")
    except ValueError:
        return False


def compare(
    units: Units,
    by: Sequence[tuple[str, ...]],
    margin: Mapping[str, float],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[Verdict]:
    """Verdicts of all units, then of every slice of `by`, for every metric; all intervals hold at once at `level`."""
    tables = [_registered(units, index, by) for index in range(len(units.metrics))]
    count = sum(len(table.names) for table in tables)
    if count > MOST_SLICES:
        raise RecipeError(f"found {count:,} slices to compare; wanted at most {MOST_SLICES:,}: name fewer dimensions")
    signs = np.concatenate([np.full(len(t.names), m.sign) for t, m in zip(tables, units.metrics, strict=True)])
    sums = _oriented(np.concatenate([table.sums for table in tables], axis=1), signs)
    wholes = [np.repeat(table.sums[:, :1], len(table.names), axis=1) for table in tables]
    whole = _oriented(np.concatenate(wholes, axis=1), signs)
    # What has few units or hardly a change is judged by other means, and would only add noise to the shared factors.
    family = np.concatenate([(table.clusters >= LEAST) & (table.changed >= FEW) for table in tables])
    settings = {"family": family, "level": level, "resamples": resamples}
    estimates = _effects(sums, **settings, seed=seed)
    apart = _differences(sums, whole - sums, **settings, seed=seed + 1)
    found, place = [], 0
    for index, table in enumerate(tables):
        typical = units.typical_change(index)
        for i in range(len(table.names)):
            bounds = _bounds(estimates, place, table, i, typical, 1 - (1 - level) / len(family))
            found.append(_verdict(table, i, place, units.metrics[index], estimates, bounds, apart, margin))
            place += 1
    return found


def _registered(units: Units, metric: int, by: Sequence[tuple[str, ...]]) -> Slices:
    """All units first, then every slice."""
    found = units.slices(metric, ())
    for names in by:
        found = found + units.slices(metric, names)
    return found


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


def _bounds(
    estimates: Estimates, place: int, table: Slices, i: int, typical: float, level: float
) -> tuple[float, float]:
    """The interval, widened where changes are too rare to be seen: with fewer than `FEW` units changed, as many as
    the binomial bound allows may have, each by as much as units that did change do."""
    low, high = float(estimates.low[place]), float(estimates.high[place])
    if table.changed[i] < FEW and table.clusters[i]:
        share = most_changed(int(min(table.changed[i], table.clusters[i])), int(table.clusters[i]), level)
        low, high = min(low, -share * typical), max(high, share * typical)
    return low, high


def _verdict(
    table: Slices,
    i: int,
    place: int,
    metric: Metric,
    estimates: Estimates,
    bounds: tuple[float, float],
    apart: Estimates,
    margin: Mapping[str, float],
) -> Verdict:
    totals, clusters, units = table.sums[:, i].sum(0), int(table.clusters[i]), int(table.units[i])
    allowed = margin[metric.name]
    if not (totals[1] > 0 and totals[3] > 0):
        empty = f"not assessable: no unit of the slice has {metric.name}"
        return Verdict(
            table.names[i], metric.name, units, clusters, None, None, None, None, allowed, "undetermined", empty
        )
    value, error = float(estimates.value[place]), float(estimates.error[place])
    word: Word = decide(*bounds, allowed)
    reason: str | None = None
    if clusters < LEAST:
        word, reason = "undetermined", f"{clusters} independent units; wanted at least {LEAST}"
    elif word == "undetermined":
        reason = "the interval reaches across the margin"
    needed = None
    if word == "undetermined":
        needed = units_needed(units, value, error, allowed, max(estimates.critical))
    return Verdict(
        table.names[i],
        metric.name,
        units,
        clusters,
        before=float(totals[2] / totals[3]),
        after=float(totals[0] / totals[1]),
        effect=value,
        ci=bounds,
        margin=allowed,
        verdict=word,
        reason=reason,
        units_needed=needed,
        differential=_apart(apart, place) if table.names[i] else None,
    )


def _apart(apart: Estimates, place: int) -> dict[str, Any] | None:
    numbers = [float(x[place]) for x in (apart.value, apart.low, apart.high)]
    if not np.isfinite(numbers).all():
        return None
    return {"effect": numbers[0], "ci": numbers[1:]}
