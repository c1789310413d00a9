"""The distribution of visibility as a whole: coverage, concentration, how far it moved, and how many lost theirs."""

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from regear.auditing.catalogue import Catalogue

DRAWS = 100  # exchanges, for the share that falls by luck
TINY = 1e-12
SHOWN = 10  # of those who lost most

Array = NDArray[np.float64]


def gini(exposure: Array) -> float:
    """0 where all get the same, towards 1 where one gets all: the mean absolute difference over twice the mean.

    Args:
        exposure: of every item, [I], none below 0.
    """
    ordered, count = np.sort(exposure), len(exposure)
    weights = 2 * np.arange(1, count + 1) - count - 1
    total = ordered.sum()
    return float(weights @ ordered / (count * total)) if total else 0.0


def summary(
    sides: pl.DataFrame,
    goods: Catalogue,
    provider: str | None,
    fall: float,
    seed: int = 0,
) -> dict[str, Any]:
    """Figures of all items: `coverage` and `gini` before and after, `tv_distance`, and the providers' fall.

    Args:
        sides: rows `user`, `pack`, `item`, attention before `b` and after `a`.
        goods: the catalogue, whose never shown items count too.
        provider: the dimension of those who may lose; every item for itself where None.
        fall: the part of its share before that a provider must lose to count as down.
        seed: of the random exchanges.
    """
    users = sides["user"].n_unique()
    shown = sides.group_by("item").agg(pl.col("b", "a").sum() / users)
    every = goods.items.join(shown, on="item", how="left").fill_null(0.0)
    before, after = every["b"].to_numpy(), every["a"].to_numpy()
    own = goods.items.select("item", value="item", part=1.0)
    rows = sides.join(goods.parts[provider] if provider else own, on="item")
    rows = rows.select("pack", "user", "value", b=pl.col("b") * pl.col("part"), a=pl.col("a") * pl.col("part"))
    return {
        "items": len(every),
        "coverage": {"before": float((before > 0).mean()), "after": float((after > 0).mean())},
        "gini": {"before": gini(before), "after": gini(after)},
        "tv_distance": float(np.abs(after - before).sum() / 2),
        "provider": provider or "item",
        "providers_down": providers_down(rows, fall, seed),
        "lost_most": _lost_most(rows, users),
    }


def providers_down(rows: pl.DataFrame, fall: float, seed: int) -> dict[str, Any]:
    """Of the providers seen before, how many lost more than `fall` of their visibility.

    `by_chance` is the share that would come out if nothing had changed but luck: before and after exchanged at random,
    user by user. Providers that stand in few lists fall often by luck alone.
    """
    codes = rows.select("value").unique().sort("value").with_row_index("code")
    packed = rows.group_by("pack", "value", maintain_order=True).agg(pl.col("b", "a").sum()).join(codes, on="value")
    pack, code = packed["pack"].to_numpy(), packed["code"].to_numpy()
    b, a = packed["b"].to_numpy(), packed["a"].to_numpy()
    count, packs = int(code.max()) + 1, int(pack.max()) + 1

    def down(one: Array, two: Array) -> tuple[int, int]:
        had, left = (np.bincount(code, weights=side, minlength=count) for side in (one, two))
        return int((left < (1 - fall) * had - TINY).sum()), int((had > TINY).sum())

    generator = np.random.default_rng(seed)
    luck = []
    for _ in range(DRAWS):
        swap = generator.integers(0, 2, packs).astype(bool)[pack]
        luck.append(np.divide(*down(np.where(swap, a, b), np.where(swap, b, a))))
    fallen, seen = down(b, a)
    return {"fall": fall, "providers": seen, "down": fallen, "share": fallen / seen, "by_chance": float(np.mean(luck))}


def _lost_most(rows: pl.DataFrame, users: int) -> list[dict[str, Any]]:
    totals = rows.group_by("value").agg(
        (pl.col("b").sum() / users).alias("before"),
        (pl.col("a").sum() / users).alias("after"),
        pl.col("user").filter(pl.col("b") > 0).n_unique().alias("lists_before"),
        pl.col("user").filter(pl.col("a") > 0).n_unique().alias("lists_after"),
    )
    lost = totals.with_columns(effect=pl.col("after") - pl.col("before")).filter(pl.col("effect") < 0)
    return lost.sort("effect", "value").head(SHOWN).to_dicts()
