"""The re-ranker against a naive twin, what it reaches, and the trade-off."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regear.auditing.catalogue import catalogue
from regear.auditing.rerank import GROWTH, PRIOR, candidates, rerank, target_of
from regear.auditing.trade import trade_off
from regear.core.errors import DataError, RecipeError


def drawn(users=60, items=30, each=15, seed=0, tilt=0.0):
    """Candidates of random scores; `tilt` raises those of the popular items (the first tenth)."""
    generator = np.random.default_rng(seed)
    rows = [
        (f"u{user:02}", f"i{item:02}", generator.random() + tilt * (item < items // 10))
        for user in range(users)
        for item in generator.permutation(items)[:each]
    ]
    return pl.DataFrame(rows, schema=["user", "item", "score"], orient="row")


def goods(items=30):
    rows = {
        "item": [f"i{i:02}" for i in range(items)],
        "band": ["head" if i < items // 10 else "rest" for i in range(items)],
        "genre": [[f"g{i % 3}", f"g{i % 4}"] for i in range(items)],
    }
    table = pl.DataFrame(rows)
    return catalogue(table, table.select("item"))


def naive(table, parts, target, strength, weights, k, seed):
    """The same rounds, one user and candidate at a time."""
    users = sorted(set(table["user"]))
    found = {
        user: table.filter(pl.col("user") == user).sort("score", descending=True, maintain_order=True).rows()
        for user in users
    }
    share = {d: {} for d in target}
    for d in target:
        for item, value, part in parts[d].iter_rows():
            share[d].setdefault(item, {})[value] = part
    discount = [1 / math.log2(1 + r) for r in range(1, k + 1)]
    discount = [x / sum(discount) for x in discount]
    given = {d: {v: PRIOR * t for v, t in goal.items()} for d, goal in target.items()}
    lists, chosen, order, start = (
        float(PRIOR),
        {user: [] for user in users},
        np.random.default_rng(seed).permutation(len(users)),
        0,
    )
    while start < len(order):
        served = [users[i] for i in order[start : start + max(1, int(lists) // GROWTH)]]
        for rank in range(k):
            shown = lists + len(served) * sum(discount[:rank])
            gap = {
                d: {v: given[d].get(v, 0) / shown - target[d].get(v, 0) for v in {*given[d], *target[d]}}
                for d in target
            }
            picks = []
            for user in served:
                low, high = found[user][-1][2], found[user][0][2]
                best, item = -math.inf, None
                for _, one, score in found[user]:
                    if one in chosen[user]:
                        continue
                    value = (score - low) / (high - low) if high > low else 0.0
                    for d in target:
                        for v, part in share[d][one].items():
                            value -= strength * weights.get(d, 1.0) * part * gap[d].get(v, 0.0)
                    if value > best + 1e-12:
                        best, item = value, one
                picks.append((user, item))
            for user, item in picks:
                chosen[user].append(item)
                for d in target:
                    for v, part in share[d][item].items():
                        given[d][v] = given[d].get(v, 0.0) + part * discount[rank]
        lists += len(served)
        start += len(served)
    return chosen


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99), st.sampled_from([0.0, 0.3, 2.0, 10.0]), st.sampled_from(["catalogue", "merit", "before"]))
def test_lists_are_those_of_the_naive_form(seed, strength, kind):
    table, shop, weights = drawn(seed=seed, users=30), goods(), {"genre": 0.5}
    given_lists = rerank(candidates(table, 4), shop.parts, {"band": {"head": 0.5, "rest": 0.5}}, strength=0, k=4)
    target = target_of(kind, shop, lists=given_lists, relevance=table.select("user", "item"), k=4)
    found = rerank(candidates(table, 4), shop.parts, target, strength=strength, weights=weights, k=4, seed=seed)
    expected = naive(table, shop.parts, target, strength, weights, 4, seed)
    assert dict(found.group_by("user").agg("item").iter_rows()) == expected


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=6, max_size=6), st.integers(1, 6))
def test_without_strength_the_order_is_that_of_the_candidates(scores, k):
    table = pl.DataFrame({"user": ["u"] * 6, "item": [f"i0{i}" for i in (5, 3, 1, 4, 2, 0)], "score": scores})
    found = rerank(candidates(table, k), goods().parts, {"band": {"head": 1.0}}, strength=0, k=k)
    order = sorted(range(6), key=lambda i: -scores[i])  # equal scores stay as they stand
    assert found["item"].to_list() == [table["item"][i] for i in order[:k]]
    assert found["rank"].to_list() == list(range(1, k + 1))


def test_two_attributes_reach_their_targets_at_once():
    table, shop = drawn(users=300, each=30, tilt=0.5), goods()
    target = {"band": {"head": 0.1, "rest": 0.9}, "genre": target_of("catalogue", shop)["genre"]}
    wanted = table.filter(pl.col("score") > 0.9).select("user", "item")
    before = rerank(candidates(table, 5), shop.parts, target, strength=0, k=5)
    points = trade_off(
        candidates(table, 5), shop, target, wanted, strengths=(1, 30), others={"before": before}, k=5, resamples=200
    )
    assert [point["name"] for point in points] == ["strength 0", "strength 1", "strength 30", "before"]
    far = [point["distance"]["band"]["value"] for point in points]
    assert far[0] > far[1] > far[2]
    assert far[2] < 0.02
    assert points[2]["distance"]["genre"]["value"] < 0.03
    for point in points:
        for one in (point["ndcg"], point["change"], *point["distance"].values()):
            assert one["ci"][0] <= one["value"] <= one["ci"][1]
    assert points[0]["change"] == points[3]["change"] == {"value": 0.0, "ci": [0.0, 0.0]}
    assert points[3]["distance"]["band"]["value"] == pytest.approx(far[0])
    assert points[2]["ndcg"]["value"] < points[0]["ndcg"]["value"]
    assert points[2]["change"]["ci"][1] < 0


def test_the_distance_is_that_of_the_shares():
    table, shop = drawn(users=40), goods()
    target = target_of("catalogue", shop)
    point = trade_off(
        candidates(table, 5), shop, target, table.select("user", "item"), strengths=(), k=5, resamples=200
    )[0]
    lists = rerank(candidates(table, 5), shop.parts, target, strength=0, k=5)
    shares = target_of("before", shop, lists=lists, k=5)
    for name, goal in target.items():
        gap = sum(abs(shares[name].get(value, 0) - share) for value, share in goal.items()) / 2
        assert point["distance"][name]["value"] == pytest.approx(gap)
        assert sum(goal.values()) == pytest.approx(1)


def test_a_weight_of_nothing_leaves_an_attribute_alone():
    table, shop = drawn(), goods()
    band, both = (
        {"band": {"head": 0.5, "rest": 0.5}},
        target_of("catalogue", shop) | {"band": {"head": 0.5, "rest": 0.5}},
    )
    one = rerank(candidates(table, 5), shop.parts, band, strength=3, k=5)
    assert one.equals(rerank(candidates(table, 5), shop.parts, both, strength=3, weights={"genre": 0}, k=5))
    assert not one.equals(rerank(candidates(table, 5), shop.parts, both, strength=3, k=5))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"strength": -1}, "strength -1"),
        ({"strength": float("nan")}, "strength nan"),
        ({"target": {"studio": {"x": 1.0}}}, "no item dimension 'studio'"),
        ({"weights": {"studio": 1.0}}, "no item dimension 'studio'"),
        ({"target": {}}, "no target"),
    ],
)
def test_mistakes_are_named(change, words):
    settings_ = {"target": {"band": {"head": 1.0}}, "strength": 1.0, **change}
    with pytest.raises(RecipeError, match=words):
        rerank(candidates(drawn(users=2), 5), goods().parts, k=5, **settings_)


def test_candidates_that_cannot_be_ranked_are_refused():
    table = drawn(users=3, each=6)
    with pytest.raises(DataError, match=r"3 users: have fewer than 10 candidates.*: u00, u01, u02"):
        candidates(table)
    with pytest.raises(DataError, match="an item twice among candidates"):
        candidates(pl.concat([table, table.head(1)]), 5)
    with pytest.raises(DataError, match="score empty, NaN or infinite"):
        candidates(table.with_columns(score=float("nan")), 5)
    with pytest.raises(RecipeError, match="target 'merit'"):
        target_of("merit", goods())
