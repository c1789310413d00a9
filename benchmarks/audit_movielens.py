"""Whom does a smaller recommender hurt? MovieLens-100K: an SVD of rank 50 against rank 8 and 4- and 3-bit factors.

What varies between the splits is which ratings are held out: each user's last 30, 25, 20 and 15 %, and ten random
20 % a user. All intervals of one split hold at once over its registered slices, and over its groups of items.
Correctness gate: the factors of full rank give back the matrix.
"""

import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from common import finish, parser
from numpy.typing import NDArray

from regear.auditing.catalogue import catalogue
from regear.auditing.compare import compare, margins
from regear.auditing.exposure import exposures
from regear.auditing.recommend import UserTables, nothing_useful, user_tables
from regear.auditing.rerank import candidates, target_of
from regear.auditing.tables import joined, resolve_metrics
from regear.auditing.trade import trade_off
from regear.auditing.units import coded
from regear.cli.output import grid
from regear.tasks.movielens import MovieLens, movielens

Array = NDArray[np.float64]
K = 10
LIKED = 4  # of 5 stars: relevant
SLICES = ("activity", "gender", "age_band", "occupation")
GROUPS = ("popularity", "decade", "genre", "director")
AGES = (18, 25, 35, 50)
IN_FULL = ("last 20%", "random 0")  # splits whose verdicts are all kept
CANDIDATES = 100  # a user, for the re-ranker
BROUGHT_BACK = ("popularity", "decade", "genre")  # to their shares before, all at once


@dataclass(frozen=True)
class Split:
    """A name, the ratings to learn from, and what each user turned out to like."""

    name: str
    train: pl.DataFrame
    relevance: pl.DataFrame


def splits(data: MovieLens, cuts: tuple[float, ...], seeds: range) -> Iterator[Split]:
    """Each user's ratings in order of time, cut at a share; and at random, 80 to 20."""
    for cut in cuts:
        yield _split(f"last {1 - cut:.0%}", data.ratings.sort("user", "time", maintain_order=True), cut)
    for seed in seeds:
        yield _split(f"random {seed}", data.ratings.sample(fraction=1.0, shuffle=True, seed=seed), 0.8)


def _split(name: str, ratings: pl.DataFrame, cut: float) -> Split:
    place, size = pl.int_range(pl.len()).over("user"), pl.len().over("user")
    early = place < (size * cut).floor()
    late = ratings.filter(~early)
    return Split(name, ratings.filter(early), late.filter(pl.col("rating") >= LIKED).select("user", "item"))


class Factors:
    """The binary matrix of who rated what, factored: users [U, r] · items [I, r]."""

    def __init__(self, train: pl.DataFrame, users: list[str], items: list[str]) -> None:
        self.users, self.items = np.array(users), np.array(items)
        rows = _codes(train["user"], users)
        columns = _codes(train["item"], items)
        self.seen = np.zeros((len(users), len(items)), dtype=bool)
        self.seen[rows, columns] = True
        u, s, v = np.linalg.svd(self.seen.astype(float), full_matrices=False)
        self.left, self.right = u * s, v.T
        if not np.allclose(self.left @ self.right.T, self.seen):
            sys.exit("the factors of full rank do not give back the matrix")

    def scores(self, rank: int, bits: int | None = None) -> Array:
        """[U, I], of factors cut to a rank and, if asked, rounded; what a user has seen scores −∞."""
        left, right = self.left[:, :rank], self.right[:, :rank]
        if bits:
            left, right = rounded(left, bits), rounded(right, bits)
        return np.where(self.seen, -np.inf, left @ right.T)

    def top(self, scores: Array, count: int) -> pl.DataFrame:
        """The best items of every user: `user`, `item`, `rank`, `score`."""
        best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        return pl.DataFrame(
            {
                "user": np.repeat(self.users, count),
                "item": self.items[best].ravel(),
                "rank": np.tile(np.arange(1, count + 1), len(self.users)),
                "score": np.take_along_axis(scores, best, 1).ravel(),
            }
        )


def _codes(column: pl.Series, names: list[str]) -> NDArray[np.int64]:
    return column.replace_strict(names, list(range(len(names)))).to_numpy()


def rounded(factors: Array, bits: int) -> Array:
    """Rounded to `bits`, one scale a row; the row of an item that nobody rated is zero and stays so."""
    scale = np.abs(factors).max(1, keepdims=True) / (2 ** (bits - 1) - 1)
    scale[scale == 0] = 1.0
    return np.round(factors / scale) * scale


CHANGES: dict[str, Callable[[Factors], Array]] = {
    "rank 8": lambda model: model.scores(8),
    "int4": lambda model: model.scores(50, 4),
    "int3": lambda model: model.scores(50, 3),
}


