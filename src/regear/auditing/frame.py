"""`AuditFrame`: an audit in a notebook, with the feel of fairlearn's `MetricFrame` and a before beside the after."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from regear.auditing.compare import compare, crossings, margins
from regear.auditing.slices import discover
from regear.auditing.tables import Metric, joined
from regear.auditing.units import Units, coded
from regear.auditing.verdict import Verdict
from regear.core.errors import DataError, RecipeError
from regear.core.recipe import closest

PerUnit = Callable[[Any, Any], ArrayLike]
Pair = tuple[ArrayLike, ArrayLike]


class AuditFrame:
    """Metrics of the same units before and after a change, over all of them and in every slice.

    Args:
        metrics: name to a function of (y_true, y_pred) that gives one value a unit, or to a pair of such values
            (before, after).
        y_true: what should have come out, one a unit; for functions.
        before: what came out before the change, one a unit; for functions.
        after: what came out after it.
        slices: columns of attributes: a mapping, or a polars or pandas frame. Empty is `unknown`.
        cluster: which independent unit (such as a user) each row belongs to.
        weight: what each unit counts for.
        lower_is_better: names of metrics where less is better.
        margin: per metric, the loss that still counts as none: a number, or `2%` of the mean before.
        depth: also cross the dimensions with each other, up to so many at once.
        level: of all intervals together.
        resamples: bootstrap draws.
        seed: of the draws.

    Raises:
        DataError: columns of different lengths, or values that cannot be counted.
        RecipeError: a function without anything to compute from, or a name that is none.
    """

    def __init__(
        self,
        metrics: Mapping[str, PerUnit | Pair],
        *,
        y_true: ArrayLike | None = None,
        before: ArrayLike | None = None,
        after: ArrayLike | None = None,
        slices: Any = None,
        cluster: ArrayLike | None = None,
        weight: ArrayLike | None = None,
        lower_is_better: Sequence[str] = (),
        margin: Mapping[str, str | float] | None = None,
        depth: int = 1,
        level: float = 0.95,
        resamples: int = 2000,
        seed: int = 0,
    ) -> None:
        for name in lower_is_better:
            if name not in metrics:
                raise RecipeError(f"no metric {name!r}{closest(name, metrics)}; metrics: {', '.join(metrics)}")
        pairs = {name: _pair(name, given, y_true, before, after) for name, given in metrics.items()}
        columns = _columns(slices)
        self.dimensions = list(columns)
        self.depth, self._margin = depth, margin or {}
        self._settings: dict[str, Any] = {"level": level, "resamples": resamples, "seed": seed}
        self._metrics = [Metric(n, f"metric {i}", None, n in lower_is_better) for i, n in enumerate(pairs)]
        extra = {"cluster": cluster, "the weight": weight}
        columns |= {name: _series(name, values) for name, values in extra.items() if values is not None}
        self._weight = "the weight" if weight is not None else None
        self._before = _table({f"metric {i}": pair[0] for i, pair in enumerate(pairs.values())} | columns)
        self._after = _table({f"metric {i}": pair[1] for i, pair in enumerate(pairs.values())})
        if len(self._before) != len(self._after):
            raise DataError(
                f"found {len(self._before)} units before and {len(self._after)} after; wanted the same units"
            )

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """Of all units, then of every slice, for every metric."""
        with self._units() as units:
            allowed = margins(units, self._margin)
            return compare(units, crossings(self.dimensions, self.depth), allowed, **self._settings)

    @property
    def overall(self) -> pl.DataFrame:
        """One row a metric."""
        return self._frame([v for v in self.verdicts if not v.slice]).drop(self.dimensions)

    @property
    def by_group(self) -> pl.DataFrame:
        """One row a metric and slice; a dimension that the slice does not fix is null."""
        return self._frame([v for v in self.verdicts if v.slice])

    def worst(self, n: int = 10) -> pl.DataFrame:
        """The slices whose upper bound is lowest: what surely lost most."""
        sure = [v for v in self.verdicts if v.slice and v.ci]
        return self._frame(sorted(sure, key=lambda v: v.ci[1] if v.ci else 0.0)[:n])

    def difference(self) -> pl.DataFrame:
        """Per metric and dimension, the gap between the best and the worst slice, before and after."""
        rows = []
        for metric in self._metrics:
            for names in crossings(self.dimensions, self.depth):
                known = [v for v in self.verdicts if v.metric == metric.name and tuple(v.slice) == names]
                gaps = [_gap([v.before for v in known]), _gap([v.after for v in known])]
                rows.append((metric.name, " × ".join(names), *gaps))
        kinds = {"metric": pl.String, "dimension": pl.String, "before": pl.Float64, "after": pl.Float64}
        return pl.DataFrame(rows, schema=kinds, orient="row").with_columns(change=pl.col("after") - pl.col("before"))

    def discover(self, metric: str | None = None, *, depth: int = 3, top: int = 10) -> list[dict[str, Any]]:
        """The slices that lose most in a metric (by default the first), named or not; see `slices.discover`."""
        names = [one.name for one in self._metrics]
        metric = names[0] if metric is None else metric
        if metric not in names:
            raise RecipeError(f"no metric {metric!r}{closest(metric, names)}; metrics: {', '.join(names)}")
        with self._units() as units:
            allowed = margins(units, self._margin)[metric]
            return discover(units, names.index(metric), margin=allowed, depth=depth, top=top, **self._settings)

    @contextmanager
    def _units(self) -> Iterator[Units]:
        both = joined(self._before.lazy(), self._after.lazy(), self._metrics, self.dimensions, weight=self._weight)
        with coded(both, self._metrics, self.dimensions, seed=self._settings["seed"]) as units:
            yield units

    def _frame(self, verdicts: Sequence[Verdict]) -> pl.DataFrame:
        rows = []
        for v in verdicts:
            place = [None if name not in v.slice else str(v.slice[name]) for name in self.dimensions]
            low, high = v.ci or (None, None)
            rows.append((v.metric, *place, v.n, v.before, v.after, v.effect, low, high, v.margin, v.verdict))
        kinds: dict[str, Any] = {"metric": pl.String} | dict.fromkeys(self.dimensions, pl.String) | {"n": pl.Int64}
        kinds |= dict.fromkeys(("before", "after", "effect", "low", "high", "margin"), pl.Float64)
        return pl.DataFrame(rows, schema=kinds | {"verdict": pl.String}, orient="row")


def _pair(name: str, given: PerUnit | Pair, truth: Any, before: Any, after: Any) -> tuple[pl.Series, pl.Series]:
    if not callable(given):
        values = tuple(given)
        if len(values) != 2:
            raise RecipeError(f"metric {name!r} holds {len(values)} columns; wanted a pair: before, after")
    elif truth is None or before is None or after is None:
        raise RecipeError(f"metric {name!r} is a function; give y_true, before and after to compute it from")
    else:
        values = given(truth, before), given(truth, after)
    for one in values:
        if np.ndim(one) != 1:
            raise DataError(f"metric {name!r} gives shape {np.shape(one)}; wanted one value a unit, not one for all")
    return _series(name, values[0]), _series(name, values[1])


def _series(name: str, values: Any) -> pl.Series:
    if isinstance(values, pl.Series):
        return values.alias(name)
    found = np.asarray(values)
    items = found.tolist()
    if found.dtype == object:  # as pandas writes what is missing
        items = [None if type(x).__name__ in ("NAType", "NaTType") or x != x else x for x in items]
    return pl.Series(name, items, strict=False)


def _columns(slices: Any) -> dict[str, pl.Series]:
    if slices is None:
        return {}
    names = slices.columns if hasattr(slices, "columns") else slices
    return {str(name): _series(str(name), slices[name]) for name in names}


def _table(columns: Mapping[str, pl.Series]) -> pl.DataFrame:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} {count}" for name, count in lengths.items())
        raise DataError(f"columns differ in length: {shown}; wanted one value a unit in each")
    count = max(lengths.values(), default=0)
    return pl.DataFrame({"id": range(count)} | {name: column.alias(name) for name, column in columns.items()})


def _gap(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) - min(known) if known else None
