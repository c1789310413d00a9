"""What a re-ranking costs and what it brings: relevance against the distance of exposure from its target."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from regear.auditing.catalogue import Catalogue
from regear.auditing.exposure import merits
from regear.auditing.intervals import Estimates, simultaneous
from regear.auditing.lists import K, Table, attention, rankings, relevant
from regear.auditing.recommend import dealt, scores
from regear.auditing.rerank import Candidates, Target, rerank
from regear.core.errors import DataError, RecipeError

STRENGTHS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
Array = NDArray[np.float64]


def trade_off(
    found: Candidates,
    goods: Catalogue,
    target: Target,
    relevance: Table,
    *,
    strengths: Sequence[float] = STRENGTHS,
    weights: Mapping[str, float] | None = None,
    others: Mapping[str, Table] | None = None,
    k: int = K,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The points of a plot: one for every strength, then one for each of the `others`.

    Args:
        found: candidates of the lists that are re-ranked.
        goods: the items and their dimensions.
        target: per dimension the share that every value should get.
        relevance: what users want.
        strengths: to try; 0 is always among them, and is what the others are compared with.
        weights: per dimension.
        others: further lists of the same users to set beside, such as those before the change.
        k: entries of a list.
        level: of all intervals of a kind together.
        resamples: bootstrap draws, of users.
        seed: of the order of users and of the draws.

    Returns rows `{name, strength, ndcg: {value, ci}, change: {value, ci}, distance: {dimension: {value, ci}},
    coverage}`. `change` is in NDCG, from strength 0; `distance` the total variation distance of exposure from the
    target, whose interval holds the signs of the gaps as found.

    Raises:
        DataError: no user with candidates has a relevant item, or `others` have other users.
        RecipeError: `others` without a name of their own.
    """
    tried = list(dict.fromkeys([0.0, *map(float, strengths)]))
    lists = {
        f"strength {s:g}": rankings(
            rerank(found, goods.parts, target, strength=s, weights=weights, k=k, seed=seed), "re-ranked lists", k
        )
        for s in tried
    }
    for name, source in (others or {}).items():
        if name in lists:
            raise RecipeError(f"found two points named {name!r}; give the lists another name")
        lists[name] = rankings(source, f"lists {name}", k)
        if set(lists[name]["user"]) != set(found.users):
            raise DataError(f"lists {name} have other users than the candidates; wanted the same")
    wanted = relevant(relevance)
    settings: dict[str, Any] = {"level": level, "resamples": resamples, "seed": seed}
    ndcg = np.stack([scores(rows, wanted, k).sort("user")[f"ndcg@{k}"].to_numpy() for rows in lists.values()], axis=1)
    if not len(ndcg):
        raise DataError("no user with candidates has a relevant item; check that both name users alike")
    quality = simultaneous(dealt(ndcg, seed), (1,), **settings)
    change = simultaneous(dealt(ndcg - ndcg[:, :1], seed), (1,), **settings)
    gaps = np.stack([_gap(rows, goods.parts[d], target[d]) for rows in lists.values() for d in target], axis=1)
    distance = simultaneous(dealt(gaps, seed), (1,), **settings)
    points = []
    for index, (name, rows) in enumerate(lists.items()):
        far = {d: _interval(distance, index * len(target) + place, 0.0) for place, d in enumerate(target)}
        points.append(
            {
                "name": name,
                "strength": tried[index] if index < len(tried) else None,
                "ndcg": _interval(quality, index, 0.0),
                "change": _interval(change, index),
                "distance": far,
                "coverage": rows["item"].n_unique() / len(goods.items),
            }
        )
    return points


def _gap(lists: pl.DataFrame, parts: pl.DataFrame, goal: Mapping[str, float]) -> Array:
    """Per user, [U], what their list adds to the total variation distance from the target: its mean is the distance."""
    seen = attention(lists)
    total = merits(seen.rename({"attention": "gain"}), parts)
    sign = {value: float(np.sign(total.get(value, 0.0) - goal.get(value, 0.0))) for value in {*total, *goal}}
    pull = parts.with_columns(sign=pl.col("value").replace_strict(sign, default=0.0, return_dtype=pl.Float64))
    weight = pull.group_by("item").agg((pl.col("sign") * pl.col("part")).sum().alias("weight"))
    rows = seen.join(weight, on="item").group_by("user").agg((pl.col("attention") * pl.col("weight")).sum())
    return (rows.sort("user")["attention"].to_numpy() - sum(sign[v] * share for v, share in goal.items())) / 2


def _interval(found: Estimates, index: int, least: float = -np.inf) -> dict[str, Any]:
    low, high = float(found.low[index]), float(found.high[index])
    return {"value": float(found.value[index]), "ci": [max(least, low), high]}
