"""Per-user quality of lists, against a naive twin, and what is refused."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regear.auditing.recommend import dealt, nothing_useful, user_tables
from regear.core.errors import DataError


def lists(rows):
    """Lists from `{user: [items, best first]}`."""
    entries = [(user, item, rank) for user, items in rows.items() for rank, item in enumerate(items, 1)]
    return pl.DataFrame(entries, schema=["user", "item", "rank"], orient="row")


def wants(rows):
    """Relevance from `{user: {item: gain}}`."""
    entries = [(user, item, float(gain)) for user, items in rows.items() for item, gain in items.items()]
    return pl.DataFrame(entries, schema={"user": pl.String, "item": pl.String, "gain": pl.Float64}, orient="row")


def naive(ranked, gains, k):
    """NDCG, recall and hit of one user."""
    wanted = {item: gain for item, gain in gains.items() if gain > 0}
    if not wanted:
        return None, None, None
    found = [(rank, wanted[item]) for rank, item in enumerate(ranked[:k], 1) if item in wanted]
    ideal = sum(g / math.log2(1 + r) for r, g in enumerate(sorted(wanted.values(), reverse=True)[:k], 1))
    dcg = sum(g / math.log2(1 + r) for r, g in found)
    return dcg / ideal, len(found) / len(wanted), float(bool(found))


ITEMS = "abcdefgh"
ranked = st.lists(st.sampled_from(ITEMS), min_size=1, max_size=8, unique=True)
gains = st.dictionaries(st.sampled_from(ITEMS), st.integers(0, 3), max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(ranked, gains), min_size=1, max_size=5), st.integers(1, 5))
def test_metrics_are_those_of_the_naive_form(users, k):
    rows = {f"u{i}": one for i, (one, _) in enumerate(users)}
    wanted = {f"u{i}": two for i, (_, two) in enumerate(users)}
    if not any(gain for one in wanted.values() for gain in one.values()):
        return
    found = user_tables(lists(rows), lists(rows), wants(wanted), k=k)
    for row in found.before.iter_rows():
        assert row[1:] == pytest.approx(naive(rows[row[0]], wanted[row[0]], k))


def test_who_wants_nothing_is_not_assessable_and_never_zero():
    found = user_tables(
        lists({"u": ["a"], "v": ["a"]}), lists({"u": ["b"], "v": ["a"]}), wants({"u": {"a": 1}, "w": {"a": 1}})
    )
    rows = {row["id"]: row for row in found.before.iter_rows(named=True)}
    assert rows["u"]["ndcg@10"] == 1
    assert [rows["v"][name] for name in found.metrics] == [None] * 3
    assert [note.split(" users")[0] for note in found.not_measured] == ["1", "1"]


def test_attributes_travel_and_are_unknown_where_they_lack():
    users = pl.DataFrame({"user": [1], "region": ["north"]})
    one = pl.DataFrame({"user": [1, 2], "item": [7, 7], "rank": [1, 1]})
    found = user_tables(one, one, pl.DataFrame({"user": [1, 2], "item": [7, 8]}), users=users)
    assert found.before["region"].to_list() == ["north", None]


def test_people_who_now_get_nothing_useful_are_counted():
    people = [f"u{i}" for i in range(100)]
    before = lists({p: ["a", "x"] if i < 80 else ["x", "y"] for i, p in enumerate(people)})
    after = lists({p: ["x", "y"] if i < 20 or i >= 90 else ["x", "a"] for i, p in enumerate(people)})
    found = nothing_useful(user_tables(before, after, wants({p: {"a": 1} for p in people})), resamples=400)
    assert (found["users"], found["lost"], found["gained"]) == (100, 20, 10)
    low, high = found["lost_ci"]
    assert 0.05 < low < found["lost_share"] == 0.2 < high < 0.4


def test_none_lost_among_few_may_still_be_some():
    people = [f"u{i}" for i in range(50)]
    same = lists({p: ["a"] for p in people})
    found = nothing_useful(user_tables(same, same, wants({p: {"a": 1} for p in people})), resamples=200)
    assert found["lost_ci"][0] == 0
    assert 0.05 < found["lost_ci"][1] < 0.15


def test_packs_keep_all_users():
    values = np.random.default_rng(0).normal(size=(9001, 2))
    packed = dealt(values)
    assert packed.shape == (4096, 2, 2)
    assert packed.sum(0)[:, 0] == pytest.approx(values.sum(0))
    assert set(packed[:, 0, 1]) == {2.0, 3.0}


good = {"user": ["u", "u", "v"], "item": ["a", "b", "a"], "rank": [1, 2, 1]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"item": ["a", "a", "a"]}, "1 users: lists before hold an item twice: u"),
        ({"rank": [1, 1, 1]}, "a tie.*: u"),
        ({"rank": [1, 3, 1]}, "lack ranks.*: u"),
        ({"rank": [1, 2, 2]}, "lack ranks.*: v"),
        ({"rank": [0, 1, 1]}, "whole numbers from 1: u"),
        ({"rank": [1.5, 1, 1]}, "whole numbers from 1: u"),
        ({"rank": [1, 2, float("nan")]}, "NaN.*: v"),
        ({"rank": [1, 2, None]}, "empty.*: v"),
        ({"rank": ["1", "2", "1"]}, "holds String"),
        ({"item": ["a", "b", None]}, "1 rows have no user or no item"),
        ({"user": ["u", "u", "w"]}, "a list before only.*: w"),
    ],
)
def test_what_is_no_ranking_is_refused_in_one_line(change, words):
    broken = pl.DataFrame({**good, **change}, strict=False)
    with pytest.raises(DataError, match=words) as error:
        user_tables(broken, pl.DataFrame(good), wants({"u": {"a": 1}}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("relevance", "words"),
    [
        ({"user": ["u"], "item": ["a"], "gain": [-1.0]}, "gains below 0 in relevance: u"),
        ({"user": ["u"], "item": ["a"], "gain": [float("inf")]}, "infinite in relevance: u"),
        ({"user": ["u", "u"], "item": ["a", "a"]}, "an item twice in relevance: u"),
        ({"user": ["x"], "item": ["a"]}, "no user of the lists stands in relevance"),
        ({"user": ["u"]}, "no column 'item'"),
    ],
)
def test_relevance_that_cannot_be_used_is_refused(relevance, words):
    with pytest.raises(DataError, match=words):
        user_tables(pl.DataFrame(good), pl.DataFrame(good), pl.DataFrame(relevance))


def test_many_users_are_named_by_the_first_few():
    many = lists({f"u{i:02}": ["a"] for i in range(20)})
    with pytest.raises(DataError, match=r"19 users: .*: u01, u02, u03, u04, u05 and 14 more"):
        user_tables(many, lists({"u00": ["a"]}), wants({"u00": {"a": 1}}))
