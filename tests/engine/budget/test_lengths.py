"""Against Kaplan–Meier worked out text by text, and what a user knows of cold groups, cut texts and old epochs."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from regear.engine.budget.lengths import GROUPS, LAWS, OWN, Lengths


def naive_remaining(texts, written, cap):
    """Kaplan–Meier: the sum over u of the chance to be longer than u, given longer than `written`."""
    total, alive = 0.0, 1.0
    for u in range(written, cap):
        total += alive
        at_risk = sum(length > u for length, _ in texts)
        if not at_risk:
            return None  # nothing is known from here on
        alive *= 1 - sum(length == u + 1 and ended for length, ended in texts) / at_risk
    return total


texts = st.lists(st.tuples(st.integers(1, 40) | st.just(40), st.booleans()), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None)
@given(texts, st.integers(0, 39))
def test_a_group_by_itself_is_kaplan_meier(history, written):
    lengths = Lengths(weight=0)
    for length, ended in history:
        lengths.add("a", length, ended)
    expected = naive_remaining(history, written, 40)
    assume(expected is not None)
    assert lengths.remaining("a", written, 40) == pytest.approx(expected)


def test_texts_that_all_ended_alike_leave_no_doubt():
    lengths = Lengths(weight=0)
    for _ in range(8):
        lengths.add("a", 10)
    assert lengths.remaining("a", 0, 40) == pytest.approx(10)
    assert lengths.remaining("a", 7, 40) == pytest.approx(3)


def test_cut_texts_would_have_been_longer():
    cut, ended = Lengths(), Lengths()
    for _ in range(8):
        cut.add("a", 20, False)
        ended.add("a", 20)
    assert cut.remaining("a", 10, 40) > 15 > 12 > ended.remaining("a", 10, 40)


def test_nothing_known_means_half_of_what_is_left():
    assert Lengths().remaining("a", 20, 100) == pytest.approx(40.5)
    assert Lengths().remaining(None, 8000, 16_000) == pytest.approx(4000, rel=0.01)


def test_a_cold_group_is_like_all_groups_and_a_warm_one_like_itself():
    lengths = Lengths()
    for _ in range(50):
        lengths.add("short", 10)
    for _ in range(16):
        lengths.add("long", 100)
    assert lengths.remaining("new", 0, 200) == pytest.approx((50 * 10 + 16 * 100) / 66, rel=0.15)
    assert lengths.remaining("short", 0, 200) == pytest.approx(10, rel=0.3)
    assert lengths.remaining("long", 0, 200) > 75


def test_a_text_past_all_others_of_its_group_leans_on_all_groups():
    lengths = Lengths()
    for _ in range(50):
        lengths.add("short", 10)
        lengths.add("long", 100)
    assert lengths.remaining("short", 50, 200) == pytest.approx(50, rel=0.15)


def test_many_groups_and_caps_stay_bounded():
    lengths = Lengths()
    for i in range(GROUPS + 50):
        lengths.add(i, 10)
        lengths.remaining(i, 3, 100 + i)
    assert len(lengths.groups) == GROUPS
    assert 0 not in lengths.groups
    assert len(lengths.laws) <= LAWS
    for _ in range(2 * OWN):
        lengths.add("one", 5)
    assert len(lengths.groups["one"].all()) == OWN


def test_a_group_that_was_dropped_and_comes_back_is_new(monkeypatch):
    monkeypatch.setattr("regear.engine.budget.lengths.GROUPS", 2)
    lengths = Lengths()
    lengths.add("a", 10)
    before = lengths.remaining("a", 3, 100)
    for other in "bc":
        lengths.add(other, 50)
    lengths.add("a", 90)
    assert lengths.remaining("a", 3, 100) > before + 10


def test_old_epochs_are_forgotten():
    lengths = Lengths(epochs=2)
    lengths.add("a", 10)
    lengths.advance()
    assert len(lengths.all()) == 1
    lengths.advance()
    assert not lengths.all()
    assert not lengths.groups


@pytest.mark.parametrize("cap", [40, 5000])
def test_drawn_worlds_have_the_expected_mean(cap):
    random, lengths = np.random.default_rng(0), Lengths()
    for length in random.integers(1, cap, 30):
        lengths.add("a", int(length), bool(random.random() < 0.8))
    for written in (0, cap // 4, cap // 2):
        drawn = lengths.draws("a", written, cap, random.exponential(size=20_000))
        assert drawn.mean() == pytest.approx(lengths.remaining("a", written, cap), rel=0.03)
        assert 1 <= drawn.min() <= drawn.max() <= cap - written
