"""Paired comparisons: what holds for any table, and what a person would notice."""

import itertools

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regear.auditing import units as unit_module
from regear.auditing.compare import compare, crossings, margins
from regear.auditing.reversals import reversals
from regear.auditing.tables import joined, resolve_metrics
from regear.auditing.units import coded

QUICK = {"resamples": 200}


def table(count=400, seed=0, loss=0.0, noise=0.5, users=None):
    generator = np.random.default_rng(seed)
    before = generator.normal(size=count)
    columns = {
        "id": [f"u{i:05d}" for i in range(count)],
        "score": before,
        "hits": generator.integers(0, 5, count).astype(float),
        "shown": generator.integers(1, 9, count).astype(float),
        "w": generator.uniform(0.5, 2, count),
        "region": generator.choice(["north", "south", None], count).tolist(),
        "age": generator.integers(18, 90, count),
    }
    if users:
        columns["cluster"] = generator.integers(0, users, count)
    after = columns | {
        "score": before - loss + noise * generator.normal(size=count),
        "hits": generator.integers(0, 5, count).astype(float),
    }
    return pl.DataFrame(columns), pl.DataFrame(after)


def audited(before, after, metric="score", by=("region", "age"), weight=None, margin=None, depth=1, **options):
    before, after = before.lazy(), after.lazy()
    metrics = resolve_metrics([metric] if isinstance(metric, str) else metric, before, ())
    crossed = crossings(by, depth)
    names = list(dict.fromkeys(itertools.chain(*crossed)))
    with coded(joined(before, after, metrics, names, weight=weight), metrics, names) as units:
        return compare(units, crossed, margins(units, margin or {}), **QUICK | options)


def by_slice(verdicts):
    return {tuple(v.slice.items()): v for v in verdicts}


def numbers(verdicts):
    return [(v.slice, v.n, v.before, v.after, v.effect, v.ci, v.differential) for v in verdicts]


@pytest.mark.parametrize(
    ("metric", "weight"), [("score", None), ("score", "w"), ("hits/shown", None), ("hits/shown", "w")]
)
def test_effects_are_those_of_the_rows(metric, weight):
    before, after = table()
    for verdict in audited(before, after, metric, weight=weight, by=("region",)):
        name = verdict.slice.get("region")
        kept = np.ones(400, bool) if name is None else before["region"].fill_null("unknown").to_numpy() == name
        w = before["w"].to_numpy()[kept] if weight else np.ones(kept.sum())
        means = []
        for frame in (before, after):
            top, _, bottom = metric.partition("/")
            numerator = frame[top].to_numpy()[kept]
            denominator = frame[bottom].to_numpy()[kept] if bottom else np.ones(kept.sum())
            means.append((w * numerator).sum() / (w * denominator).sum())
        assert [verdict.before, verdict.after] == pytest.approx(means)
        assert verdict.effect == pytest.approx(means[1] - means[0])
        assert verdict.n == kept.sum()


def test_lower_is_better_turns_effects_and_differentials():
    before, after = table(loss=0.2)
    plain = audited(before, after)
    turned = [frame.rename({"score": "score:lower"}) for frame in (before, after)]
    for one, two in zip(plain, audited(*turned), strict=True):
        assert two.effect == -one.effect
        assert two.ci == (-one.ci[1], -one.ci[0])
        assert one.differential is None or two.differential["effect"] == -one.differential["effect"]


@pytest.mark.parametrize("metric", ["score", "hits/shown"])
def test_swapping_before_and_after_turns_every_sign(metric):
    before, after = table(loss=0.1)
    forward = audited(before, after, metric, margin={metric: 0.1})
    backward = audited(after, before, metric, margin={metric: 0.1})
    for one, two in zip(forward, backward, strict=True):
        assert (one.before, one.after) == (two.after, two.before)
        if metric == "score":
            assert (two.effect, two.ci) == (-one.effect, (-one.ci[1], -one.ci[0]))
        else:
            assert two.effect == pytest.approx(-one.effect)
            assert two.ci == pytest.approx((-one.ci[1], -one.ci[0]))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=5, deadline=None)
def test_the_order_of_rows_changes_nothing(seed):
    before, after = table(300, seed, loss=0.1, users=80)
    shuffled = [frame.sample(fraction=1, shuffle=True, seed=seed + i) for i, frame in enumerate((before, after))]
    assert numbers(audited(before, after)) == numbers(audited(*shuffled))


