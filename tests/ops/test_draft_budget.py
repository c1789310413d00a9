"""Against the minimum of J on a fine grid, the paper's own form at k = 1, and figures worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regear.ops.draft_budget import (
    accepted,
    best_forwards,
    best_forwards_as_printed,
    draft_tokens,
    draft_tokens_as_printed,
    prices,
    seconds,
    thresholds,
)


@st.composite
def batches(draw, capacity=(0.05, 1.0)):
    texts = draw(st.integers(1, 12))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lengths = np.exp(random.uniform(np.log(10), np.log(20_000), texts))
    alpha, k = random.uniform(0.1, 3, texts), random.uniform(*capacity, texts)
    return lengths, alpha, k, 10 ** random.uniform(-3, 0), 10 ** random.uniform(-4, -1)


@settings(max_examples=40, deadline=None)
@given(batches())
def test_no_number_of_passes_on_a_fine_grid_is_better(batch):
    lengths, alpha, k, base, token = batch
    best = best_forwards(*batch)
    low, high = (lengths * (1 - k)).max(), lengths.max()
    grid = np.concatenate([np.linspace(low, high, 1500), best + (high - low) * np.array([-1e-4, 1e-4])])
    tried = [seconds(lengths, alpha, k, forwards, base, token) for forwards in grid if low < forwards <= high]
    found = seconds(lengths, alpha, k, best, base, token)
    assert found <= min(tried) * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(batches(capacity=(1.0, 1.0)))
def test_with_a_capacity_of_one_the_printed_equations_hold(batch):
    lengths, alpha, k, *_ = batch
    best = best_forwards(*batch)
    assert best_forwards_as_printed(*batch) == pytest.approx(best)
    np.testing.assert_allclose(
        draft_tokens_as_printed(lengths, alpha, k, best), draft_tokens(lengths, alpha, k, best), atol=1e-9
    )


@settings(max_examples=40, deadline=None)
@given(batches())
def test_guesses_leave_each_text_as_many_passes_as_were_wanted(batch):
    lengths, alpha, k, *_ = batch
    best = best_forwards(*batch)
    left = lengths - accepted(draft_tokens(lengths, alpha, k, best), lengths, alpha, k)
    np.testing.assert_allclose(left, np.minimum(lengths, best), rtol=1e-9)


@settings(max_examples=40, deadline=None)
@given(batches())
def test_prices_share_out_the_base(batch):
    lengths, _, _, base, token = batch
    best, found, least = best_forwards(*batch), prices(*batch), thresholds(*batch)
    short = lengths < best * (1 - 1e-6)
    assert found.sum() == pytest.approx(base, rel=1e-3)
    assert (found[short] == 0).all()
    assert (least[short] == np.inf).all()
    np.testing.assert_allclose(found[found > 0] * least[found > 0], token)


@settings(max_examples=40, deadline=None)
@given(batches())
def test_at_its_price_one_more_guess_of_a_text_just_pays(batch):
    lengths, alpha, k, _, token = batch
    found, best = prices(*batch), best_forwards(*batch)
    drafted = draft_tokens(lengths, alpha, k, best)
    for i in np.flatnonzero(lengths > best * (1 + 1e-3)):
        law = lengths[i], alpha[i], k[i]
        step = 1e-4 * drafted[i]
        kept = (accepted(drafted[i] + step, *law) - accepted(drafted[i] - step, *law)) / (2 * step)
        assert kept * found[i] == pytest.approx(token, rel=1e-2)


def test_longer_texts_get_more_and_short_ones_none():
    lengths = np.array([100.0, 400, 1000, 2000, 4000])
    alpha, k = np.full(5, 0.8), np.full(5, 0.6)
    best = best_forwards(lengths, alpha, k, 0.05, 0.001)
    found = draft_tokens(lengths, alpha, k, best)
    assert found[0] == found[1] == 0
    assert 0 < found[3] < found[4]
    assert (np.diff(found) >= 0).all()


def test_where_tokens_are_dear_nobody_guesses():
    lengths = np.array([100.0, 200, 300])
    assert best_forwards(lengths, np.full(3, 0.5), np.full(3, 0.9), 0.001, 1.0) == pytest.approx(300)
    assert draft_tokens(lengths, np.full(3, 0.5), np.full(3, 0.9), 300).tolist() == [0, 0, 0]


def test_too_few_passes_cannot_be_had():
    assert draft_tokens(np.array([100.0]), np.array([0.5]), np.array([0.6]), 40) == np.inf


def test_the_printed_guesses_leave_a_fifth_more_passes_than_they_should():
    lengths, alpha, k = np.array([16_000.0]), np.array([0.8]), np.array([0.6])

    def passes(guesses):
        return (lengths - accepted(guesses(lengths, alpha, k, 12_000), lengths, alpha, k)).item()

    assert passes(draft_tokens_as_printed) == pytest.approx(14_560)
    assert passes(draft_tokens) == pytest.approx(12_000)
