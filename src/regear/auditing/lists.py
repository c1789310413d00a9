"""Recommender lists: one row an entry (`user`, `item`, `rank` from 1), checked, and the attention each entry gets.

Attention falls with the rank as `1 / log2(1 + rank)`, the discount of DCG (Järvelin & Kekäläinen 2002). Nothing is
mended silently: a list that is not a ranking is refused with the users it concerns.
"""

from pathlib import Path

import polars as pl

from regear.auditing.refusals import SHOWN
from regear.auditing.tables import columns_of, scan
from regear.core.errors import DataError, RecipeError

Table = pl.DataFrame | pl.LazyFrame | str | Path
K = 10
DISCOUNT = 1 / (1 + pl.col("rank")).log(2)


def table(source: Table) -> pl.DataFrame:
    """A table given as a frame or as the path of a .jsonl, .parquet or .csv file."""
    if isinstance(source, pl.DataFrame):
        return source
    frame = source if isinstance(source, pl.LazyFrame) else scan(source)
    return frame.collect(engine="streaming")


def rankings(source: Table, name: str, k: int = K) -> pl.DataFrame:
    """The first `k` entries of every list: `user` and `item` as text, `rank` from 1, `discount`.

    Args:
        source: rows `user`, `item`, `rank`.
        name: what an error calls the table.
        k: entries of a list that count.

    Raises:
        DataError: an entry without user, item or rank, a rank that is not a whole number from 1, ranks that repeat
            or leave gaps, or an item twice in a list; naming the first users.
        RecipeError: `k` below 1.
    """
    if k < 1:
        raise RecipeError(f"found k={k}; wanted at least 1 entry a list")
    rows = keyed(source, name, ("user", "item"), ("rank",))
    whole = (pl.col("rank") == pl.col("rank").round()) & (pl.col("rank") >= 1)
    refuse(rows.filter(~whole), f"{name} have ranks that are not whole numbers from 1")
    repeats = rows.filter(pl.struct("user", "rank").is_duplicated())
    refuse(repeats, f"{name} have two entries of one rank (a tie); break ties before the audit")
    gaps = rows.group_by("user").agg(pl.col("rank").max(), pl.len()).filter(pl.col("rank") != pl.col("len"))
    refuse(gaps, f"{name} lack ranks; wanted 1, 2, 3, … without gaps")
    refuse(rows.filter(pl.struct("user", "item").is_duplicated()), f"{name} hold an item twice")
    kept = rows.filter(pl.col("rank") <= k).with_columns(discount=DISCOUNT)
    return kept.select("user", "item", pl.col("rank").cast(pl.UInt32), "discount").sort("user", "rank")


def pair(before: Table, after: Table, k: int = K) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Both sides' lists, of the same users.

    Raises:
        DataError: as `rankings`, or users with a list on one side only.
    """
    one, two = rankings(before, "lists before", k), rankings(after, "lists after", k)
    for way, mine, other in (("before", one, two), ("after", two, one)):
        refuse(mine.join(other, on="user", how="anti"), f"have a list {way} only; wanted the same users on both sides")
    return one, two


def relevant(source: Table) -> pl.DataFrame:
    """What each user wants: `user`, `item`, `gain` > 0; without a column `gain` every row counts 1.

    Raises:
        DataError: empty keys, a pair that repeats, or a gain that is negative or not a number.
    """
    frame = table(source)
    frame = frame if "gain" in frame.columns else frame.with_columns(gain=pl.lit(1.0))
    rows = keyed(frame, "relevance", ("user", "item"), ("gain",))
    refuse(rows.filter(pl.col("gain") < 0), "have gains below 0 in relevance")
    refuse(rows.filter(pl.struct("user", "item").is_duplicated()), "have an item twice in relevance")
    return rows.filter(pl.col("gain") > 0).select("user", "item", "gain")


def attention(lists: pl.DataFrame) -> pl.DataFrame:
    """`user`, `item`, `attention`: the discounts of a list over their sum, so that every list gives out 1."""
    share = (pl.col("discount") / pl.col("discount").sum().over("user")).alias("attention")
    return lists.select("user", "item", share)


def keyed(source: Table, name: str, keys: tuple[str, ...], numbers: tuple[str, ...]) -> pl.DataFrame:
    """The table with its keys as text and its numbers as floats, none of them empty, NaN or infinite.

    Raises:
        DataError: a column is missing or of another kind, or values are; naming the first users.
    """
    frame = table(source)
    for column in (*keys, *numbers):
        if column not in frame.columns:
            raise DataError(f"{name}: found no column {column!r}, only {', '.join(columns_of(frame.lazy()))}")
        if column in numbers and not frame.schema[column].is_numeric():
            raise DataError(f"{name}: column {column!r} holds {frame.schema[column]}; wanted numbers")
    if frame.is_empty():
        raise DataError(f"{name}: the table is empty; wanted columns {', '.join((*keys, *numbers))} and rows")
    rows = frame.with_columns(
        *(pl.col(key).cast(pl.String) for key in keys), *(pl.col(number).cast(pl.Float64) for number in numbers)
    )
    empty = rows.filter(pl.any_horizontal(pl.col(key).is_null() for key in keys))
    if len(empty):
        raise DataError(f"{name}: {len(empty)} rows have no {' or no '.join(keys)}; wanted both in every row")
    if numbers:
        broken = rows.filter(pl.any_horizontal(~pl.col(number).is_finite().fill_null(False) for number in numbers))
        refuse(broken, f"have {' or '.join(numbers)} empty, NaN or infinite in {name}", keys[0])
    return rows


def refuse(found: pl.DataFrame, problem: str, key: str = "user") -> None:
    """Raise where there are rows, with how many users (or items) there are and the first of them.

    Raises:
        DataError: there are rows.
    """
    if len(found):
        ids = found[key].unique().sort()
        more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
        raise DataError(f"{len(ids)} {key}s: {problem}: {', '.join(ids.head(SHOWN))}{more}")
