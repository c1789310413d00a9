"""What an audit is given, by kind, as two tables of units and what is known of them: tables, lists, or two models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl

from regear.auditing.dimensions import MANY, MOST
from regear.auditing.tables import Metric, columns_of, resolve_metrics, scan
from regear.core.errors import DataError, RecipeError
from regear.core.files import digest, sha256
from regear.core.run import Progress

Kind = Literal["tables", "lists", "models"]
ENDINGS = (".jsonl", ".ndjson", ".parquet", ".csv")
LISTS = {"user", "item", "rank"}
FIXED = ("id", "cluster")


@dataclass(frozen=True)
class Inputs:
    """Units before and after, their metrics, and every attribute worth a slice.

    `margins` stand where none is given; `measured_in` says each metric's unit; `applies`: for models, the attributes
    that units of a metric have (all, where a metric is not named); `exposure` and `further` join the result.
    """

    kind: Kind
    before: pl.LazyFrame
    after: pl.LazyFrame
    metrics: list[Metric]
    dimensions: list[str]
    attributes: pl.LazyFrame | None = None
    margins: Mapping[str, str | float] = field(default_factory=dict)
    measured_in: Mapping[str, str] = field(default_factory=dict)
    applies: Mapping[str, Sequence[str]] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    not_measured: Sequence[str] = ()
    exposure: dict[str, Any] | None = None
    further: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sensitive(self) -> list[str]:
        return [name for name in columns_of(self.attributes) if name != "id"] if self.attributes is not None else []

    def has(self, metric: str, names: Sequence[str]) -> bool:
        """Whether units of a metric have all these attributes."""
        return metric not in self.applies or set(names) <= set(self.applies[metric])


def kind_of(before: str | Path, after: str | Path) -> Kind:
    """Tables and lists are files; what is no table is a model.

    Raises:
        RecipeError: one of each.
        DataError: a table that is missing or cannot be read.
    """
    tables = [_is_table(side) for side in (before, after)]
    if tables[0] != tables[1]:
        raise RecipeError(f"found a table and a model ({before}, {after}); wanted two tables, or two models")
    if not tables[0]:
        return "models"
    return "lists" if set(columns_of(scan(before))) >= LISTS else "tables"


def _is_table(side: str | Path) -> bool:
    place = Path(side).expanduser()
    return place.is_file() or place.suffix.lower() in ENDINGS or (place.is_dir() and any(place.glob("*.parquet")))


def of_tables(
    before: str | Path,
    after: str | Path,
    *,
    metric: Sequence[str],
    by: Sequence[str],
    attributes: str | Path | None,
    weight: str | None,
) -> Inputs:
    """Two tables as they are; every further column of the first one is an attribute."""
    one, two = scan(before), scan(after)
    apart = scan(attributes) if attributes is not None else None
    asked = [name for crossing in by for name in crossing.split("*")]
    metrics = resolve_metrics(metric, one, (*FIXED, *asked, *([weight] if weight else [])))
    scored = {column for m in metrics for column in m.columns}
    _refuse_scores(asked, scored)
    taken = {*FIXED, weight, *scored}
    named = [name for name in columns_of(one) if name not in taken]
    named += [name for name in (columns_of(apart) if apart is not None else []) if name not in (*FIXED, *named)]
    named, outcomes = _without_outcomes(one, two, named, asked)
    kept, left = _sliceable(one, apart, named)
    return Inputs(
        "tables",
        one,
        two,
        metrics,
        [*kept, *(name for name in by if name not in kept and name in named)],
        apart,
        digests=_digests({"before": before, "after": after, "attributes": attributes}),
        not_measured=[*outcomes, *left],
    )


def _without_outcomes(
    one: pl.LazyFrame, two: pl.LazyFrame, names: Sequence[str], asked: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Without numbers that stand in both tables and were not asked for: they may be outcomes too, and slices of what
    was bad before look better after any change."""
    there, kinds = set(columns_of(two)), one.collect_schema()
    outcomes = [n for n in names if n in there and n in kinds and kinds[n].is_numeric() and n not in asked]
    told = [f"Slices of {name}: numbers in both tables may be outcomes; name it with --by." for name in outcomes]
    return [name for name in names if name not in outcomes], told


def _refuse_scores(asked: Sequence[str], scored: set[str]) -> None:
    """A slice made from the score itself would look better after any change where it was bad before."""
    for name in asked:
        if name in scored:
            raise RecipeError(
                f"found the metric {name!r} as a dimension; units that did badly before look better after any change: "
                "slice by an attribute"
            )


