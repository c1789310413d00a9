"""Visibility: how much attention each group of items gets before and after a change, and who lost it.

An entry at rank r gets `1 / log2(1 + r)` of attention, each user's list is normalised to 1, and an item's exposure is
its mean over users, so that everyone's attention counts the same and all exposures sum to 1. A group's share is the
sum over its items, those of several groups split evenly. Its change is a mean over users of paired differences, so
that intervals resample users (the lists are what is random) and hold at once over all groups of all dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from regear.auditing.catalogue import Catalogue, catalogue
from regear.auditing.intervals import Estimates, simultaneous
from regear.auditing.lists import K, Table, attention, pair, relevant
from regear.auditing.rare import FEW, most_changed
from regear.auditing.units import PACKS
from regear.auditing.verdict import LEAST, Verdict, Word, decide, units_needed
from regear.auditing.visibility import summary
from regear.core.errors import RecipeError

METRIC = "visibility"
OTHERS = "all others"
FALL = 0.2  # of the share before: a loss that counts
MOST = 200  # groups of a dimension that get a row of their own


@dataclass(frozen=True)
class Shares:
    """Pack totals of the shares before and after, [G, S]; users per pack [G]; per group: users whose lists hold it,
    users whose share of it changed, and the mean absolute change of those who changed in its dimension."""

    before: NDArray[np.float64]
    after: NDArray[np.float64]
    users: NDArray[np.float64]
    reached: NDArray[np.int64]
    changed: NDArray[np.int64]
    typical: NDArray[np.float64]


def exposures(
    before: Table,
    after: Table,
    *,
    items: Table | None = None,
    by: Sequence[str] = (),
    provider: str | None = None,
    relevance: Table | None = None,
    interactions: Table | None = None,
    k: int = K,
    margin: float = FALL,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare who is seen before and after a change.

    Args:
        before: lists `user`, `item`, `rank`.
        after: lists of the same users.
        items: `item` and a column a dimension; a cell that holds a list is split evenly.
        by: item dimensions (every column of `items`, and `popularity`, by default).
        provider: the dimension whose values are those who may lose visibility (`provider` where there is such a
            column, else every item stands for itself).
        relevance: `user`, `item`, `gain`: the merit that exposure is set against.
        interactions: counts, or rows, of who took what: popularity bands.
        k: entries of a list that count.
        margin: loss that still counts as none, as a part of the share before, which is taken as known.
        level: of all intervals together.
        resamples: bootstrap draws.
        seed: of the draws.

    Returns `{k, margin, users, dimensions: {name: {rows, distance, values, grouped}}, summary, not_measured}`. A row is
    a verdict on `visibility` (`n`: users in whose lists the group stands) with its `items`, the `relative` change, and
    with relevance its `merit` and exposure `per_merit`.

    Raises:
        DataError: lists, items or counts that cannot be read as such.
        RecipeError: an unknown dimension, or a margin that is no fraction.
    """
    if not 0 < margin < 1:
        raise RecipeError(f"found exposure margin {margin}; wanted a fraction of the share before, such as 0.2")
    one, two = pair(before, after, k)
    merit = relevant(relevance) if relevance is not None else None
    goods = catalogue(items, pl.concat([one, two]), by=by, interactions=interactions)
    if provider is not None and provider not in goods.parts:
        raise RecipeError(f"no provider dimension {provider!r}; compared: {', '.join(goods.parts) or 'none'}")
    sides = _dealt(attention(one), attention(two), seed)
    settings: dict[str, Any] = {"level": level, "resamples": resamples, "seed": seed}
    dimensions = _dimensions(sides, goods, merit, margin, settings) if goods.parts else {}
    holder = provider or ("provider" if "provider" in goods.parts else None)
    found = summary(sides, goods, holder, margin, seed)
    if holder:
        found["providers_down"]["assessed"] = _surely_down(dimensions[holder]["rows"])
    users = sides["user"].n_unique()
    left = [] if goods.described else ["items that stand in no list: no table of items was given"]
    return {
        "k": k,
        "margin": margin,
        "users": users,
        "dimensions": dimensions,
        "summary": found,
        "not_measured": left,
    }