def people(data: MovieLens, train: pl.DataFrame) -> pl.DataFrame:
    """Users with what they are sliced by; activity is quartiles of the ratings learned from."""
    counts = train.group_by("user").agg(pl.len().alias("ratings"))
    cuts = counts.select(pl.col("ratings").quantile(q).alias(str(q)) for q in (0.25, 0.5, 0.75)).row(0)
    band = sum((pl.col("age") >= age).cast(pl.Int32) for age in AGES)
    names = ["under 18", *(f"{a} to {b - 1}" for a, b in itertools.pairwise(AGES)), f"{AGES[-1]} and over"]
    quartile = sum((pl.col("ratings") > cut).cast(pl.Int32) for cut in cuts)
    return data.users.join(counts, on="user").select(
        "user",
        "gender",
        "occupation",
        activity=quartile.replace_strict(list(range(4)), ["1 least", "2", "3", "4 most"]),
        age_band=band.replace_strict(list(range(len(names))), names),
    )


def audited(tables: UserTables, resamples: int, seed: int) -> list[dict[str, Any]]:
    """Verdicts of NDCG over all users and every registered slice."""
    one, two = tables.before.lazy(), tables.after.lazy()
    metrics = resolve_metrics([f"ndcg@{K}"], one, ())
    with coded(joined(one, two, metrics, SLICES), metrics, SLICES, seed=seed) as units:
        found = compare(units, [(name,) for name in SLICES], margins(units, {}), resamples=resamples, seed=seed)
    return [verdict.as_dict() for verdict in found]


def measured(data: MovieLens, split: Split, model: Factors, resamples: int, seed: int) -> dict[str, Any]:
    """Every change against rank 50 on one split."""
    before = model.top(model.scores(50), K)
    users = people(data, split.train)
    found: dict[str, Any] = {"split": split.name, "changes": {}}
    for name, scores in CHANGES.items():
        after = model.top(scores(model), K)
        tables = user_tables(before, after, split.relevance, users=users, k=K)
        seen = exposures(
            before,
            after,
            items=data.items,
            by=GROUPS,
            provider="director",
            relevance=split.relevance,
            interactions=split.train,
            k=K,
            resamples=resamples,
            seed=seed,
        )
        found["changes"][name] = {
            "verdicts": audited(tables, resamples, seed),
            "nothing_useful": nothing_useful(tables, resamples=resamples, seed=seed),
            "exposure": seen,
        }
    return found


def row(entry: dict[str, Any], **where: str) -> dict[str, Any]:
    """The verdict of a slice."""
    return next(v for v in entry["verdicts"] if v["slice"] == where)


def group(entry: dict[str, Any], name: str, value: str) -> dict[str, Any]:
    """The exposure of a group."""
    return next(r for r in entry["exposure"]["dimensions"][name]["rows"] if r["slice"] == {name: value})


def facts(entry: dict[str, Any]) -> dict[str, Any]:
    """What a change does, in a few figures."""
    whole, mid = row(entry), group(entry, "popularity", "mid")
    slices = [v for v in entry["verdicts"] if v["slice"] and v["n"] >= 30]
    return {
        "ndcg_before": whole["before"],
        "ndcg_after": whole["after"],
        "relative": whole["effect"] / whole["before"],
        "effect": whole["effect"],
        "least_active": row(entry, activity="1 least")["effect"],
        "most_active": row(entry, activity="4 most")["effect"],
        "mid_before": mid["before"],
        "mid_after": mid["after"],
        "mid_kept": mid["after"] / mid["before"],
        "slices_below_zero": sum(v["effect"] < 0 for v in slices) / len(slices),
        "harmed": [v["slice"] for v in slices if v["verdict"] == "harm"],
        "gained": [v["slice"] for v in slices if v["ci"][0] > 0],
        "tv_distance": entry["exposure"]["summary"]["tv_distance"],
        "coverage": entry["exposure"]["summary"]["coverage"],
        "directors_down": entry["exposure"]["summary"]["providers_down"],
        "nothing_useful": entry["nothing_useful"],
    }


def brought_back(data: MovieLens, split: Split, model: Factors, resamples: int, seed: int) -> list[dict[str, Any]]:
    """The lists of rank 8 re-ranked towards the exposure of rank 50: what that costs, and what it brings."""
    before = model.top(model.scores(50), K)
    found = candidates(model.top(model.scores(8), CANDIDATES))
    goods = catalogue(data.items, before, by=BROUGHT_BACK, interactions=split.train)
    target = target_of("before", goods, lists=before)
    others = {"rank 50": before}
    return trade_off(found, goods, target, split.relevance, others=others, resamples=resamples, seed=seed)