def test_pairing_narrows_intervals_as_sides_agree():
    widths = []
    for noise in (1.4, 0.7, 0.2):
        whole = audited(*table(noise=noise))[0]
        widths.append(whole.ci[1] - whole.ci[0])
    assert widths[0] > widths[1] > widths[2]


def test_a_file_of_units_gives_the_same_answer(monkeypatch):
    before, after = table(1000, loss=0.1, users=300)
    inside = audited(before, after)
    monkeypatch.setattr(unit_module, "IN_MEMORY", 10)
    monkeypatch.setattr(unit_module, "ROWS", 130)
    outside = audited(before, after)
    for one, two in zip(inside, outside, strict=True):
        assert (one.slice, one.n, one.clusters, one.verdict) == (two.slice, two.n, two.clusters, two.verdict)
        assert [one.effect, *one.ci] == pytest.approx([two.effect, *two.ci])


def test_packs_of_clusters_say_what_clusters_do(monkeypatch):
    before, after = table(3000, loss=0.05, users=900)
    alone = audited(before, after, resamples=1000)
    monkeypatch.setattr(unit_module, "PACKS", 300)
    dealt = audited(before, after, resamples=1000)
    for one, two in zip(alone, dealt, strict=True):
        assert two.effect == pytest.approx(one.effect)
        assert two.clusters == one.clusters > 100
        assert two.ci[1] - two.ci[0] == pytest.approx(one.ci[1] - one.ci[0], rel=0.25)


def test_more_units_than_packs():
    before, after = table(6000)
    whole = audited(before, after)[0]
    assert whole.clusters == whole.n == 6000
    difference = after["score"] - before["score"]
    assert whole.effect == pytest.approx(difference.mean())
    assert whole.ci[1] - whole.ci[0] == pytest.approx(2 * 2.6 * difference.std() / 6000**0.5, rel=0.25)


def test_nothing_changed_is_no_harm_for_many_and_undetermined_for_few():
    before, _ = table(2000)
    assert {v.verdict for v in audited(before, before)} == {"no_harm"}
    few = audited(before.head(8), before.head(8), margin={"score": 0.1})
    assert {v.verdict for v in few} == {"undetermined"}
    assert "wanted at least 30" in few[0].reason


def test_a_small_slice_is_judged_by_students_distribution():
    before, after = table(500, noise=0.5)
    small = before.with_columns(
        region=pl.when(pl.int_range(pl.len()) < 8).then(pl.lit("few")).otherwise(pl.lit("many"))
    )
    found = by_slice(audited(small, after, by=("region",)))
    assert found[(("region", "few"),)].verdict == "undetermined"
    change = (after["score"] - before["score"]).to_numpy()
    factors = {}
    for name, part in (("few", change[:8]), ("many", change[8:])):
        low, high = found[(("region", name),)].ci
        factors[name] = (high - low) / 2 / (part.std(ddof=1) / len(part) ** 0.5)
    assert factors["few"] > 1.4 * factors["many"] > 2.4


def test_the_whole_is_the_weighted_mean_of_its_slices():
    before, after = table(loss=0.2)
    found = audited(before, after, weight="w", by=("region", "age"))
    shares = before.with_columns(pl.col("region").fill_null("unknown")).group_by("region").agg(pl.col("w").sum())
    weights = dict(shares.iter_rows())
    parts = [(v.effect, weights[v.slice["region"]]) for v in found if "region" in v.slice]
    assert np.average([p[0] for p in parts], weights=[p[1] for p in parts]) == pytest.approx(found[0].effect)
    assert reversals(found) == []


def test_a_slice_of_all_units_has_no_complement():
    before, after = table()
    alone = before.with_columns(region=pl.lit("here"))
    assert by_slice(audited(alone, after, by=("region",)))[(("region", "here"),)].differential is None


def test_a_uniform_loss_is_harm_and_no_disparity():
    before, after = table(4000, loss=0.5, noise=0.2)
    for verdict in audited(before, after, by=("region",))[1:]:
        assert verdict.verdict == "harm"
        low, high = verdict.differential["ci"]
        assert low < 0 < high


def test_unknown_is_a_value_and_shares_its_name():
    before, after = table()
    named = before.with_columns(
        pl.when(pl.col("region") == "south").then(pl.lit("unknown")).otherwise("region").alias("region")
    )
    slices = [v.slice["region"] for v in audited(named, after, by=("region",))[1:]]
    assert sorted(slices) == ["north", "unknown"]
    wanted = (before["region"] != "north").sum() + before["region"].null_count()
    assert by_slice(audited(named, after, by=("region",)))[(("region", "unknown"),)].n == wanted


