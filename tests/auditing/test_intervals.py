"""Intervals against a form in loops and textbook formulas."""

import numpy as np
import pytest
from scipy import stats

from regear.auditing import intervals
from regear.auditing.intervals import effects, simultaneous
from regear.auditing.rare import most_changed, widened
from tests.auditing import naive


def totals(seed=0, packs=40, slices=3, ratios=1):
    generator = np.random.default_rng(seed)
    sums = generator.normal(size=(packs, slices, 2 * ratios))
    sums[..., 1::2] = generator.integers(1, 4, size=(packs, slices, ratios))
    sums[: packs // 3, 1] = 0.0  # a slice that is in some packs only
    return sums


@pytest.mark.parametrize("signs", [(1,), (1, -1), (1, -1, -1, 1)])
def test_bounds_are_those_of_the_loops(signs):
    sums = totals(ratios=len(signs))
    found = simultaneous(sums, signs, level=0.9, resamples=200, seed=5)
    wanted = naive.bounds(sums, signs, 0.9, 200, 5)
    assert np.stack([found.low, found.high], -1) == pytest.approx(np.array(wanted), rel=1e-9)


@pytest.mark.parametrize("signs", [(1,), (1, -1)])
def test_errors_are_the_spread_of_fresh_samples(signs):
    generator = np.random.default_rng(1)
    values, errors = [], []
    for _ in range(600):
        sums = generator.normal(1.0, 1.0, size=(200, 1, 2 * len(signs)))
        sums[..., 1::2] = generator.integers(1, 4, size=(200, 1, len(signs)))
        found = simultaneous(sums, signs, resamples=2)
        values.append(found.value[0])
        errors.append(found.error[0])
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.1)


def test_a_clustered_mean_has_the_textbook_error():
    generator = np.random.default_rng(2)
    user = np.sort(generator.integers(0, 60, 500))
    change = generator.normal(size=60)[user] + generator.normal(size=500)
    sums = np.stack([np.bincount(user, change, 60), np.bincount(user, minlength=60)], -1)[:, None, :]
    residual = change - change.mean()
    wanted = np.sqrt(60 / 59 * (np.bincount(user, residual, 60) ** 2).sum()) / 500
    assert simultaneous(sums, (1,), resamples=2).error[0] == pytest.approx(wanted)


def test_an_unclustered_mean_has_the_standard_error():
    change = np.random.default_rng(3).normal(size=100)
    sums = np.stack([change, np.ones(100)], -1)[:, None, :]
    assert simultaneous(sums, (1,), resamples=2).error[0] == pytest.approx(stats.sem(change))


def test_blocks_change_nothing(monkeypatch):
    sums = totals(packs=50, slices=9)
    whole = simultaneous(sums, (1,), resamples=300)
    monkeypatch.setattr(intervals, "BLOCK", 500)
    monkeypatch.setattr(intervals, "CHUNK", 1000)
    apart = simultaneous(sums, (1,), resamples=300)
    # Draws come in other blocks, of the same stream.
    assert apart.low == pytest.approx(whole.low, rel=1e-9)
    assert apart.high == pytest.approx(whole.high, rel=1e-9)


def test_large_values_lose_no_digits():
    sums = totals()
    lifted = sums.copy()
    lifted[..., 0] += 1e7 * sums[..., 1]
    one, two = simultaneous(sums, (1,), resamples=200), simultaneous(lifted, (1,), resamples=200)
    assert two.low - 1e7 == pytest.approx(one.low, abs=1e-6)


def test_a_constant_change_has_no_width_and_does_not_widen_others():
    sums = totals(slices=2)[:, :1]
    constant = np.stack([0.3 * sums[..., 1], sums[..., 1]], -1)
    both = simultaneous(np.concatenate([sums, constant], 1), (1,), resamples=200)
    alone = simultaneous(sums, (1,), resamples=200)
    assert both.low[0] == pytest.approx(alone.low[0])
    assert both.high[1] - both.low[1] < 1e-9
    assert both.value[1] == pytest.approx(0.3)


def test_more_slices_make_wider_intervals():
    sums = totals(packs=200, slices=12)
    few, many = simultaneous(sums[:, :1], (1,)), simultaneous(sums, (1,))
    assert max(many.critical) > max(few.critical) > 1.7


def test_no_denominator_is_no_number():
    assert np.isnan(effects(np.array([0.0, 0.0]), (1,)))


@pytest.mark.parametrize(("changed", "clusters"), [(0, 30), (0, 1000), (3, 40), (9, 500), (40, 40)])
def test_most_changed_is_the_exact_binomial_bound(changed, clusters):
    wanted = stats.binomtest(changed, clusters).proportion_ci(0.9).high  # two-sided 90 %: one-sided 95 %
    assert most_changed(changed, clusters, 0.95) == pytest.approx(wanted, abs=1e-9)


def test_rare_losses_get_the_exact_bound_and_common_ones_their_own():
    share = stats.binomtest(3, 200).proportion_ci(0.95).high
    assert widened((-0.02, -0.01), -3 / 200, 3, 200, 1.0, 0.975)[0] == pytest.approx(-share)
    assert widened((-0.2, -0.1), -0.15, 30, 200, 1.0, 0.975) == (-0.2, -0.1)