def _dealt(before: pl.DataFrame, after: pl.DataFrame, seed: int) -> pl.DataFrame:
    """`user`, `pack`, `item`, attention before `b` and after `a`; above `PACKS` users, dealt at random into packs."""
    users = before.select("user").unique().sort("user")
    place = np.random.default_rng(seed).permutation(len(users))
    pack = place if len(users) <= PACKS else place * PACKS // len(users)
    users = users.with_columns(pack=pl.Series(pack, dtype=pl.UInt32))
    rows = pl.concat(
        [before.select("user", "item", b="attention", a=0.0), after.select("user", "item", b=0.0, a="attention")]
    )
    return rows.group_by("user", "item", maintain_order=True).agg(pl.col("b", "a").sum()).join(users, on="user")


def _dimensions(
    sides: pl.DataFrame, goods: Catalogue, merit: pl.DataFrame | None, margin: float, settings: dict[str, Any]
) -> dict[str, Any]:
    kept = {name: _grouped(sides, parts) for name, parts in goods.parts.items()}
    tables = [shares(sides, parts, values) for parts, values in kept.values()]
    joined = _joined(tables)
    family = (joined.reached >= LEAST) & (joined.changed >= FEW)
    difference = joined.after - joined.before
    packed = np.stack([difference, np.broadcast_to(joined.users[:, None], difference.shape)], axis=-1)
    estimates = simultaneous(packed, (1,), family=family, **settings)
    found, place = {}, 0
    for name, (parts, values) in kept.items():
        rows = []
        for value in values:
            rows.append(_row(name, value, joined, estimates, place, margin, settings["level"]))
            place += 1
        distance = sum(abs(row["effect"]) for row in rows) / 2
        rows = _with_items(rows, values, parts, merit)
        grouped = goods.parts[name]["value"].n_unique() - len(values) + 1 if OTHERS in values else 0
        found[name] = {"rows": rows, "distance": distance, "values": len(values), "grouped": grouped}
    return found


def _joined(tables: Sequence[Shares]) -> Shares:
    def side(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(table, name) for table in tables], axis=-1)

    names = ("before", "after", "reached", "changed", "typical")
    return Shares(users=tables[0].users, **{name: side(name) for name in names})


