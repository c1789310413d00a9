"""A re-ranker that brings the exposure of several item attributes back to targets, and what that costs in relevance.

Every pick maximises `score − strength · sum_d weight_d · sum_v part(i, d, v) · (exposure_dv − target_dv)`: a greedy
step against half the squared distance between the exposure given out so far and its target, the exposure of a value
being its mean share of attention over the lists so far. Scores are first brought to 0 … 1 within each user's
candidates. Lists are filled in rounds of users, rank by rank; within a round everyone sees the same exposure, and a
round is a twentieth of the lists before it, so that no round moves the exposure far.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from regear.auditing.catalogue import Catalogue
from regear.auditing.exposure import merits
from regear.auditing.lists import K, Table, attention, keyed, rankings, refuse, relevant
from regear.core.errors import RecipeError

PRIOR = 20  # lists, all on target, that the first round starts from
GROWTH = 20  # a round is at most this part of what came before it

Array = NDArray[np.float64]
Target = dict[str, dict[str, float]]  # dimension → value → share


@dataclass(frozen=True)
class Candidates:
    """Users' candidates, best first, padded: item codes [U, C] (−1: none) and scores in 0 … 1 [U, C] (−∞: none)."""

    users: list[str]
    items: list[str]
    codes: NDArray[np.int64]
    scores: Array


def candidates(source: Table, k: int = K) -> Candidates:
    """Candidates from rows `user`, `item`, `score`; equal scores keep their order in the table.

    Raises:
        DataError: an empty cell, a score that is not finite, an item twice for a user, or a user with fewer than k.
    """
    rows = keyed(source, "candidates", ("user", "item"), ("score",)).with_row_index("at")
    names = {key: rows.select(key).unique().sort(key).with_row_index(f"{key}_code") for key in ("user", "item")}
    for key, codes in names.items():
        rows = rows.join(codes, on=key)
    refuse(rows.filter(pl.struct("user_code", "item_code").is_duplicated()), "have an item twice among candidates")
    few = rows.group_by("user").len().filter(pl.col("len") < k)
    refuse(few, f"have fewer than {k} candidates; give more, or a smaller k")
    lowest, highest = pl.col("score").min().over("user_code"), pl.col("score").max().over("user_code")
    unit = pl.when(highest > lowest).then((pl.col("score") - lowest) / (highest - lowest)).otherwise(0.0)
    rows = rows.sort(["user_code", "score", "at"], descending=[False, True, False])
    rows = rows.select("user_code", "item_code", unit=unit, column=pl.int_range(pl.len()).over("user_code"))
    users, items = names["user"]["user"].to_list(), names["item"]["item"].to_list()
    shape = (len(users), int(rows["column"].max()) + 1)  # type: ignore[arg-type]
    found, scores = np.full(shape, -1), np.full(shape, -np.inf)
    place = rows["user_code"].to_numpy(), rows["column"].to_numpy()
    found[place], scores[place] = rows["item_code"].to_numpy(), rows["unit"].to_numpy()
    return Candidates(users, items, found, scores)


