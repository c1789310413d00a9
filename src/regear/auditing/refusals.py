"""What an audit refuses to count, in one clear line that names the first ids it concerns."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import polars as pl

from regear.core.errors import DataError, RecipeError

if TYPE_CHECKING:
    from regear.auditing.tables import Metric

SHOWN = 5  # ids an error names
LARGEST = 1e100  # beyond it sums of squares leave what a float can hold
OURS = re.compile(r"(b|a|bw|aw)\d+|_w")  # columns of the joined table


def refuse_twice(names: Sequence[str], what: str) -> None:
    """Refuse a name given more than once."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise RecipeError(f"found the {what} {twice[0]!r} named more than once; name each once")


def refuse_names(dimensions: Sequence[str]) -> None:
    """Refuse dimensions that are none, or that stand there twice."""
    refuse_twice(dimensions, "dimension")
    for name in dimensions:
        if name in ("id", "cluster"):
            raise RecipeError(f"found {name!r} as a dimension; it tells units apart, wanted an attribute they share")
        if OURS.fullmatch(name):
            raise RecipeError(f"attribute {name!r} has a name that the audit uses itself; rename the column")


def refuse_ids(frame: pl.LazyFrame, name: str) -> None:
    """Refuse a table without rows or ids, or with an id that repeats."""
    if "id" not in frame.collect_schema().names():
        raise DataError(f"the {name} has no column `id`; found {', '.join(frame.collect_schema().names())}")
    counts = frame.select(pl.len().alias("rows"), pl.col("id").is_null().sum()).collect(engine="streaming")
    rows, missing = counts.row(0)
    if not rows:
        raise DataError(f"the {name} has no rows; wanted one row a unit")
    if missing:
        raise DataError(f"the {name} has {missing} rows without an id; give every unit one")
    twice = frame.group_by("id").len().filter(pl.col("len") > 1)
    refuse(twice, f"ids stand more than once in the {name}; wanted one row a unit (a name that repeats is a `cluster`)")


def refuse_values(both: pl.LazyFrame, metrics: Sequence["Metric"], weight: str | None) -> None:
    """Refuse values and weights that cannot be counted."""
    problems: list[tuple[pl.Expr, str]] = [
        (
            _broken([pl.col("_w")]) | pl.col("_w").is_null(),
            f"units have no finite weight {weight!r}; give every unit one",
        ),
        (pl.col("_w") < 0, f"units have a negative weight {weight!r}; wanted 0 or more"),
    ]
    for index, metric in enumerate(metrics):
        name, bottoms = metric.name, [pl.col(f"{side}w{index}") for side in "ba"] if metric.bottom else []
        sides = [*(pl.col(f"{side}{index}") for side in "ba"), *bottoms]
        empty = [x.is_null() for x in sides]
        problems += [
            (_broken(sides), f"units have NaN or infinity as {name}; correct them, or leave them empty in both tables"),
            (
                pl.any_horizontal(x.abs() > LARGEST for x in sides),
                f"units have {name} beyond {LARGEST:g}, too large for sums of squares; give it in a larger unit",
            ),
            (
                pl.any_horizontal(empty) & ~pl.all_horizontal(empty),
                f"units have {name} on one side only; leave it empty in both tables, or give both",
            ),
        ]
        if bottoms:
            negative = pl.any_horizontal(x < 0 for x in bottoms)
            problems.append((negative, f"units have a negative denominator in {name}; wanted 0 or more"))
    counts = both.select(found.sum().alias(str(i)) for i, (found, _) in enumerate(problems))
    for count, (found, text) in zip(counts.collect(engine="streaming").row(0), problems, strict=True):
        if count:
            refuse(both.filter(found), text)


def _broken(columns: Sequence[pl.Expr]) -> pl.Expr:
    return pl.any_horizontal(x.is_nan() | x.is_infinite() for x in columns)


def refuse(found: pl.LazyFrame, problem: str) -> None:
    """Refuse rows where there are any, naming their first ids."""
    count = found.select(pl.len()).collect(engine="streaming").item()
    if count:
        ids = found.select(pl.col("id").cast(pl.String)).sort("id").head(SHOWN).collect(engine="streaming")["id"]
        more = f" and {count - SHOWN} more" if count > SHOWN else ""
        raise DataError(f"{count} {problem}: {', '.join(ids)}{more}")
