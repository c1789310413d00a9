"""Audit tables: JSONL, parquet or CSV read lazily, checked, and joined unit by unit.

One row a unit: `id`, optional `cluster`, metric columns (`name`, or `name:lower` where lower is better), attributes.
Nothing is dropped silently: what cannot be paired or counted is refused with the ids it concerns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from regear.auditing.refusals import refuse, refuse_ids, refuse_names, refuse_twice, refuse_values
from regear.core.errors import DataError, RecipeError, one_line
from regear.core.recipe import closest

LOWER = ":lower"
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Metric:
    """A column, or `numerator/denominator`: then the metric is the ratio of the two sums."""

    name: str
    top: str
    bottom: str | None
    lower: bool

    @property
    def sign(self) -> int:
        """+1 where more is better, −1 where less is."""
        return -1 if self.lower else 1

    @property
    def columns(self) -> list[str]:
        return [self.top, self.bottom] if self.bottom else [self.top]


def scan(path: str | Path) -> pl.LazyFrame:
    """A table by its name's ending: `.jsonl`, `.parquet` (also a folder of them) or `.csv`.

    Raises:
        DataError: missing, unreadable, empty, or of another kind.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise DataError(f"no table {place}; give an existing .jsonl, .parquet or .csv file")
    kind = ".parquet" if place.is_dir() else place.suffix.lower()
    try:
        match kind:
            case ".jsonl" | ".ndjson":
                frame = pl.scan_ndjson(place, infer_schema_length=None)
            case ".parquet":
                frame = pl.scan_parquet(place / "*.parquet" if place.is_dir() else place)
            case ".csv":
                frame = pl.scan_csv(place, infer_schema_length=None)
            case _:
                raise DataError(f"{place}: wanted a table that ends in .jsonl, .parquet or .csv")
        frame.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"cannot read {place}: {one_line(error)[:200]}; wanted one row a unit") from None
    return frame


def columns_of(frame: pl.LazyFrame) -> list[str]:
    return frame.collect_schema().names()


def resolve_metrics(wanted: Sequence[str], frame: pl.LazyFrame, reserved: Sequence[str]) -> list[Metric]:
    """Metrics by name; without names every `:lower` column and every column of fractions.

    Raises:
        RecipeError: an unknown name, or nothing that could be a metric.
    """
    schema = frame.collect_schema()
    numeric = [name for name in schema.names() if _countable(schema[name])]
    if not wanted:
        wanted = [n for n in numeric if (n.endswith(LOWER) or schema[n].is_float()) and n not in reserved]
    if not wanted:
        raise RecipeError(f"found no column that is surely a metric; name one with --metric, of: {', '.join(numeric)}")
    for name in wanted:
        for part in name.split("/"):
            if part in schema and not _countable(schema[part]):
                raise RecipeError(f"metric {part!r} holds {schema[part]}; wanted a column of numbers")
    found = [_metric(name.removesuffix(LOWER), numeric, name.endswith(LOWER)) for name in wanted]
    refuse_twice([metric.name for metric in found], "metric")
    return found


def _countable(kind: pl.DataType) -> bool:
    return kind.is_numeric() or kind == pl.Boolean


def _metric(name: str, columns: Sequence[str], lower: bool) -> Metric:
    top, _, bottom = name.partition("/")
    found = {column.removesuffix(LOWER): column for column in columns}
    for part in (top, bottom) if bottom else (name,):
        if part not in found:
            raise RecipeError(
                f"no metric {part!r}{closest(part, found)}; numeric columns: {', '.join(found) or 'none'}"
            )
    lower = lower or found[top].endswith(LOWER)
    return Metric(name, found[top], found[bottom] if bottom else None, lower)