def rerank(
    found: Candidates,
    parts: Mapping[str, pl.DataFrame],
    target: Target,
    *,
    strength: float,
    weights: Mapping[str, float] | None = None,
    k: int = K,
    seed: int = 0,
) -> pl.DataFrame:
    """New lists `user`, `item`, `rank`; at strength 0 the candidates in their own order.

    Args:
        found: the candidates.
        parts: per dimension the rows `item`, `value`, `part` of a catalogue.
        target: per dimension the share every value should get; values it does not name should get none.
        strength: of the pull towards the targets; a gap of 0.1 at strength 1 costs a tenth of the range of scores.
        weights: per dimension (1 by default).
        k: entries of a list.
        seed: of the order in which users are served.

    Raises:
        RecipeError: a strength below 0, or a dimension that is unknown or without target.
    """
    if not strength >= 0:
        raise RecipeError(f"found strength {strength}; wanted 0 (nothing changes) or more")
    for name in {*target, *(weights or {})}:
        if name not in parts:
            raise RecipeError(f"no item dimension {name!r}; found {', '.join(parts)}")
    pull = {name: strength * (weights or {}).get(name, 1.0) for name in target}
    owner, column, part, goal, factor = _membership(found.items, parts, target, pull)
    discount = 1 / np.log2(np.arange(2, k + 2))
    discount /= discount.sum()
    given, lists = PRIOR * goal, float(PRIOR)  # attention given to each value, and lists given out
    order = np.random.default_rng(seed).permutation(len(found.users))
    chosen = np.empty((len(order), k), dtype=np.int64)
    start = 0
    while start < len(order):
        round_ = order[start : start + max(1, int(lists) // GROWTH)]
        scores, codes = found.scores[round_].copy(), found.codes[round_]
        for rank in range(k):
            shown = lists + len(round_) * discount[:rank].sum()
            price = np.bincount(owner, (factor * (given / shown - goal))[column] * part, minlength=len(found.items))
            pick = np.argmax(scores - price[codes], axis=1)
            chosen[round_, rank] = taken = np.take_along_axis(codes, pick[:, None], 1)[:, 0]
            np.put_along_axis(scores, pick[:, None], -np.inf, 1)
            counts = np.bincount(taken, minlength=len(found.items)) * discount[rank]
            given = given + np.bincount(column, counts[owner] * part, minlength=len(goal))
        lists += len(round_)
        start += len(round_)
    return pl.DataFrame(
        {
            "user": np.repeat(np.array(found.users), k),
            "item": np.array(found.items)[chosen.ravel()],
            "rank": np.tile(np.arange(1, k + 1), len(found.users)),
        }
    )


def _membership(
    items: Sequence[str], parts: Mapping[str, pl.DataFrame], target: Target, pull: Mapping[str, float]
) -> tuple[NDArray[np.int64], NDArray[np.int64], Array, Array, Array]:
    """Which item (by code) has which part of which value: item, value and part of every triple; per value of all
    dimensions its target and pull."""
    codes = pl.DataFrame({"item": items, "owner": np.arange(len(items))})
    triples, goals, factors, offset = [], [], [], 0
    for name, goal in target.items():
        rows = parts[name].join(codes, on="item")
        values = sorted({*rows["value"], *goal})
        column = rows["value"].replace_strict(values, range(offset, offset + len(values)), return_dtype=pl.Int64)
        triples.append((rows["owner"].to_numpy(), column.to_numpy(), rows["part"].to_numpy()))
        goals += [goal.get(value, 0.0) for value in values]
        factors += [pull[name]] * len(values)
        offset += len(values)
    if not triples:
        raise RecipeError("found no target; wanted at least one item dimension with its shares")
    owner, place, part = (np.concatenate([triple[i] for triple in triples]) for i in range(3))
    return owner, place, part, np.array(goals), np.array(factors)


def target_of(
    kind: str, goods: Catalogue, *, lists: Table | None = None, relevance: Table | None = None, k: int = K
) -> Target:
    """What every value should get: its exposure in `lists` (`before`), its share of all items (`catalogue`), or of
    what users want (`merit`).

    Raises:
        RecipeError: another kind, or one whose table is missing.
    """
    match kind:
        case "before" if lists is not None:
            spread = attention(rankings(lists, "lists", k)).select("user", "item", gain="attention")
            return {name: merits(spread, parts) for name, parts in goods.parts.items()}
        case "merit" if relevance is not None:
            return {name: merits(relevant(relevance), parts) for name, parts in goods.parts.items()}
        case "catalogue":
            count = len(goods.items)
            totals = {
                name: parts.group_by("value").agg(pl.col("part").sum() / count) for name, parts in goods.parts.items()
            }
            return {name: dict(rows.iter_rows()) for name, rows in totals.items()}
    raise RecipeError(f"found target {kind!r}; wanted before (with lists), catalogue, or merit (with relevance)")
