"""Joined units with their dimensions coded as small integers, and the totals of every pack and slice.

A pack is a cluster (by default a unit), or several dealt together: above `PACKS` clusters they are dealt at random
into so many packs, which costs the intervals next to nothing and bounds memory, however many rows there are. Totals
are sums, so that a table larger than memory is read in a stream.
"""

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from regear.auditing.tables import UNKNOWN, Metric
from regear.core.errors import RecipeError

PACKS = 4096
IN_MEMORY = 5_000_000  # rows above which the joined units lie in a file instead
MANY = 20  # distinct numbers above which a dimension is cut into quartiles
MOST = 200  # values a dimension may have


@dataclass(frozen=True)
class Dimension:
    """A name, its values in order (coded by their index), and whether it came from the file kept apart."""

    name: str
    values: list[Any]
    sensitive: bool = False


@dataclass(frozen=True)
class Slices:
    """Totals a pack and slice: [G, S, 4] of after, its weight, before, its weight; units counted and changed, [S]."""

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
        """Mean absolute change of the units that changed; where none did, the spread before."""
        change = (pl.col(f"a{metric}") / pl.col(f"aw{metric}") - pl.col(f"b{metric}") / pl.col(f"bw{metric}")).abs()
        found = self.frame.filter(change > 0).select(change.mean()).collect(engine="streaming").item()
        return self.spread(metric) if found is None else float(found)

    def slices(self, metric: int, names: Sequence[str]) -> Slices:
        """Totals of every combination of values of these dimensions that has units; of all units for no dimension."""
        keys = [f"d{self.index(name)}" for name in names]
        b, bw, a, aw = (pl.col(f"{side}{metric}") for side in ("b", "bw", "a", "aw"))
        there = b.is_not_null()
        totals = self.frame.filter(there).group_by(["pack", *keys]).agg(a.sum(), aw.sum(), b.sum(), bw.sum())
        counted = [
            there.sum().alias("units"),
            ((a != b) | (aw != bw)).sum().alias("changed"),
            pl.col("cluster").filter(there).n_unique().alias("clusters"),
        ]
        rows = self.frame.group_by(keys).agg(counted).sort(keys) if keys else self.frame.select(counted)
        found, counts = totals.collect(engine="streaming"), rows.collect(engine="streaming")
        codes = counts.select(keys).rows() if keys else [()]
        place = {code: i for i, code in enumerate(codes)}
        sums = np.zeros((self.packs, len(codes), 4))
        where = [place[row] for row in (found.select(keys).rows() if keys else [()] * len(found))]
        sums[found["pack"].to_numpy(), where] = found.select(
            f"a{metric}", f"aw{metric}", f"b{metric}", f"bw{metric}"
        ).to_numpy()
        values = [self.dimensions[self.index(name)].values for name in names]
        labels = [{n: v[c] for n, v, c in zip(names, values, code, strict=True)} for code in codes]
        numbers = [counts[name].to_numpy().astype(np.int64) for name in ("units", "changed", "clusters")]
        return Slices(labels, sums, *numbers)


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
        RecipeError: a dimension has more than `MOST` values.
    """
    count = joined.select(pl.len()).collect(engine="streaming").item()
    coded_dimensions, expressions = [], []
    for index, name in enumerate(dimensions):
        values, expression = _code(joined, name)
        coded_dimensions.append(Dimension(name, values, name in sensitive))
        expressions.append(expression.cast(pl.UInt16).alias(f"d{index}"))
    numbers = [f"{side}{i}" for i in range(len(metrics)) for side in ("b", "bw", "a", "aw")]
    clusters = joined.select(pl.col("cluster").n_unique()).collect(engine="streaming").item()
    few = clusters <= PACKS
    pack = pl.col("cluster").rank("dense") - 1 if few else pl.col("cluster").hash(seed) % PACKS
    rows = joined.select("id", "cluster", pack.cast(pl.UInt16).alias("pack"), *expressions, *numbers)
    packs = max(2, clusters if few else PACKS)
    with tempfile.TemporaryDirectory(prefix="regear-audit-") as folder:
        if count <= IN_MEMORY:
            frame = rows.collect(engine="streaming").lazy()
        else:
            path = Path(folder) / "units.parquet"
            rows.sink_parquet(path)
            frame = pl.scan_parquet(path)
        yield Units(frame, list(metrics), coded_dimensions, count, packs)


def _code(frame: pl.LazyFrame, name: str) -> tuple[list[Any], pl.Expr]:
    """The values of a dimension in order, and the expression that gives each row its index; empty is `unknown`."""
    column = pl.col(name)
    kind = frame.collect_schema()[name]
    if kind.is_float():
        column = pl.when(column.is_nan()).then(None).otherwise(column)
    values = frame.select(column.unique()).collect(engine="streaming")[name].drop_nulls().sort()
    if kind.is_numeric() and len(values) > MANY:
        return _quartiles(frame, name, column)
    if len(values) > MOST:
        raise RecipeError(f"attribute {name!r} has {len(values):,} values; wanted at most {MOST}: group them first")
    labels = [*values.to_list(), UNKNOWN]
    return labels, column.replace_strict(values, list(range(len(values))), default=len(values))


def _quartiles(frame: pl.LazyFrame, name: str, column: pl.Expr) -> tuple[list[Any], pl.Expr]:
    cuts = frame.select(column.quantile(q).alias(str(q)) for q in (0.25, 0.5, 0.75)).collect(engine="streaming").row(0)
    edges = sorted(dict.fromkeys(cuts))
    shown = [f"{edge:g}" for edge in edges]
    labels: list[Any] = [f"≤ {shown[0]}"]
    labels += [f"{a} – {b}" for a, b in itertools.pairwise(shown)]
    labels += [f"> {shown[-1]}", UNKNOWN]
    code = sum((column > edge).cast(pl.UInt16) for edge in edges)
    return labels, pl.when(column.is_null()).then(len(labels) - 1).otherwise(code)