def over_points(several: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Every point of the trade-off, over splits; `change` is from the lists of rank 8 as they were."""
    return [
        {
            "name": points[0]["name"],
            "relative_change": spread(
                [p["change"]["value"] / own[0]["ndcg"]["value"] for p, own in zip(points, several, strict=True)]
            ),
            "surely_worse": sum(p["change"]["ci"][1] < 0 for p in points),
            "distance": {d: spread([p["distance"][d]["value"] for p in points]) for d in BROUGHT_BACK},
            "coverage": spread([p["coverage"] for p in points]),
        }
        for points in zip(*several, strict=True)
    ]


def spread(values: list[float]) -> dict[str, float]:
    """Over splits."""
    return {"least": min(values), "median": float(np.median(values)), "most": max(values)}


def over_splits(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Per change: the range of each figure, in how many splits each slice is harmed or gains, each group's shares."""
    figures = ("ndcg_before", "relative", "least_active", "most_active", "mid_before", "mid_after", "mid_kept")
    figures += ("slices_below_zero", "tv_distance")
    result: dict[str, Any] = {}
    for change in CHANGES:
        entries = [split["changes"][change] for split in found]
        brief = [facts(entry) for entry in entries]
        result[change] = {name: spread([fact[name] for fact in brief]) for name in figures} | {
            "harmed": counted(brief, "harmed"),
            "gained": counted(brief, "gained"),
            "directors_down": spread([fact["directors_down"]["share"] for fact in brief]),
            "directors_down_by_chance": spread([fact["directors_down"]["by_chance"] for fact in brief]),
            "lost_every_hit": spread([fact["nothing_useful"]["lost_share"] for fact in brief]),
            "gained_a_first_hit": spread([fact["nothing_useful"]["gained_share"] for fact in brief]),
            "exposure": {name: words(entries, name) for name in GROUPS},
        }
    return result


def counted(brief: list[dict[str, Any]], word: str) -> dict[str, int]:
    """In how many splits each slice is in this list."""
    every = [f"{name}={value}" for fact in brief for slice_ in fact[word] for name, value in slice_.items()]
    return {name: every.count(name) for name in sorted(set(every))}


def words(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Per group harmed in most splits: in how many it is and is not, and the range of what it kept."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        for found in entry["exposure"]["dimensions"][name]["rows"]:
            rows.setdefault(found["slice"][name], []).append(found)
    return {
        value: {
            "harm": sum(found["verdict"] == "harm" for found in several),
            "no_harm": sum(found["verdict"] == "no_harm" for found in several),
            "kept": spread([found["after"] / found["before"] for found in several if found["before"]]),
        }
        for value, several in rows.items()
        if sum(found["verdict"] == "harm" for found in several) * 2 > len(entries)
    }


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--cuts", default="0.7,0.75,0.8,0.85", help="share of each user's ratings learned from")
    options.add_argument("--seeds", type=int, default=10, help="random splits")
    options.add_argument("--resamples", type=int, default=2000)
    arguments = options.parse_args()
    cuts = tuple(float(word) for word in arguments.cuts.split(",") if word)
    data, found = movielens(), []
    for split in splits(data, cuts, range(arguments.seeds)):
        model = Factors(split.train, data.users["user"].to_list(), data.items["item"].to_list())
        entry = measured(data, split, model, arguments.resamples, arguments.seed)
        entry["brought_back"] = brought_back(data, split, model, arguments.resamples, arguments.seed)
        found.append(entry)
        print(f"{split.name}: done", file=sys.stderr)
    results = {"slices": SLICES, "groups": GROUPS, "k": K, "over_splits": over_splits(found)}
    results["brought_back"] = over_points([entry["brought_back"] for entry in found])
    results["brought_back_last_20"] = next((e["brought_back"] for e in found if e["split"] == "last 20%"), None)
    results["facts"] = {e["split"]: {name: facts(change) for name, change in e["changes"].items()} for e in found}
    results["verdicts"] = {e["split"]: shortened(e) for e in found if e["split"] in IN_FULL}
    finish("audit_movielens", arguments, results, table(results))


def shortened(entry: dict[str, Any]) -> dict[str, Any]:
    """All of a split's verdicts, by slice and by group of items, one line each; of directors, those harmed."""
    changes = {}
    for name, change in entry["changes"].items():
        seen = [row for d in GROUPS for row in change["exposure"]["dimensions"][d]["rows"]]
        changes[name] = {
            "ndcg": [line(row) for row in change["verdicts"]],
            "visibility": [line(row) for row in seen if "director" not in row["slice"] or row["verdict"] == "harm"],
        }
    return changes


def line(row: dict[str, Any]) -> str:
    """`slice: n, before → after, effect [low, high], verdict`."""
    where = ", ".join(f"{name}={value}" for name, value in row["slice"].items()) or "all"
    if row["effect"] is None:
        return f"{where}: {row['n']}, {row['verdict']}"
    numbers = (
        f"{row['before']:.4f} → {row['after']:.4f}, {row['effect']:+.4f} [{row['ci'][0]:+.4f}, {row['ci'][1]:+.4f}]"
    )
    return f"{where}: {row['n']}, {numbers}, {row['verdict']}"


def table(results: dict[str, Any]) -> str:
    """The figures over all splits."""
    figures = ("relative", "least_active", "most_active", "mid_kept", "slices_below_zero", "directors_down")
    rows = [
        [name, figure, *(f"{value:+.3f}" for value in found[figure].values())]
        for name, found in results["over_splits"].items()
        for figure in figures
    ]
    return grid(["change", "figure", "least", "median", "most"], rows)


if __name__ == "__main__":
    main()
