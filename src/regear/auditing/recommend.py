"""How well lists match what their users want: NDCG, recall and hit at k, one row a user, for the audit of tables.

NDCG (Järvelin & Kekäläinen 2002) with the gain as given and the discount `1 / log2(1 + rank)`, ranks from 1:
`sum_i gain_i / log2(1 + rank_i)` over the same sum of the best possible list of k. Recall is the share of a user's
relevant items that stand in the list, hit whether any does. A user without a relevant item cannot be assessed: every
metric is null, never zero.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from regear.auditing.intervals import simultaneous
from regear.auditing.lists import DISCOUNT, K, Table, keyed, pair, refuse, relevant
from regear.auditing.rare import FEW, most_changed
from regear.auditing.units import PACKS
from regear.core.errors import DataError


@dataclass(frozen=True)
class UserTables:
    """One row a user, before and after: `id`, the `metrics`, and, before, the attributes.

    `not_measured`: whom the metrics leave out, in words.
    """

    before: pl.DataFrame
    after: pl.DataFrame
    metrics: list[str]
    not_measured: list[str]


def user_tables(before: Table, after: Table, relevance: Table, *, users: Table | None = None, k: int = K) -> UserTables:
    """The two tables of units that the audit compares.

    Args:
        before: lists `user`, `item`, `rank`.
        after: lists of the same users after the change.
        relevance: `user`, `item`, and `gain` (1 where there is no such column).
        users: `user` and attribute columns, for the slices.
        k: entries of a list that count.

    Raises:
        DataError: lists that are no rankings, users on one side only, or users that repeat in `users`.
    """
    one, two = pair(before, after, k)
    wanted = relevant(relevance)
    ids = one.select("user").unique().sort("user")
    if wanted.join(ids, on="user").is_empty():
        raise DataError("no user of the lists stands in relevance; check that both name users alike")
    sides = [ids.join(scores(lists, wanted, k), on="user", how="left").rename({"user": "id"}) for lists in (one, two)]
    metrics = [name for name in sides[0].columns if name != "id"]
    left = sides[0] if users is None else sides[0].join(_attributes(users), on="id", how="left")
    return UserTables(left, sides[1], metrics, _left_out(ids, wanted))


def _attributes(users: Table) -> pl.DataFrame:
    rows = keyed(users, "users", ("user",), ())
    refuse(rows.filter(pl.col("user").is_duplicated()), "stand more than once in users")
    return rows.drop("id", strict=False).rename({"user": "id"})


def _left_out(ids: pl.DataFrame, wanted: pl.DataFrame) -> list[str]:
    asked = wanted.select("user").unique()
    without, unlisted = len(ids.join(asked, on="user", how="anti")), len(asked.join(ids, on="user", how="anti"))
    found = []
    if without:
        found.append(f"{without:,} users have no relevant item, so how well their lists match is not known")
    if unlisted:
        found.append(f"{unlisted:,} users have relevant items but no list, before or after")
    return found


def scores(lists: pl.DataFrame, wanted: pl.DataFrame, k: int = K) -> pl.DataFrame:
    """`user`, `ndcg@k`, `recall@k`, `hit@k` of every user with a relevant item and a list, from checked tables."""
    ranked = wanted.with_columns(rank=pl.col("gain").rank("ordinal", descending=True).over("user"))
    ideal = (pl.col("gain") * DISCOUNT).filter(pl.col("rank") <= k).sum()
    best = ranked.group_by("user").agg(ideal.alias("ideal"), pl.len().alias("wanted"))
    hits = lists.join(wanted, on=["user", "item"], how="left").group_by("user")
    found = hits.agg((pl.col("gain") * pl.col("discount")).sum().alias("dcg"), pl.col("gain").count().alias("hits"))
    return best.join(found, on="user").select(
        "user",
        (pl.col("dcg") / pl.col("ideal")).alias(f"ndcg@{k}"),
        (pl.col("hits") / pl.col("wanted")).alias(f"recall@{k}"),
        (pl.col("hits") > 0).cast(pl.Float64).alias(f"hit@{k}"),
    )


def nothing_useful(tables: UserTables, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """People whose list held something they want and now holds nothing: `hit` from 1 to 0; and the reverse.

    Returns `{metric, users, lost, lost_share, lost_ci, gained, gained_share, gained_ci}`; shares are of the users who
    can be assessed, and both intervals hold at once at `level`.
    """
    name = next(metric for metric in tables.metrics if metric.startswith("hit@"))
    both = tables.before.select("id", b=name).join(tables.after.select("id", a=name), on="id").drop_nulls()
    change = both["a"].to_numpy() - both["b"].to_numpy()
    events = np.stack([change < 0, change > 0], axis=1).astype(np.float64)
    found = simultaneous(dealt(events, seed), (1,), level=level, resamples=resamples, seed=seed)
    result: dict[str, Any] = {"metric": name, "users": len(both)}
    for index, word in enumerate(("lost", "gained")):
        count, high = int(events[:, index].sum()), float(found.high[index])
        if count < FEW:  # too rare for the bootstrap; the exact binomial bound
            high = max(high, most_changed(count, len(both), 1 - (1 - level) / 4))
        bounds = [max(0.0, float(found.low[index])), min(1.0, high)]
        result |= {word: count, f"{word}_share": float(found.value[index]), f"{word}_ci": bounds}
    return result


def dealt(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """Values per user [U, S] as totals and counts of packs [G, S, 2]; above `PACKS` users, dealt at random."""
    users = len(values)
    pairs = np.stack([values, np.ones_like(values)], axis=-1)
    if users <= PACKS:
        return pairs
    order = np.random.default_rng(seed).permutation(users)
    return np.add.reduceat(pairs[order], np.arange(PACKS) * users // PACKS, axis=0)