def _sliceable(frame: pl.LazyFrame, apart: pl.LazyFrame | None, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Columns that can be slices: numbers (cut into quartiles), or few values; and what is said of the others."""
    kept, left = [], []
    for name in names:
        source = frame if apart is None or name not in columns_of(apart) else apart
        kind = source.collect_schema()[name]
        if kind.is_nested():
            left.append(f"Slices of {name}: it holds {kind}.")
            continue
        count = 0 if kind.is_numeric() else source.select(pl.col(name).n_unique()).collect(engine="streaming").item()
        if count > MOST:
            left.append(f"Slices of {name}: it has {count:,} values; group them first.")
        else:
            kept.append(name)
    return kept, left


def few(inputs: Inputs) -> list[str]:
    """The attributes registered where none is named: all but texts of many values, which only the search reads."""
    found = []
    for name in inputs.dimensions:
        apart = inputs.attributes is not None and name in columns_of(inputs.attributes)
        frame = inputs.attributes if apart and inputs.attributes is not None else inputs.before
        numeric = frame.collect_schema()[name].is_numeric()
        if numeric or frame.select(pl.col(name).n_unique()).collect(engine="streaming").item() <= MANY:
            found.append(name)
    return found


def of_lists(
    before: str | Path,
    after: str | Path,
    *,
    metric: Sequence[str],
    by: Sequence[str],
    relevance: str | Path | None,
    attributes: str | Path | None,
    catalogue: str | Path | None,
    interactions: str | Path | None,
    provider: str | None,
    top: int,
    exposure_margin: float,
    level: float,
    resamples: int,
    seed: int,
) -> Inputs:
    """Recommender lists: how well they match, one row a user, and whose items are seen.

    Raises:
        RecipeError: no relevance, without which nothing is known of the users.
    """
    from regear.auditing.exposure import exposures
    from regear.auditing.recommend import nothing_useful, user_tables

    if relevance is None:
        raise RecipeError("found lists and no relevance; give the table of what users wanted with --relevance")
    tables = user_tables(before, after, relevance, k=top)
    apart = _of_users(attributes) if attributes is not None else None
    goods = set(columns_of(scan(catalogue))) - {"item"} if catalogue is not None else set()
    asked = list(dict.fromkeys(part for name in by for part in name.split("*")))
    settings: dict[str, Any] = {"level": level, "resamples": resamples, "seed": seed}
    seen = exposures(
        before,
        after,
        items=catalogue,
        by=[name for name in asked if name in goods | {"popularity"}],
        provider=provider,
        relevance=relevance,
        interactions=interactions,
        k=top,
        margin=exposure_margin,
        **settings,
    )
    one, two = tables.before.lazy(), tables.after.lazy()
    kept, left = _sliceable(one, apart, [c for c in columns_of(apart) if c != "id"] if apart is not None else [])
    files = {"before": before, "after": after, "relevance": relevance, "attributes": attributes}
    return Inputs(
        "lists",
        one,
        two,
        resolve_metrics(metric or tables.metrics, one, FIXED),
        kept,
        apart,
        digests=_digests(files | {"catalogue": catalogue, "interactions": interactions}),
        not_measured=[*tables.not_measured, *seen.pop("not_measured"), *left],
        exposure=seen,
        further={"nothing_useful": nothing_useful(tables, **settings)},
    )


def _of_users(path: str | Path) -> pl.LazyFrame:
    frame = scan(path)
    if "user" not in columns_of(frame):
        raise DataError(f"{path} has no column `user`; wanted attributes of the users of the lists")
    return frame.rename({"user": "id"}).with_columns(pl.col("id").cast(pl.String))


def of_models(
    before: str | Path, after: str | Path, *, metric: Sequence[str], progress: Progress, **settings: Any
) -> Inputs:
    """Two models scored on the same windows, questions and prompts."""
    from regear.auditing.models import score_models
    from regear.core.recipe import closest

    tables = score_models(before, after, **settings, progress=progress)
    known = {m.name: m for m in tables.metrics}
    for name in metric:
        if name not in known:
            raise RecipeError(f"no metric {name!r}{closest(name, known)}; of these models: {', '.join(known)}")
    metrics = [m for m in tables.metrics if not metric or m.name in metric]
    return Inputs(
        "models",
        tables.before.lazy(),
        tables.after.lazy(),
        metrics,
        tables.dimensions,
        margins={m.name: tables.margins[m.name] for m in metrics if m.name in tables.margins},
        measured_in=tables.units,
        applies={m.name: [d for d in tables.dimensions if tables.measures(m.name, [d])] for m in metrics},
        digests=tables.inputs,
        not_measured=tables.not_measured,
        further={} if tables.chance is None else {"chance": tables.chance},
    )


def _digests(files: Mapping[str, str | Path | None]) -> dict[str, str]:
    """SHA-256 of every file; of a folder, over those of its files."""
    found = {}
    for name, given in files.items():
        if given is not None:
            place = Path(given).expanduser()
            parts = {path.name: sha256(path) for path in sorted(place.glob("*.parquet"))} if place.is_dir() else {}
            found[name] = digest(parts) if parts else sha256(place)
    return found
