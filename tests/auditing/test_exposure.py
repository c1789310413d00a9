"""Visibility by hand, its invariances, its verdicts, and how many lost theirs."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regear.auditing.catalogue import bands, catalogue
from regear.auditing.exposure import exposures
from regear.auditing.lists import attention, rankings
from regear.auditing.visibility import gini
from regear.core.errors import DataError, RecipeError

from .test_recommend import ITEMS, lists, ranked, wants

SECOND = 1 / math.log2(3)  # attention at rank 2, that at rank 1 being 1
FIRST = 1 / (1 + SECOND)  # share of the first of two


def hand():
    """Three users and four items; `d` is never shown before."""
    before = lists({"u": ["a", "b"], "v": ["b", "a"], "w": ["c"]})
    after = lists({"u": ["a", "b"], "v": ["d", "a"], "w": ["a"]})
    items = pl.DataFrame({"item": list("abcd"), "provider": [["P"], ["P", "Q"], ["Q"], ["R"]]})
    return before, after, items


def test_a_hand_made_example():
    before, after, items = hand()
    found = exposures(
        before, after, items=items, resamples=200, relevance=wants({"u": {"a": 1}, "v": {"a": 1, "d": 3}})
    )
    a, b, c = (FIRST + 1 - FIRST) / 3, (1 - FIRST + FIRST) / 3, 1 / 3
    rows = {row["slice"]["provider"]: row for row in found["dimensions"]["provider"]["rows"]}
    assert rows["P"]["before"] == pytest.approx(a + b / 2)  # b belongs to P and Q: half each
    assert rows["Q"]["before"] == pytest.approx(b / 2 + c)
    a, b, d = (FIRST + 1 - FIRST + 1) / 3, (1 - FIRST) / 3, FIRST / 3
    assert rows["P"]["after"] == pytest.approx(a + b / 2)
    assert rows["R"]["before"] == 0
    assert rows["R"]["after"] == pytest.approx(d)
    assert rows["R"]["relative"] is None
    assert rows["P"]["items"] == 2
    assert rows["P"]["merit"] == pytest.approx((1 + 1 / 4) / 2)
    assert rows["R"]["merit"] == pytest.approx(3 / 8)
    assert rows["P"]["per_merit"]["before"] == pytest.approx(rows["P"]["before"] / rows["P"]["merit"])
    assert {row["verdict"] for row in rows.values()} == {"undetermined"}  # three users settle nothing
    whole = found["summary"]
    assert whole["coverage"] == {"before": 3 / 4, "after": 3 / 4}
    assert whole["tv_distance"] == pytest.approx((abs(a - 1 / 3) + abs(b - 1 / 3) + 1 / 3 + d) / 2)
    assert whole["gini"]["before"] == pytest.approx(gini(np.array([1 / 3, 1 / 3, 1 / 3, 0])))
    assert (whole["providers_down"]["providers"], whole["providers_down"]["down"]) == (2, 1)
    assert whole["lost_most"][0]["value"] == "Q"


@settings(max_examples=40, deadline=None)
@given(st.lists(ranked, min_size=1, max_size=6), st.integers(1, 8))
def test_attention_is_that_of_the_naive_form_and_sums_to_one(users, k):
    rows = {f"u{i}": one for i, one in enumerate(users)}
    found = attention(rankings(lists(rows), "lists", k)).group_by("item").agg(pl.col("attention").sum() / len(rows))
    naive = dict.fromkeys(ITEMS, 0.0)
    for one in rows.values():
        weights = [1 / math.log2(1 + rank) for rank in range(1, len(one[:k]) + 1)]
        for item, weight in zip(one[:k], weights, strict=True):
            naive[item] += weight / sum(weights) / len(rows)
    assert dict(found.iter_rows()) == pytest.approx({item: share for item, share in naive.items() if share})
    assert found["attention"].sum() == pytest.approx(1)


def made(users=120, seed=0):
    """Lists of 5 of 40 items, of 8 providers; after the change provider 0 has lost half its places."""
    generator = np.random.default_rng(seed)
    before, after = {}, {}
    for user in range(users):
        order = generator.permutation(40)[:9]
        kept = [i for i in order if i % 8 or generator.random() < 0.3]
        before[f"u{user}"] = [f"i{i}" for i in order[:5]]
        after[f"u{user}"] = [f"i{i}" for i in kept[:5]]
    items = pl.DataFrame({"item": [f"i{i}" for i in range(40)], "provider": [f"p{i % 8}" for i in range(40)]})
    return lists(before), lists(after), items


def by_value(found, name="provider"):
    return {row["slice"][name]: row for row in found["dimensions"][name]["rows"]}


def test_a_group_that_loses_half_is_harmed_and_the_others_are_not():
    before, after, items = made(600)
    found = exposures(before, after, items=items, k=5)
    rows = by_value(found)
    assert rows["p0"]["verdict"] == "harm"
    assert rows["p0"]["margin"] == pytest.approx(0.2 * rows["p0"]["before"])
    assert all(rows[f"p{i}"]["verdict"] == "no_harm" for i in range(1, 8))
    assert sum(row["effect"] for row in rows.values()) == pytest.approx(0)
    down = found["summary"]["providers_down"]
    assert (down["down"], down["providers"]) == (1, 8)
    assert down["assessed"] == {"providers": 8, "down": 1, "share": 1 / 8, "ci": [1 / 8, 1 / 8]}
    assert found["summary"]["lost_most"][0]["value"] == "p0"


def test_other_names_and_other_orders_change_nothing():
    before, after, items = made()
    new = {f"i{i}": f"film {(i * 7) % 40}" for i in range(40)}
    renamed = [f.with_columns(pl.col("item").replace(new)).sample(fraction=1, shuffle=True, seed=3) for f in made()]
    one = exposures(before, after, items=items, k=5, resamples=200)
    two = exposures(*renamed[:2], items=renamed[2], k=5, resamples=200)
    for mine, other in zip(*(run["dimensions"]["provider"]["rows"] for run in (one, two)), strict=True):
        assert mine["verdict"] == other["verdict"]
        assert [*mine["ci"], mine["before"]] == pytest.approx([*other["ci"], other["before"]])
    assert one["summary"]["gini"] == pytest.approx(two["summary"]["gini"])


def test_what_stands_below_k_does_not_count():
    before, after, items = made()
    short = [f.filter(pl.col("rank") <= 3) for f in (before, after)]
    one = exposures(before, after, items=items, k=3, resamples=200)
    assert one["dimensions"] == exposures(*short, items=items, k=5, resamples=200)["dimensions"]


def test_exchanging_the_sides_turns_every_effect_round():
    before, after, items = made()
    there, back = (
        by_value(exposures(*both, items=items, resamples=200)) for both in ((before, after), (after, before))
    )
    for value, row in there.items():
        assert back[value]["effect"] == pytest.approx(-row["effect"])
        assert [-x for x in reversed(back[value]["ci"])] == pytest.approx(row["ci"])


def test_unchanged_lists_pass_but_not_for_groups_in_few_lists():
    before, _, items = made(600)
    rare = items.with_columns(provider=pl.when(pl.col("item") == "i3").then(pl.lit("rare")).otherwise(pl.lit("p")))
    first = before.filter(~((pl.col("item") == "i3") & ~pl.col("user").is_in(["u1", "u2"])))
    lists_ = first.with_columns(rank=pl.col("rank").rank("ordinal").over("user"))
    rows = by_value(exposures(lists_, lists_, items=rare, resamples=200))
    assert rows["p"]["verdict"] == "no_harm"
    assert rows["rare"]["verdict"] == "undetermined"
    assert "wanted at least 30" in rows["rare"]["reason"]


def test_many_providers_are_gathered_and_none_is_lost():
    before, after, _ = made()
    items = pl.DataFrame({"item": [f"i{i}" for i in range(400)], "provider": [f"p{i}" for i in range(400)]})
    found = exposures(before, after, items=items, resamples=200)["dimensions"]["provider"]
    assert found["grouped"] == 200
    rows = {row["slice"]["provider"]: row for row in found["rows"]}
    assert sum(row["before"] for row in rows.values()) == pytest.approx(1)
    assert sum(row["items"] for row in rows.values()) == 400


def test_an_item_the_table_lacks_is_unknown():
    before, after, items = hand()
    rows = by_value(exposures(before, after, items=items.filter(pl.col("item") != "c"), resamples=200))
    assert rows["unknown"]["before"] == pytest.approx(1 / 3)


def test_bands_follow_the_counts_and_ties_stay_together():
    items = pl.DataFrame({"item": [f"i{i:02}" for i in range(20)]})
    counts = [100, 50, 50, *range(20, 12, -1), *([1] * 8), 0]
    table = items.with_columns(interactions=pl.Series(counts))
    found = dict(bands(items, table).iter_rows())
    assert [item for item, band in found.items() if band == "head"] == ["i00", "i01", "i02"]
    assert list(found.values()).count("mid") == 7
    repeated = (
        items.with_columns(pl.Series("times", counts)).select(pl.col("item").repeat_by("times").explode()).drop_nulls()
    )
    assert dict(bands(items, repeated.with_columns(user=pl.lit("u"))).iter_rows()) == found


@pytest.mark.parametrize(("values", "expected"), [([1, 1, 1, 1], 0), ([0, 0, 0, 1], 0.75), ([0, 0], 0), ([1, 3], 0.25)])
def test_gini_of_known_shapes(values, expected):
    assert gini(np.array(values, dtype=float)) == pytest.approx(expected)
    values = np.random.default_rng(0).random(30)
    pairs = np.abs(values[:, None] - values[None]).mean()
    assert gini(values) == pytest.approx(pairs / (2 * values.mean()))


@pytest.mark.parametrize(
    ("change", "words", "kind"),
    [
        ({"by": ["providr"]}, "providr.*did you mean.*provider", RecipeError),
        ({"by": ["popularity"]}, "popularity needs counts", RecipeError),
        ({"provider": "studio"}, "no provider dimension 'studio'", RecipeError),
        ({"margin": 1.5}, "exposure margin 1.5", RecipeError),
        ({"items": pl.DataFrame({"item": ["a", "a"], "p": [1, 2]})}, "1 items: stand more than once", DataError),
        ({"items": pl.DataFrame({"item": ["x"], "p": [1]})}, "no item of the lists stands", DataError),
        ({"interactions": pl.DataFrame({"item": ["a"], "interactions": [-1]})}, "counts below 0: a", DataError),
    ],
)
def test_mistakes_are_named(change, words, kind):
    before, after, items = hand()
    with pytest.raises(kind, match=words):
        exposures(before, after, **{"items": items, **change})


def test_without_items_the_whole_is_measured_and_what_is_missing_said():
    before, after, _ = hand()
    found = exposures(before, after, resamples=200)
    assert found["dimensions"] == {}
    assert found["summary"]["provider"] == "item"
    assert "no table of items" in found["not_measured"][0]
    assert catalogue(None, before).parts == {}
