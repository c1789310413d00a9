"""Results of real audits on small tables, for what reads them."""

import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

import regear


def audited(columns, metrics, by, *, attributes=None, depth=1, **settings):
    """The result of an audit of `columns` ({name: list}, the metric after under `name+"_after"`), as JSON gives it."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        own = {name: values for name, values in columns.items() if not name.endswith("_after")}
        ids = [f"unit-{i}" for i in range(len(next(iter(columns.values()))))]
        apart = {name: own.pop(name) for name in attributes or ()}
        pl.DataFrame({"id": ids, **own}).write_parquet(place / "b.parquet")
        after = {m: columns[m + "_after"] for m in (x.removesuffix(":lower") for x in metrics)}
        pl.DataFrame({"id": ids, **after}).write_parquet(place / "a.parquet")
        if apart:
            pl.DataFrame({"id": ids, **apart}).write_parquet(place / "s.parquet")
        result = regear.audit(
            place / "b.parquet",
            place / "a.parquet",
            metric=metrics,
            by=by,
            depth=depth,
            attributes=place / "s.parquet" if apart else None,
            resamples=200,
            **settings,
        )
    return completed(json.loads(json.dumps(result)))


def completed(result):
    """Without what differs from machine to machine, or that a search found."""
    fixed = {
        "before": "before.parquet",
        "after": "after.parquet",
        "inputs": {"before": "b" * 64, "after": "a" * 64},
        "versions": {"regear": "0.1.0"},
        "discovered": [],
        "not_measured": [],
    }
    return result | fixed


@functools.cache
def _languages():
    """Accuracy of 2,400 answers: hi loses 1 in 4 of the right ones, en and de nothing, sw has 8 units."""
    generator = np.random.default_rng(0)
    language = ["en"] * 1200 + ["de"] * 792 + ["hi"] * 400 + ["sw"] * 8
    before = (generator.random(2400) < 0.6).astype(float)
    flip = (generator.random(2400) < 0.25) & (np.array(language) == "hi")
    after = np.where(flip, 0.0, before)
    gender = generator.choice(["f", "m"], 2400).tolist()
    columns = {"accuracy": before.tolist(), "accuracy_after": after.tolist(), "language": language, "gender": gender}
    return json.dumps(audited(columns, ["accuracy"], ["language", "gender"], attributes=["gender"]))


def languages():
    return json.loads(_languages())
