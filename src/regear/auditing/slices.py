"""Discovery of the slices that lose most, searched in one half of the clusters and estimated in the other.

What a search over thousands of slices finds looks worse than it is (the winner's curse); the other half has not been
looked at, so that its effects are unbiased and its intervals hold. Only codes, changes and weights are held in memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regear.auditing.judge import estimated, judge
from regear.auditing.lattice import Candidate, Rows, search
from regear.auditing.rare import FEW
from regear.auditing.tables import Metric
from regear.auditing.units import Slices, Units
from regear.auditing.verdict import LEAST
from regear.core.errors import RecipeError

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
ALIKE = 0.8  # Jaccard index above which two slices are one
NEW = 2  # times as much as what is known already, for a slice within one that is kept
SPARE = 30  # candidates looked at for each that is kept


@dataclass(frozen=True)
class Held:
    """The units that have the metric: codes a dimension, pack, and [4, units] of after, weight, before, weight."""

    codes: list[NDArray[np.uint8]]
    pack: NDArray[np.uint16]
    sides: Array

    def part(self, kept: Mask) -> "Held":
        return Held([code[kept] for code in self.codes], self.pack[kept], self.sides[:, kept])

    def mask(self, candidate: Candidate) -> Mask:
        found = np.ones(len(self.pack), bool)
        for dimension, code in candidate.where:
            found &= self.codes[dimension] == code
        return found


def discover(
    units: Units,
    metric_index: int,
    *,
    margin: float,
    depth: int = 3,
    top: int = 10,
    least_share: float = 0.005,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The slices that lose most, with estimates from units that had no part in finding them.

    Args:
        units: with every dimension that may describe a slice.
        metric_index: which of the units' metrics.
        margin: the loss that still counts as none.
        depth: how many dimensions a slice may fix, 1 to 3.
        top: how many slices at most.
        least_share: of the searched units that a slice must hold, and never fewer than 30.
        level: of the intervals of all slices found together.
        resamples: bootstrap draws.
        seed: of the split and the draws.

    Returns, best score first: `slice, metric, n, clusters, before, after, effect, ci, margin, verdict, reason, …` of
    the estimating half, `q_value` (Benjamini & Hochberg over the slices found, of losing nothing) and `search`: n and
    effect in the searched half, which flatter the search.

    Raises:
        RecipeError: a depth that is not searched.
    """
    if depth not in (1, 2, 3):
        raise RecipeError(f"found depth {depth}; slices are searched to depth 1, 2 or 3")
    if not units.dimensions:
        return []
    held = _held(units, metric_index)
    packs = np.random.default_rng(seed).permutation(units.packs)
    searched = np.isin(held.pack, packs[: units.packs // 2])
    one, other = held.part(searched), held.part(~searched)
    if not len(one.pack) or not one.sides[1].sum():
        return []
    metric = units.metrics[metric_index]
    least = max(LEAST, int(np.ceil(least_share * len(one.pack))))
    candidates = search(one.codes, _rows(one, metric), depth=depth, least=least, most=SPARE * top)
    kept = _distinct(one, metric.sign, candidates, top, least)
    return _estimates(units, metric_index, other, kept, margin=margin, level=level, resamples=resamples, seed=seed)


def _held(units: Units, metric: int) -> Held:
    keys = [f"d{i}" for i in range(len(units.dimensions))]
    sides = [f"{side}{metric}" for side in ("a", "aw", "b", "bw")]
    parts = []
    for rows in units.batches(["pack", *keys, *sides]):
        there = rows.drop_nulls(sides)
        codes = [there[key].to_numpy().astype(np.uint8) for key in keys]
        parts.append(Held(codes, there["pack"].to_numpy(), there.select(sides).to_numpy().T))
    codes = [np.concatenate([part.codes[i] for part in parts]) for i in range(len(keys))]
    joined = np.concatenate([part.sides for part in parts], axis=1)
    return Held(codes, np.concatenate([part.pack for part in parts]), joined)


def _rows(held: Held, metric: Metric) -> Rows:
    """What each unit adds to the effect: exact for a paired mean, to first order for a ratio."""
    after, more, before, less = held.sides
    if np.array_equal(more, less):
        return Rows.of(metric.sign * (after - before), more)
    ratios = after.sum() / more.sum(), before.sum() / less.sum()
    share = more / more.mean(), less / less.mean()
    weights = (share[0] + share[1]) / 2
    parts = (after - ratios[0] * more) / more.mean() - (before - ratios[1] * less) / less.mean()
    return Rows.of(metric.sign * (parts + (ratios[0] - ratios[1]) * weights), weights)


def _distinct(held: Held, sign: int, candidates: Sequence[Candidate], top: int, least: int) -> list[Candidate]:
    """The best `top` that say something new; of two that hold the same units, the shorter description."""
    kept: list[Candidate] = []
    masks: list[Mask] = []
    for candidate in candidates:
        mask = held.mask(candidate)
        alike = next((i for i, other in enumerate(masks) if _jaccard(mask, other) > ALIKE), None)
        if alike is not None:
            if len(candidate.where) < len(kept[alike].where):
                kept[alike], masks[alike] = candidate, mask
        elif len(kept) < top and not _explained(held, sign, candidate, mask, kept, masks, least):
            kept.append(candidate)
            masks.append(mask)
    return kept


def _explained(
    held: Held,
    sign: int,
    candidate: Candidate,
    mask: Mask,
    kept: Sequence[Candidate],
    masks: Sequence[Mask],
    least: int,
) -> bool:
    """Whether what a slice loses beyond all units is what slices already kept lose.

    One that lies inside a kept slice has to lose twice as much; of another, the units outside the kept slices have to
    lose half as much as all of it.
    """
    if not kept:
        return False
    whole = _effect(held, sign, np.ones_like(mask))
    wider = [other.effect for other in kept if set(other.where) < set(candidate.where)]
    if wider:
        return candidate.effect - whole > NEW * (min(wider) - whole)
    rest = mask & ~np.any(masks, axis=0)
    return bool(rest.sum() < least or _effect(held, sign, rest) - whole > (candidate.effect - whole) / NEW)


def _effect(held: Held, sign: int, mask: Mask) -> float:
    after, more, before, less = held.sides[:, mask].sum(1)
    return float(sign * (after / more - before / less)) if more > 0 and less > 0 else 0.0


def _jaccard(one: Mask, two: Mask) -> float:
    return float((one & two).sum() / max(1, (one | two).sum()))


def _estimates(
    units: Units, index: int, held: Held, kept: Sequence[Candidate], *, margin: float, **settings: Any
) -> list[dict[str, Any]]:
    if not kept or not len(held.pack):
        return []
    metric = units.metrics[index]
    table = _table(units, held, kept)
    verdicts = judge([table], [metric], [units.typical_change(index)], {metric.name: margin}, **settings)[1:]
    estimates = estimated(table.sums[:, 1:], metric.sign)
    with np.errstate(divide="ignore", invalid="ignore"):
        deviations = np.nan_to_num(estimates.value / estimates.error)
    few = table.changed[1:] < FEW
    chances = [1.0 if rare else NormalDist().cdf(float(z)) for z, rare in zip(deviations, few, strict=True)]
    return [
        verdict.as_dict() | {"q_value": q, "search": {"n": candidate.count, "effect": candidate.effect}}
        for verdict, q, candidate in zip(verdicts, q_values(chances), kept, strict=True)
    ]


def _table(units: Units, held: Held, kept: Sequence[Candidate]) -> Slices:
    """Totals of all units of this half, then of every slice; clusters that were dealt into packs count by pack."""
    alone = units.clusters == units.count
    present, pack = np.unique(held.pack, return_inverse=True)
    moved = (held.sides[0] != held.sides[2]) | (held.sides[1] != held.sides[3])
    sums = np.zeros((max(2, len(present)), len(kept) + 1, 4))
    counts = np.zeros((3, len(kept) + 1), np.int64)
    for i, mask in enumerate(_masks(held, kept)):
        for side in range(4):
            sums[:, i, side] = np.bincount(pack[mask], held.sides[side, mask], len(sums))
        clusters = mask.sum() if alone else len(np.unique(pack[mask]))
        changed = (mask & moved).sum() if alone else len(np.unique(pack[mask & moved]))
        counts[:, i] = mask.sum(), changed, clusters
    names = [{}, *(_named(units, candidate) for candidate in kept)]
    return Slices(names, sums, *counts)


def _masks(held: Held, kept: Sequence[Candidate]) -> Iterator[Mask]:
    yield np.ones(len(held.pack), bool)
    for candidate in kept:
        yield held.mask(candidate)


def _named(units: Units, candidate: Candidate) -> dict[str, Any]:
    return {units.dimensions[d].name: units.dimensions[d].values[code] for d, code in candidate.where}


def q_values(chances: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's adjusted p-values, in the order given."""
    count = len(chances)
    order = sorted(range(count), key=lambda i: chances[i], reverse=True)
    found, least = [1.0] * count, 1.0
    for rank, i in enumerate(order):
        least = min(least, chances[i] * count / (count - rank))
        found[i] = least
    return found
