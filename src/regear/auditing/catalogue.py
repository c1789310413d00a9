"""What items are: the values of each dimension (provider, genre, decade, …), and popularity bands.

An item may have several values of a dimension, a list in its cell: its exposure is split evenly between them. An
empty cell, and an item that the table does not hold, have the value `unknown`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from regear.auditing.lists import Table, keyed, refuse
from regear.auditing.tables import UNKNOWN
from regear.core.errors import DataError, RecipeError
from regear.core.recipe import closest

POPULARITY = "popularity"
COUNT = "interactions"
HEAD, MIDDLE = 0.1, 0.5  # shares of the catalogue, from the most popular item on
BANDS = {"head": "the tenth of the items that drew most", "mid": "down to half of them", "tail": "the other half"}


@dataclass(frozen=True)
class Catalogue:
    """All `items`, and per dimension the rows `item`, `value`, `part` (the parts of an item sum to 1)."""

    items: pl.DataFrame
    parts: dict[str, pl.DataFrame]
    described: bool  # whether a table of items was given, so that never shown items are known


def catalogue(
    items: Table | None, listed: pl.DataFrame, *, by: Sequence[str] = (), interactions: Table | None = None
) -> Catalogue:
    """The items of a table and of the lists, with the dimensions to compare.

    Args:
        items: rows `item` and a column a dimension; a cell that holds a list has several values.
        listed: rows `item`, those that stand in lists; items missing from the table are `unknown`.
        by: dimensions (every column by default; with counts also `popularity`).
        interactions: rows `item` (one each time someone took it), or `item` and its count `interactions`; by default
            the column `interactions` of `items`.

    Raises:
        DataError: an item stands twice in the table, or no listed item stands in it.
        RecipeError: an unknown dimension, or popularity without counts.
    """
    shown = listed.select("item").unique()
    if items is None:
        known, every = pl.DataFrame({"item": []}, schema={"item": pl.String}), shown.sort("item")
    else:
        known = keyed(items, "items", ("item",), ())
        refuse(known.filter(pl.col("item").is_duplicated()), "stand more than once in the table of items", "item")
        if shown.join(known, on="item").is_empty():
            raise DataError("no item of the lists stands in the table of items; check that both name items alike")
        every = pl.concat([known.select("item"), shown]).unique().sort("item")
    counts = interactions if interactions is not None else (known if COUNT in known.columns else None)
    names = [name for name in known.columns if name not in ("item", COUNT)]
    names += [POPULARITY] if counts is not None and POPULARITY not in names else []
    for name in by:
        if name == POPULARITY and name not in names:
            raise RecipeError("popularity needs counts: a column `interactions` of the items, or a table of them")
        if name not in names:
            raise RecipeError(f"no item dimension {name!r}{closest(name, names)}; found {', '.join(names) or 'none'}")
    parts = {}
    for name in by or names:
        if name == POPULARITY and name not in known.columns and counts is not None:
            values = bands(every, counts)
        else:
            values = every.join(known.select("item", value=name), on="item", how="left")
        parts[name] = _split(values)
    return Catalogue(every, parts, items is not None)


def _split(values: pl.DataFrame) -> pl.DataFrame:
    """One row an item and value, each with its even part."""
    if isinstance(values.schema["value"], pl.List):
        values = values.with_columns(pl.col("value").list.drop_nulls().list.unique())
        values = values.explode("value")
    text = pl.col("value").cast(pl.String).fill_null(UNKNOWN)
    rows = values.select("item", text).unique(maintain_order=True)
    return rows.with_columns(part=1 / pl.len().over("item"))


def bands(items: pl.DataFrame, interactions: Table) -> pl.DataFrame:
    """`item`, `value`: `head` for the tenth of the catalogue with most interactions, `mid` down to half of it, `tail`.

    Items with equal counts share a band: an item is in the head if less than a tenth of the items have more than it.

    Raises:
        DataError: counts that are negative, empty or not numbers, or an item with two counts.
    """
    frame = keyed(interactions, "interactions", ("item",), ())
    if COUNT in frame.columns:
        counted = keyed(frame.with_columns(pl.col(COUNT).fill_null(0)), "interactions", ("item",), (COUNT,))
        refuse(counted.filter(pl.col(COUNT) < 0), "have counts below 0", "item")
        refuse(counted.filter(pl.col("item").is_duplicated()), "have two counts of interactions", "item")
    else:
        counted = frame.group_by("item").agg(pl.len().cast(pl.Float64).alias(COUNT))
    ranked = items.select("item").join(counted.select("item", COUNT), on="item", how="left")
    above = (pl.col(COUNT).fill_null(0).rank("min", descending=True) - 1) / pl.len()
    band = pl.when(above < HEAD).then(pl.lit("head")).when(above < MIDDLE).then(pl.lit("mid")).otherwise(pl.lit("tail"))
    return ranked.select("item", value=band)