def test_numbers_are_cut_into_quarters_with_names_that_differ():
    before, after = table()
    large = before.with_columns(pl.col("age") + 1_000_000_000)
    quarters = audited(large, after, by=("age",))[1:]
    assert len({v.slice["age"] for v in quarters}) == 4
    assert all(60 <= v.n <= 140 for v in quarters)
    assert sum(v.n for v in quarters) == 400


def test_dates_are_words():
    before, after = table()
    dated = before.with_columns(pl.date(2024, pl.int_range(pl.len()) % 3 + 1, 1).alias("day"))
    assert {v.slice["day"] for v in audited(dated, after, by=("day",))[1:]} == {
        "2024-01-01",
        "2024-02-01",
        "2024-03-01",
    }


def test_an_empty_metric_counts_nowhere():
    before, after = table()
    empty = pl.when(pl.col("region") == "north").then(None).otherwise("score").alias("score")
    found = by_slice(audited(before.with_columns(empty), after.with_columns(empty), by=("region",)))
    north = found[(("region", "north"),)]
    assert (north.n, north.verdict, north.effect) == (0, "undetermined", None)
    assert found[()].n == 400 - (before["region"] == "north").sum()


def test_changes_in_one_user_alone_are_rare():
    """Forty changed units of one user are one observation."""
    count = 1200
    before = pl.DataFrame(
        {"id": range(count), "cluster": [i // 40 for i in range(count)], "score": np.tile([0.0, 1.0], 600)}
    )
    after = before.with_columns(pl.when(pl.col("cluster") == 0).then(0.0).otherwise("score").alias("score"))
    whole = audited(before, after, by=())[0]
    assert whole.clusters == 30
    assert whole.ci[0] < -0.05
    assert whole.verdict == "undetermined"


def test_simpsons_reversal_is_told_for_a_ratio():
    """Easy requests become many more, so that the whole gets better while both kinds get worse."""
    count = 2000
    kind = np.array(["easy", "hard"])[np.arange(count) % 2]
    easy = kind == "easy"
    frame = {"id": np.arange(count), "kind": kind}
    before = pl.DataFrame(frame | {"solved": np.where(easy, 9.0, 30.0), "asked": np.where(easy, 10.0, 100.0)})
    after = pl.DataFrame(frame | {"solved": np.where(easy, 85.0, 2.5), "asked": np.where(easy, 100.0, 10.0)})
    found = audited(before, after, "solved/asked", by=("kind",))
    (sentence,) = reversals(found)
    assert found[0].effect > 0
    assert "better over all units" in sentence
    assert "worse in every slice of kind" in sentence
    assert reversals(audited(after, before, "solved/asked", by=("kind",)))[0].count("worse over all units") == 1


def test_a_margin_is_a_number_a_share_or_a_tenth_of_the_spread():
    before, after = table()
    spread = float(before["score"].std(ddof=0))
    assert audited(before, after)[0].margin == pytest.approx(0.1 * spread)
    assert audited(before, after, margin={"score": "2%"})[0].margin == pytest.approx(0.02 * abs(before["score"].mean()))
    assert audited(before, after, margin={"score": 0.3})[0].margin == 0.3


def test_a_metric_that_does_not_vary_asks_for_a_margin():
    before, _ = table()
    still = before.with_columns(score=pl.lit(1.0))
    found = audited(still, still, by=())[0]
    assert found.verdict == "undetermined"
    assert "no margin" in found.reason
    assert audited(still, still, by=(), margin={"score": 0.1})[0].verdict == "no_harm"


def test_units_needed_would_settle_it():
    before, after = table(200, noise=1.0)
    unsettled = audited(before, after, by=(), margin={"score": 0.02})[0]
    assert unsettled.verdict == "undetermined"
    assert unsettled.units_needed > 200
    settled = [
        audited(*table(unsettled.units_needed, seed, noise=1.0, loss=-unsettled.effect), by=(), margin={"score": 0.02})[
            0
        ]
        for seed in range(12)
    ]
    assert sum(v.verdict != "undetermined" for v in settled) >= 6


def test_crossings_are_written_or_made_to_a_depth():
    assert crossings(["a", "b"], 1) == [("a",), ("b",)]
    assert crossings(["a", "b", "b*a"], 2) == [("a",), ("b",), ("b", "a")]
    assert crossings(["a", "b", "c"], 3)[-1] == ("a", "b", "c")
