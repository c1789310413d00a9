"""`AuditFrame` in a notebook's hands."""

import numpy as np
import polars as pl
import pytest

from regear.auditing.frame import AuditFrame
from regear.core.errors import DataError, RecipeError

COUNT = 3000


def correct(truth, predicted):
    return np.asarray(truth) == np.asarray(predicted)


def data(seed=0):
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 2, COUNT)
    region, plan = generator.choice(["north", "south", "east"], COUNT), generator.choice(["free", "paid"], COUNT)
    before = np.where(generator.random(COUNT) < 0.9, truth, 1 - truth)
    worse = (region == "north") & (plan == "free") & (generator.random(COUNT) < 0.4)
    return truth, before, np.where(worse, 1 - truth, before), {"region": region, "plan": plan}


def made(**options):
    truth, before, after, slices = data()
    settings = {"y_true": truth, "before": before, "after": after, "slices": slices, "resamples": 300}
    return AuditFrame({"accuracy": correct}, **settings | options)


def test_overall_and_groups_hold_the_means():
    truth, before, after, slices = data()
    frame = made()
    row = frame.overall.row(0, named=True)
    assert (row["metric"], row["n"]) == ("accuracy", COUNT)
    assert [row["before"], row["after"]] == pytest.approx([(before == truth).mean(), (after == truth).mean()])
    north = frame.by_group.filter(pl.col("region") == "north").row(0, named=True)
    kept = slices["region"] == "north"
    assert north["effect"] == pytest.approx((after == truth)[kept].mean() - (before == truth)[kept].mean())
    assert north["verdict"] == "harm"
    assert north["plan"] is None


def test_the_gap_between_groups_grows():
    row = made().difference().filter(pl.col("dimension") == "region").row(0, named=True)
    assert row["change"] == pytest.approx(row["after"] - row["before"])
    assert row["change"] > 0.1


def test_the_worst_come_first():
    worst = made(depth=2).worst(2)
    assert worst.height == 2
    assert worst.row(0, named=True) | {"region": "north", "plan": "free"} == worst.row(0, named=True)


def test_discovery_finds_the_crossing():
    assert made().discover()[0]["slice"] == {"region": "north", "plan": "free"}


@pytest.mark.parametrize("kind", ["dict", "polars", "pandas"])
def test_slices_come_as_any_columns(kind):
    _, _, _, slices = data()
    if kind != "dict":
        slices = pytest.importorskip(kind).DataFrame(slices)
    assert made(slices=slices).by_group.equals(made().by_group)


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_what_is_missing_is_unknown(missing):
    region = np.array(data()[3]["region"], dtype=object)
    region[:500] = missing
    groups = made(slices={"region": region}).by_group
    assert groups.filter(pl.col("region") == "unknown")["n"].to_list() == [500]


def test_pairs_weights_clusters_and_direction():
    generator = np.random.default_rng(1)
    before, weight = generator.exponential(size=COUNT), generator.uniform(0.5, 2, COUNT)
    after = before + 0.3
    pair = {"seconds": (before, after)}
    frame = AuditFrame(
        pair,
        weight=weight,
        cluster=np.arange(COUNT) // 10,
        lower_is_better=["seconds"],
        resamples=200,
        margin={"seconds": 0.1},
    )
    (verdict,) = frame.verdicts
    assert verdict.verdict == "harm"
    assert verdict.effect == pytest.approx(-0.3)
    assert verdict.clusters == COUNT // 10
    assert verdict.before == pytest.approx(np.average(before, weights=weight))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"y_true": None}, RecipeError, "give y_true, before and after"),
        ({"slices": {"region": ["a"]}}, DataError, "columns differ in length"),
        ({"lower_is_better": ["acuracy"]}, RecipeError, "no metric 'acuracy'"),
        ({"margin": {"other": 1}}, RecipeError, "found a margin for 'other'"),
    ],
)
def test_mistakes_are_told_in_one_line(options, error, message):
    with pytest.raises(error, match=message):
        _ = made(**options).verdicts


def test_one_value_for_all_is_no_metric():
    truth, before, after, _ = data()
    with pytest.raises(DataError, match="wanted one value a unit"):
        AuditFrame({"accuracy": lambda y, p: correct(y, p).mean()}, y_true=truth, before=before, after=after)


def test_nan_is_refused_by_its_row():
    with pytest.raises(DataError, match=r"1 units have NaN or infinity as m.*: 1$"):
        _ = AuditFrame({"m": ([0.0, float("nan"), 1.0], [0.0, 1.0, 1.0])}).verdicts


def test_groups_agree_with_fairlearn():
    fairlearn = pytest.importorskip("fairlearn.metrics")
    truth, before, after, slices = data()
    found = made(depth=2).by_group
    for side, predicted in (("before", before), ("after", after)):
        wanted = fairlearn.MetricFrame(
            metrics=lambda y, p: np.mean(np.asarray(y) == np.asarray(p)),
            y_true=truth,
            y_pred=predicted,
            sensitive_features=slices,
        )
        for (region, plan), value in wanted.by_group.items():
            row = found.filter((pl.col("region") == region) & (pl.col("plan") == plan))
            assert row[side][0] == pytest.approx(value)
        gap = fairlearn.MetricFrame(
            metrics=lambda y, p: np.mean(np.asarray(y) == np.asarray(p)),
            y_true=truth,
            y_pred=predicted,
            sensitive_features=slices["region"],
        ).difference()
        ours = made().difference().filter(pl.col("dimension") == "region")
        assert ours[side][0] == pytest.approx(gap)
