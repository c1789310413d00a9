"""Dimensions: columns of attributes coded as small integers. Unknown is a value; numbers are cut into quartiles."""

import itertools
from dataclasses import dataclass
from typing import Any

import polars as pl

from regear.auditing.tables import UNKNOWN
from regear.core.errors import DataError, RecipeError

MANY = 20  # distinct numbers above which a dimension is cut into quartiles
MOST = 200  # values a dimension may have


@dataclass(frozen=True)
class Dimension:
    """A name, its values in order (coded by their index), and whether it came from the file kept apart."""

    name: str
    values: list[Any]
    sensitive: bool = False


def code(frame: pl.LazyFrame, name: str) -> tuple[list[Any], pl.Expr]:
    """The values of a dimension in order, and the expression that gives each row its index; empty is `unknown`.

    Raises:
        RecipeError: more than `MOST` values.
        DataError: lists or structures instead of values.
    """
    kind = frame.collect_schema()[name]
    if kind.is_nested() or kind == pl.Binary or kind == pl.Object:
        raise DataError(f"attribute {name!r} holds {kind}; wanted words, numbers or true and false")
    column = pl.col(name)
    if kind.is_float():
        column = pl.when(column.is_nan()).then(None).otherwise(column)
    elif not (kind.is_integer() or kind == pl.Boolean):
        column = column.cast(pl.Float64 if kind.is_decimal() else pl.String)
    values = frame.select(column.unique().alias(name)).collect(engine="streaming")[name].sort()
    known = values.drop_nulls()
    if kind.is_numeric() and len(known) > MANY:
        return _quartiles(frame, column, empty=len(known) < len(values))
    if len(known) > MOST:
        raise RecipeError(f"attribute {name!r} has {len(known):,} values; wanted at most {MOST}: group them first")
    labels = known.to_list()
    if len(known) < len(values) and UNKNOWN not in labels:
        labels = [*labels, UNKNOWN]
    empty = labels.index(UNKNOWN) if UNKNOWN in labels else 0
    if not len(known):
        return labels, pl.lit(0)
    return labels, column.replace_strict(known, list(range(len(known))), default=empty, return_dtype=pl.UInt16)


def _quartiles(frame: pl.LazyFrame, column: pl.Expr, *, empty: bool) -> tuple[list[Any], pl.Expr]:
    cuts = frame.select(column.quantile(q).alias(str(q)) for q in (0.25, 0.5, 0.75)).collect(engine="streaming").row(0)
    edges = sorted(dict.fromkeys(cuts))
    shown = _shown(edges)
    labels: list[Any] = [f"≤ {shown[0]}"]
    labels += [f"{a} – {b}" for a, b in itertools.pairwise(shown)]
    labels += [f"> {shown[-1]}"] + [UNKNOWN] * empty
    place = sum((column > edge).cast(pl.UInt16) for edge in edges)
    return labels, pl.when(column.is_null()).then(len(labels) - 1).otherwise(place)


def _shown(edges: list[float]) -> list[str]:
    """Numbers with as few digits, six or more, as tell them apart."""
    for digits in range(6, 17):
        shown = [f"{edge:.{digits}g}" for edge in edges]
        if len(set(shown)) == len(edges):
            break
    return shown