def _grouped(sides: pl.DataFrame, parts: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """The parts with at most `MOST` values, the rest `all others`: those seen most, before and after together, so that
    the choice favours neither side."""
    seen = sides.select("item", total=pl.col("b") + pl.col("a")).join(parts, on="item", how="right")
    order = seen.group_by("value").agg((pl.col("total").fill_null(0) * pl.col("part")).sum())
    order = order.sort("total", "value", descending=[True, False])
    if len(order) <= MOST:
        return parts, sorted(order["value"])
    first = order["value"].head(MOST)
    renamed = pl.when(pl.col("value").is_in(first.implode())).then("value").otherwise(pl.lit(OTHERS))
    return parts.with_columns(value=renamed), [*first, OTHERS]


def shares(sides: pl.DataFrame, parts: pl.DataFrame, values: Sequence[str]) -> Shares:
    """Pack totals of every value's share of the lists, from rows `user`, `pack`, `item`, `b`, `a`."""
    codes = pl.DataFrame({"value": values, "code": np.arange(len(values), dtype=np.int64)})
    coded = parts.join(codes, on="value").select("item", "code", "part")
    split = sides.join(coded, on="item").group_by("user", "pack", "code", maintain_order=True)
    rows = split.agg((pl.col("b") * pl.col("part")).sum(), (pl.col("a") * pl.col("part")).sum())
    moved = (pl.col("a") - pl.col("b")).abs() > 1e-12
    packs = int(sides["pack"].max()) + 1  # type: ignore[arg-type]
    totals = rows.group_by("pack", "code", maintain_order=True).agg(pl.col("b", "a").sum())
    found = np.zeros((2, packs, len(values)))
    for index, side in enumerate(("b", "a")):
        found[index, totals["pack"].to_numpy(), totals["code"].to_numpy()] = totals[side].to_numpy()
    counts = rows.group_by("code").agg(pl.len(), moved.sum().alias("moved"))
    reached, changed = np.zeros((2, len(values)), dtype=np.int64)
    reached[counts["code"].to_numpy()], changed[counts["code"].to_numpy()] = counts["len"], counts["moved"]
    typical = rows.filter(moved).select((pl.col("a") - pl.col("b")).abs().mean()).item()
    typical = typical if typical is not None else rows["b"].mean()
    users = np.bincount(sides.select("user", "pack").unique()["pack"].to_numpy(), minlength=packs)
    return Shares(found[0], found[1], users.astype(float), reached, changed, np.full(len(values), typical))


def _row(
    dimension: str, value: str, found: Shares, estimates: Estimates, place: int, margin: float, level: float
) -> dict[str, Any]:
    users, reached = float(found.users.sum()), int(found.reached[place])
    before, after = float(found.before[:, place].sum() / users), float(found.after[:, place].sum() / users)
    low, high = float(estimates.low[place]), float(estimates.high[place])
    changed = int(found.changed[place])
    if changed < FEW:
        rare = most_changed(changed, int(users), 1 - (1 - level) / len(found.changed)) * float(found.typical[place])
        low, high = min(low, -rare), max(high, rare)
    word: Word = decide(low, high, margin * before)
    reason = "the interval reaches across the margin" if word == "undetermined" else None
    if reached < LEAST:
        word, reason = "undetermined", f"stands in the lists of {reached} users; wanted at least {LEAST}"
    effect, needed = after - before, None
    if word == "undetermined" and reached:
        error = float(estimates.error[place])
        needed = units_needed(reached, effect, error, margin * before, max(estimates.critical))
    verdict = Verdict(
        {dimension: value}, METRIC, reached, reached, before, after, effect, (low, high), margin * before, word, reason,
        needed,
    )  # fmt: skip
    return verdict.as_dict() | {"relative": effect / before if before else None}


def _surely_down(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the providers in enough lists, how many are down; `ci` counts those that surely are and those that may be.

    Resampling the share itself would not do: providers that luck moves past the threshold only ever add to it.
    """
    known = [row for row in rows if row["n"] >= LEAST and OTHERS not in row["slice"].values() and row["before"]]
    words = [row["verdict"] for row in known]
    down = sum(row["effect"] < -row["margin"] for row in known)
    if not known:
        return {"providers": 0, "down": 0, "share": None, "ci": None}
    ci = [words.count("harm") / len(known), 1 - words.count("no_harm") / len(known)]
    return {"providers": len(known), "down": down, "share": down / len(known), "ci": ci}


def _with_items(
    rows: list[dict[str, Any]], values: Sequence[str], parts: pl.DataFrame, merit: pl.DataFrame | None
) -> list[dict[str, Any]]:
    """Rows with the number of items of the group and, with relevance, its exposure against its merit."""
    counts = dict(parts.group_by("value").agg(pl.col("item").n_unique()).iter_rows())
    deserved = merits(merit, parts) if merit is not None else {}
    for row, value in zip(rows, values, strict=True):
        row["items"] = counts[value]
        if merit is not None:
            share = deserved.get(value, 0.0)
            row["merit"] = share
            row["per_merit"] = {side: row[side] / share if share else None for side in ("before", "after")}
    return rows


def merits(wanted: pl.DataFrame, parts: pl.DataFrame) -> dict[str, float]:
    """Every value's share of what users want: gains over their sum per user, averaged over users who want something."""
    own = wanted.with_columns(share=pl.col("gain") / pl.col("gain").sum().over("user"))
    rows = own.join(parts, on="item").group_by("value").agg((pl.col("share") * pl.col("part")).sum())
    users = wanted["user"].n_unique()
    return {value: total / users for value, total in rows.iter_rows()}