def joined(
    before: pl.LazyFrame,
    after: pl.LazyFrame,
    metrics: Sequence[Metric],
    dimensions: Sequence[str],
    *,
    attributes: pl.LazyFrame | None = None,
    weight: str | None = None,
) -> pl.LazyFrame:
    """One row a unit: `id`, `cluster`, the dimensions, and per metric `b·`, `a·` (numerators) and `bw·`, `aw·`.

    Dimensions come from `attributes` (joined by id), else from the table before, as does the weight: it belongs to
    the unit, so that both sides weigh it alike. A metric that is null on both sides does not apply to that unit: its
    four columns are null.

    Raises:
        DataError: ids that are missing, repeated or unmatched; values that are NaN or infinite; naming the first ones.
        RecipeError: an unknown dimension.
    """
    sides = {"before": before, "after": after}
    for name, frame in sides.items():
        refuse_ids(frame, f"table {name}")
    refuse_names(dimensions)
    kept = _with_dimensions(before, dimensions, attributes)
    extra = ["cluster"] if "cluster" in columns_of(before) else []
    key = pl.col("id").cast(pl.String)
    left = kept.select(key, *extra, *dimensions, *_values(before, metrics, "b"), _weight(before, weight))
    right = after.select(key, *_values(after, metrics, "a"))
    kinds = [frame.collect_schema()["id"] for frame in sides.values()]
    differ = "" if kinds[0] == kinds[1] else f" (found {kinds[0]} before and {kinds[1]} after)"
    for way, one, other in (("before", left, right), ("after", right, left)):
        lost = one.join(other, on="id", how="anti")
        refuse(lost, f"ids are in the table {way} only{differ}; wanted the same units in both tables")
    both = left.join(right, on="id", how="inner", maintain_order="left")
    if extra:
        refuse(both.filter(pl.col("cluster").is_null()), "units have no cluster; give every unit one, or none")
    else:
        both = both.with_columns(cluster=pl.col("id"))
    refuse_values(both, metrics, weight)
    return _weighed(both, metrics)


def _with_dimensions(before: pl.LazyFrame, dimensions: Sequence[str], attributes: pl.LazyFrame | None) -> pl.LazyFrame:
    apart = set(columns_of(attributes)) - {"id"} if attributes is not None else set()
    own = set(columns_of(before))
    for name in dimensions:
        if name not in apart | own:
            known = sorted((apart | own) - {"id", "cluster"})
            raise RecipeError(f"no attribute {name!r}{closest(name, known)}; columns: {', '.join(known)}")
    if attributes is None:
        return before
    refuse_ids(attributes, "table of attributes")
    key = pl.col("id").cast(pl.String)
    shared = before.select(key).join(attributes.select(key), on="id", how="semi")
    if not shared.select(pl.len()).collect(engine="streaming").item():
        raise DataError("no id of the table of attributes is in the table before; wanted attributes of the same units")
    taken = [name for name in dimensions if name in apart]
    return (
        before.drop([name for name in taken if name in own])
        .with_columns(pl.col("id").cast(pl.String))
        .join(attributes.select(pl.col("id").cast(pl.String), *taken), on="id", how="left")
    )


def _values(frame: pl.LazyFrame, metrics: Sequence[Metric], side: str) -> list[pl.Expr]:
    """Numerators, and the denominators of ratios, as the table has them."""
    found = []
    schema = frame.collect_schema()
    for index, metric in enumerate(metrics):
        for column, name in zip(metric.columns, (f"{side}{index}", f"{side}w{index}"), strict=False):
            if column not in schema:
                raise DataError(f"the table {'after' if side == 'a' else 'before'} has no column {column!r}")
            if not _countable(schema[column]):
                raise DataError(f"column {column!r} holds {schema[column]}; wanted numbers")
            found.append(pl.col(column).cast(pl.Float64).alias(name))
    return found


def _weight(before: pl.LazyFrame, weight: str | None) -> pl.Expr:
    if weight is None:
        return pl.lit(1.0).alias("_w")
    schema = before.collect_schema()
    if weight not in schema or not _countable(schema[weight]):
        found = f"holds {schema[weight]}" if weight in schema else f"is not among {', '.join(schema.names())}"
        raise DataError(f"the weight {weight!r} {found}; wanted a column of numbers in the table before")
    return pl.col(weight).cast(pl.Float64).alias("_w")


def _weighed(both: pl.LazyFrame, metrics: Sequence[Metric]) -> pl.LazyFrame:
    """Numerators and denominators times the weight; without a denominator it is the weight, where there is a value."""
    found = []
    for index, metric in enumerate(metrics):
        for side in ("b", "a"):
            top = pl.col(f"{side}{index}")
            bottom = pl.col(f"{side}w{index}") if metric.bottom else pl.when(top.is_not_null()).then(1.0)
            found += [
                (top * pl.col("_w")).alias(top.meta.output_name()),
                (bottom * pl.col("_w")).alias(f"{side}w{index}"),
            ]
    return both.with_columns(found).drop("_w")
