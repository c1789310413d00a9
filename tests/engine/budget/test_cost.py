"""The curve follows measured steps, through outliers, on machines with and without a knee, and never falls."""

import time

import numpy as np
import pytest

from regear.engine.budget.cost import StepCost, _never_falling

CPU = {1: 28, 4: 33, 8: 45, 16: 62, 32: 107, 64: 190, 128: 400}  # ms, measured on one core


def cpu(tokens):
    return np.interp(tokens, list(CPU), list(CPU.values())) / 1000


def gpu(tokens):
    return 0.020 * np.maximum(1, tokens / 256)


def learned(curve, sizes, noise=0.05, outliers=0.0, seed=0):
    random, cost = np.random.default_rng(seed), StepCost()
    for size in sizes:
        stolen = 3 if random.random() < outliers else 1
        cost.observe(int(size), float(curve(size)) * random.lognormal(0, noise) * stolen)
    return cost


@pytest.mark.parametrize("outliers", [0.0, 0.15])
@pytest.mark.parametrize("curve", [cpu, gpu])
def test_measured_sizes_are_met(curve, outliers):
    sizes = np.tile(list(CPU), 20)
    cost = learned(curve, sizes, outliers=outliers)
    np.testing.assert_allclose(cost.seconds(list(CPU)), curve(np.array(list(CPU))), rtol=0.12)


def test_the_slope_is_found_between_two_sizes_that_are_not_knots():
    cost = learned(cpu, np.tile([64] * 9 + [100, 110], 30))
    assert cost.marginal(64, 46) == pytest.approx((cpu(110) - cpu(64)) / 46, rel=0.15)
    cost = learned(gpu, np.tile([64] * 9 + [100, 110], 30))
    assert cost.marginal(64, 46) * 46 < 0.05 * gpu(64)


def test_a_cold_start_is_neither_free_nor_linear():
    cost = StepCost()
    assert not cost.known
    cost.observe(4, 0.033)
    assert cost.known
    assert 0.033 < cost.seconds(8) < 0.066
    assert cost.seconds(4) == pytest.approx(0.033, rel=1e-3)
    assert cost.seconds(1) > 0.033 / 4


def test_a_first_step_that_was_held_up_is_soon_forgotten():
    cost = learned(cpu, [16] * 12)
    held = StepCost()
    held.observe(16, 1.0)
    for _ in range(12):
        held.observe(16, float(cpu(16)))
    assert held.seconds(16) == pytest.approx(cost.seconds(16), rel=0.1)


def test_a_machine_that_slows_down_is_followed():
    cost = learned(cpu, np.tile([4, 8, 16], 30))
    for size in np.tile([4, 8, 16], 30):
        cost.observe(int(size), 2 * float(cpu(size)))
    np.testing.assert_allclose(cost.seconds([4, 8, 16]), 2 * cpu([4, 8, 16]), rtol=0.1)


def test_it_never_falls_and_starts_at_nothing():
    random = np.random.default_rng(1)
    cost = learned(lambda size: 0.03, random.integers(1, 500, 400), noise=0.5)
    assert (np.diff(cost.seconds(np.arange(0, 200_000, 37))) >= -1e-12).all()
    assert cost.seconds(0) == 0


@pytest.mark.parametrize("seed", range(5))
def test_pooling_is_the_nearest_curve_that_never_falls(seed):
    optimize = pytest.importorskip("scipy.optimize")
    random = np.random.default_rng(seed)
    values, weights = random.normal(size=12), random.uniform(0.1, 2, 12)
    expected = optimize.isotonic_regression(values, weights=weights).x
    np.testing.assert_allclose(_never_falling(values, weights), expected, atol=1e-12)


def test_following_a_step_takes_a_fraction_of_a_millisecond():
    cost = learned(cpu, np.random.default_rng(0).integers(1, 256, 500))
    start = time.perf_counter()
    for _ in range(50):
        cost.observe(17, 0.06)
        cost.seconds([17, 18])
    assert (time.perf_counter() - start) / 50 < 0.002
