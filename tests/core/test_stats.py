"""Statistics against scipy and simulation."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from regear.core.stats import knee, paired_bootstrap, perplexity_ratio


def test_agrees_with_scipy():
    generator = np.random.default_rng(0)
    values = generator.normal(1, 2, 60)
    ours = paired_bootstrap(values, np.ones(60), resamples=20_000)
    theirs = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.03)
    assert ours.high == pytest.approx(theirs.high, abs=0.03)


def test_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(1)
    hits = 0
    for seed in range(300):
        weights = generator.integers(50, 150, 40)
        totals = generator.normal(0.3, 1.0, 40) * weights
        found = paired_bootstrap(totals, weights, resamples=400, seed=seed)
        hits += found.low <= 0.3 <= found.high
    assert 0.89 <= hits / 300 <= 0.98


def test_ratio_repeats_and_is_one_for_equal_models():
    before, tokens = np.array([10.0, 20.0, 30.0]), np.array([5, 6, 7])
    same = perplexity_ratio(before, before, tokens)
    assert (same.value, same.low, same.high) == (1.0, 1.0, 1.0)
    worse = perplexity_ratio(before + 0.1 * tokens, before, tokens, seed=4)
    assert worse.value == pytest.approx(np.exp(0.1))
    assert worse == perplexity_ratio(before + 0.1 * tokens, before, tokens, seed=4)


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 2.0])])
def test_bad_lists_are_refused(a, b):
    with pytest.raises(ValueError, match="equal, non-empty"):
        paired_bootstrap(a, b)


def test_knee_is_the_point_farthest_from_the_chord():
    assert knee([1, 2, 3, 4, 5], [10, 3, 1.5, 1.2, 1]) == 1
    assert knee([5, 4, 3, 2, 1], [1, 1.2, 1.5, 3, 10]) == 3
    assert knee([1, 2], [5, 1]) == 1
    assert knee([1, 1, 1], [5, 1, 2]) == 2
