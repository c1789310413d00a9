"""Audit tables: JSONL, parquet or CSV read lazily, checked, and joined unit by unit.

One row a unit: `id`, optional `cluster`, metric columns (`name`, or `name:lower` where lower is better), attributes.
Nothing is dropped silently: what cannot be paired or counted is refused with the ids it concerns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from regear.core.errors import DataError, RecipeError, one_line
from regear.core.recipe import closest

LOWER = ":lower"
UNKNOWN = "unknown"
SHOWN = 5  # ids an error names
NUMERIC = pl.selectors.numeric() | pl.selectors.boolean()


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
    numeric = [name for name in schema.names() if (schema[name].is_numeric() or schema[name] == pl.Boolean)]
    if not wanted:
        wanted = [n for n in numeric if (n.endswith(LOWER) or schema[n].is_float()) and n not in reserved]
    if not wanted:
        raise RecipeError(f"found no column that is surely a metric; name one with --metric, of: {', '.join(numeric)}")
    return [_metric(name.removesuffix(LOWER), numeric, name.endswith(LOWER)) for name in wanted]


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

    Dimensions come from `attributes` (joined by id), else from the table before. A metric that is null on both sides
    does not apply to that unit: its four columns are null.

    Raises:
        DataError: ids that are missing, repeated or unmatched; values that are NaN or infinite; naming the first ones.
        RecipeError: an unknown dimension.
    """
    sides = {"before": before, "after": after}
    for name, frame in sides.items():
        if "id" not in columns_of(frame):
            raise DataError(f"the table {name} has no column `id`; found {', '.join(columns_of(frame))}")
        _refuse_repeats(frame, name)
    kept = _with_dimensions(before, dimensions, attributes)
    wanted = [pl.col("id").cast(pl.String)]
    extra = ["cluster"] if "cluster" in columns_of(before) else []
    left = kept.select(*wanted, *extra, *dimensions, *_values(before, metrics, weight, "b"))
    right = after.select(*wanted, *_values(after, metrics, weight, "a"))
    for way, one, other in (("before", left, right), ("after", right, left)):
        lost = one.join(other, on="id", how="anti")
        _refuse(lost, f"ids are in the table {way} only; wanted the same units in both tables")
    both = left.join(right, on="id", how="inner")
    if not extra:
        both = both.with_columns(cluster=pl.col("id"))
    for index, metric in enumerate(metrics):
        _refuse_values(both, metric, index)
    return both


def _with_dimensions(before: pl.LazyFrame, dimensions: Sequence[str], attributes: pl.LazyFrame | None) -> pl.LazyFrame:
    apart = set(columns_of(attributes)) - {"id"} if attributes is not None else set()
    own = set(columns_of(before))
    for name in dimensions:
        if name not in apart | own:
            known = sorted((apart | own) - {"id", "cluster"})
            raise RecipeError(f"no attribute {name!r}{closest(name, known)}; columns: {', '.join(known)}")
    if attributes is None:
        return before
    if "id" not in columns_of(attributes):
        raise DataError(f"the attributes have no column `id`; found {', '.join(columns_of(attributes))}")
    _refuse_repeats(attributes, "of attributes")
    taken = [name for name in dimensions if name in apart]
    return (
        before.drop([name for name in taken if name in own])
        .with_columns(pl.col("id").cast(pl.String))
        .join(attributes.select(pl.col("id").cast(pl.String), *taken), on="id", how="left")
    )


def _values(frame: pl.LazyFrame, metrics: Sequence[Metric], weight: str | None, side: str) -> list[pl.Expr]:
    found = []
    schema = frame.collect_schema()
    for index, metric in enumerate(metrics):
        for column in metric.columns:
            if column not in schema:
                raise DataError(f"the table {'after' if side == 'a' else 'before'} has no column {column!r}")
            if not (schema[column].is_numeric() or schema[column] == pl.Boolean):
                raise DataError(f"column {column!r} holds {schema[column]}; wanted numbers")
        if weight is not None and weight not in schema:
            raise DataError(f"no column {weight!r} to weigh units by; found {', '.join(schema.names())}")
        one = pl.lit(1.0) if weight is None else pl.col(weight).cast(pl.Float64)
        top = pl.col(metric.top).cast(pl.Float64)
        if metric.bottom:
            bottom = pl.col(metric.bottom).cast(pl.Float64)
            found += [top.alias(f"{side}{index}"), bottom.alias(f"{side}w{index}")]
        else:  # null where the metric does not apply, so that the unit counts nowhere
            shared = pl.when(top.is_null()).then(None).otherwise(one)
            found += [(top * one).alias(f"{side}{index}"), shared.alias(f"{side}w{index}")]
    return found


def _refuse_repeats(frame: pl.LazyFrame, name: str) -> None:
    missing = frame.select(pl.col("id").is_null().sum()).collect(engine="streaming").item()
    if missing:
        raise DataError(f"the table {name} has {missing} rows without an id; give every unit one")
    twice = frame.group_by("id").len().filter(pl.col("len") > 1)
    _refuse(twice, f"ids stand more than once in the table {name}; wanted one row a unit (name repeats with `cluster`)")


def _refuse_values(both: pl.LazyFrame, metric: Metric, index: int) -> None:
    sides = [pl.col(f"{side}{index}") for side in ("b", "a", "bw", "aw")]
    broken = pl.any_horizontal(x.is_nan() | x.is_infinite() for x in sides)
    half = pl.any_horizontal(x.is_null() for x in sides) & ~pl.all_horizontal(x.is_null() for x in sides)
    negative = pl.any_horizontal(x < 0 for x in sides[2:])
    name = metric.name
    _refuse(
        both.filter(broken), f"units have NaN or infinity as {name}; correct them, or leave them empty in both tables"
    )
    _refuse(both.filter(half), f"units have {name} on one side only; leave it empty in both tables, or give both")
    _refuse(both.filter(negative), f"units weigh less than nothing in {name}; wanted weights and denominators ≥ 0")


def _refuse(found: pl.LazyFrame, problem: str) -> None:
    count = found.select(pl.len()).collect(engine="streaming").item()
    if count:
        ids = found.select(pl.col("id").cast(pl.String)).sort("id").head(SHOWN).collect(engine="streaming")["id"]
        more = f" and {count - SHOWN} more" if count > SHOWN else ""
        raise DataError(f"{count} {problem}: {', '.join(ids)}{more}")
