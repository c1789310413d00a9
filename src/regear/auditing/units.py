"""Joined units with their dimensions coded as small integers, and the totals of every pack and slice.

A pack is a cluster (by default a unit), or several dealt together: above `PACKS` clusters they are dealt at random
into so many packs, which costs the intervals next to nothing and bounds memory, however many rows there are. Totals
are sums, so that a table larger than memory is read in a stream.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from regear.auditing.dimensions import Dimension, code
from regear.auditing.tables import Metric

Array = NDArray[np.float64]

PACKS = 4096
IN_MEMORY = 5_000_000  # rows above which the joined units lie in a file instead
ROWS = 1_000_000  # rows read at once; sums are taken in this order, so that they repeat to the last digit


@dataclass(frozen=True)
class Slices:
    """Totals a pack and slice: [G, S, 4] of after, its weight, before, its weight.

    `units`, `clusters`: how many have the metric; `changed`: how many clusters hold a unit that changed; each [S].
    """

    names: list[dict[str, Any]]
    sums: NDArray[np.float64]
    units: NDArray[np.int64]
    changed: NDArray[np.int64]
    clusters: NDArray[np.int64]

    def take(self, kept: NDArray[np.bool_]) -> "Slices":
        names = [name for name, keep in zip(self.names, kept, strict=True) if keep]
        return Slices(names, self.sums[:, kept], self.units[kept], self.changed[kept], self.clusters[kept])

    def __add__(self, other: "Slices") -> "Slices":
        joined = [np.concatenate(both) for both in zip(self._counts(), other._counts(), strict=True)]
        return Slices(self.names + other.names, np.concatenate([self.sums, other.sums], axis=1), *joined)

    def _counts(self) -> tuple[NDArray[np.int64], ...]:
        return self.units, self.changed, self.clusters


@dataclass(frozen=True)
class Units:
    """Coded units: columns `id`, `cluster`, `pack`, `d0`, `d1`, … and per metric `b0`, `bw0`, `a0`, `aw0`, …"""

    frame: pl.LazyFrame
    metrics: list[Metric]
    dimensions: list[Dimension]
    count: int
    packs: int
    clusters: int

    def index(self, name: str) -> int:
        return next(i for i, dimension in enumerate(self.dimensions) if dimension.name == name)

    def spread(self, metric: int) -> float:
        """Standard deviation, over units and by weight, of the metric before."""
        value, weight = pl.col(f"b{metric}") / pl.col(f"bw{metric}"), pl.col(f"bw{metric}")
        rows = self.frame.filter(weight > 0)
        centre = rows.select((value * weight).sum() / weight.sum()).collect(engine="streaming").item()
        # In two passes: a difference of large squares would lose a small spread.
        variance = rows.select(((value - centre) ** 2 * weight).sum() / weight.sum()).collect(engine="streaming").item()
        return float(variance or 0.0) ** 0.5

    def typical_change(self, metric: int) -> float:
        """Mean absolute change of the units that changed; where none did, by how much units differ that do."""
        after, before = (pl.col(f"{side}{metric}") / pl.col(f"{side}w{metric}") for side in "ab")
        for change in (after - before, before - before.shift(1)):
            size = change.abs()
            found = self.frame.select(size.filter((size > 0) & size.is_finite()).mean()).collect().item()
            if found is not None:
                return float(found)
        return 0.0

    def slices(self, metric: int, names: Sequence[str]) -> Slices:
        """Totals of every combination of values of these dimensions that has units; of all units for no dimension."""
        keys = [f"d{self.index(name)}" for name in names]
        counts = self._counts(metric, keys)
        codes = counts.select(keys).rows() if keys else [()]
        values = [self.dimensions[self.index(name)].values for name in names]
        labels = [{n: v[c] for n, v, c in zip(names, values, row, strict=True)} for row in codes]
        numbers = [counts[name].to_numpy().astype(np.int64) for name in ("units", "changed", "clusters")]
        return Slices(labels, self._sums(metric, keys, codes), *numbers)

    def _counts(self, metric: int, keys: Sequence[str]) -> pl.DataFrame:
        b, bw, a, aw = (pl.col(f"{side}{metric}") for side in ("b", "bw", "a", "aw"))
        there, moved = b.is_not_null(), (a != b) | (aw != bw)
        counted = [
            there.sum().alias("units"),
            pl.col("cluster").filter(moved).n_unique().alias("changed"),
            pl.col("cluster").filter(there).n_unique().alias("clusters"),
        ]
        rows = self.frame.group_by(keys).agg(counted).sort(keys) if keys else self.frame.select(counted)
        return rows.collect(engine="streaming")

    def _sums(self, metric: int, keys: Sequence[str], codes: Sequence[tuple[int, ...]]) -> Array:
        shape = tuple(len(self.dimensions[int(key[1:])].values) for key in keys)
        place = np.zeros(shape, np.int64)
        for index, row in enumerate(codes):
            place[row] = index
        sides = [f"{side}{metric}" for side in ("a", "aw", "b", "bw")]
        sums = np.zeros((4, self.packs * len(codes)))
        for rows in self.batches(["pack", *keys, *sides]):
            there = rows.drop_nulls(sides)
            where = place[tuple(there[key].to_numpy() for key in keys)] if keys else 0
            cell = there["pack"].to_numpy().astype(np.int64) * len(codes) + where
            for side, column in enumerate(sides):
                sums[side] += np.bincount(cell, there[column].to_numpy(), minlength=sums.shape[1])
        return np.ascontiguousarray(sums.reshape(4, self.packs, len(codes)).transpose(1, 2, 0))

    def batches(self, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        """The units, some columns of `ROWS` at a time, always in the same order."""
        for start in range(0, self.count, ROWS):
            yield self.frame.slice(start, ROWS).select(columns).collect()


@contextmanager
def coded(
    joined: pl.LazyFrame,
    metrics: Sequence[Metric],
    dimensions: Sequence[str],
    *,
    sensitive: Sequence[str] = (),
    seed: int = 0,
) -> Iterator[Units]:
    """Units in memory, or, above `IN_MEMORY` rows, in a file that is gone afterwards.

    Raises:
        RecipeError: a dimension has too many values.
        DataError: a dimension holds something else than values.
    """
    count = joined.select(pl.len()).collect(engine="streaming").item()
    with tempfile.TemporaryDirectory(prefix="regear-audit-") as folder:
        hold = _in_memory if count <= IN_MEMORY else _in_file
        frame = hold(joined, Path(folder) / "joined.parquet")
        found, expressions = [], []
        for index, name in enumerate(dimensions):
            values, expression = code(frame, name)
            found.append(Dimension(name, values, name in sensitive))
            expressions.append(expression.cast(pl.UInt16).alias(f"d{index}"))
        numbers = [f"{side}{i}" for i in range(len(metrics)) for side in ("b", "bw", "a", "aw")]
        clusters = frame.select(pl.col("cluster").n_unique()).collect(engine="streaming").item()
        pack = _dealt(clusters, seed)
        rows = frame.select("id", "cluster", pack.cast(pl.UInt16).alias("pack"), *expressions, *numbers)
        yield Units(
            hold(rows, Path(folder) / "units.parquet"),
            list(metrics),
            found,
            count,
            min(max(2, clusters), PACKS),
            clusters,
        )


def _dealt(clusters: int, seed: int) -> pl.Expr:
    """Which pack a row's cluster is in."""
    cluster = pl.col("cluster")
    return cluster.rank("dense") - 1 if clusters <= PACKS else cluster.hash(seed) % PACKS


def _in_memory(rows: pl.LazyFrame, _: Path) -> pl.LazyFrame:
    # Sorted, so that the order in which rows were given changes not even the last digit.
    return rows.collect(engine="streaming").sort("id").lazy()


def _in_file(rows: pl.LazyFrame, path: Path) -> pl.LazyFrame:
    rows.sink_parquet(path)
    return pl.scan_parquet(path)
