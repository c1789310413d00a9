"""Rank allocation: budgets, bounds, optimality of the concave rules, and CARE's runaway reproduced and absent."""

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from regear.core.errors import RecipeError
from regear.ops import ranks

spectra = st.lists(
    st.lists(st.floats(0, 100), min_size=12, max_size=12).map(lambda v: sorted(v, reverse=True)), min_size=1, max_size=5
)


@settings(max_examples=60, deadline=None)
@given(spectra=spectra, mean=st.floats(1, 12), step=st.integers(1, 3))
def test_budget_and_bounds_hold(spectra, mean, step):
    layers, budget = len(spectra), int(mean * len(spectra))
    low, high = ranks.bounds(layers, budget, 12, step=step)
    if low * layers > budget:
        return
    found = ranks.greedy(ranks.energy_score(spectra, step), layers, budget, step=step, low=low, high=high)
    assert sum(found) <= budget
    assert all(low <= r <= high for r in found)
    assert budget - sum(found) < step or all(r + step > high for r in found)


def kept(spectra, found):
    return sum(sum(s[:r]) / max(sum(s), 1e-300) for s, r in zip(spectra, found, strict=True))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.floats(0.01, 100), min_size=6, max_size=6).map(lambda v: sorted(v, reverse=True)),
        min_size=3,
        max_size=3,
    ),
    st.integers(3, 18),
)
def test_energy_equals_brute_force_and_beats_uniform(spectra, budget):
    found = ranks.greedy(ranks.energy_score(spectra, 1), 3, budget, step=1, low=1, high=6)
    best = max(kept(spectra, r) for r in itertools.product(range(1, 7), repeat=3) if sum(r) <= budget)
    assert kept(spectra, found) == pytest.approx(best, rel=1e-9)
    assert kept(spectra, found) >= kept(spectra, ranks.uniform(3, budget, step=1, high=6)) - 1e-12


def test_permuting_layers_permutes_ranks():
    generator = np.random.default_rng(0)
    rows = [sorted(generator.exponential(size=20) * 2.0**i, reverse=True) for i in range(5)]
    order = [3, 0, 4, 1, 2]
    for score in (ranks.energy_score, ranks.curvature_score, ranks.care_score):
        found = ranks.greedy(score(rows, 1), 5, 40, step=1, low=2, high=20)
        again = ranks.greedy(score([rows[i] for i in order], 1), 5, 40, step=1, low=2, high=20)
        assert again == [found[i] for i in order]


def test_more_budget_takes_nothing_away():
    generator = np.random.default_rng(1)
    rows = [sorted(generator.exponential(size=20), reverse=True) for _ in range(4)]
    smaller = ranks.greedy(ranks.curvature_score(rows, 1), 4, 30, step=1, low=1, high=20)
    larger = ranks.greedy(ranks.curvature_score(rows, 1), 4, 50, step=1, low=1, high=20)
    assert all(a <= b for a, b in zip(smaller, larger, strict=True))


def test_cares_ratio_runs_away_and_energy_does_not():
    """Near full rank σ²/rest goes to 1, so CARE pins layers at full rank that have nothing left to gain."""
    rows = [[2.0 ** (-k / (4 + layer)) for k in range(64)] for layer in range(8)]
    care = ranks.greedy(ranks.care_score(rows, 1), 8, 8 * 32, step=1, low=16, high=64)
    energy = ranks.greedy(ranks.energy_score(rows, 1), 8, 8 * 32, step=1, low=16, high=64)
    assert max(care) == 64
    assert min(care) == 16
    assert max(energy) < 64
    lost = [sum(sum(s[r:]) / sum(s) for s, r in zip(rows, found, strict=True)) for found in (care, energy)]
    assert lost[1] < lost[0]


def test_cares_code_is_not_its_equation():
    rows = [[1.0 / (k + 1) for k in range(32)] for _ in range(6)]
    printed = ranks.greedy(ranks.care_score(rows, 1), 6, 6 * 16, step=1, low=8, high=32)
    code = ranks.greedy(ranks.care_code_score(rows, 1, 8), 6, 6 * 16, step=1, low=8, high=32)
    assert printed != code
    assert code[0] > code[-1]  # its undocumented depth prior favours early layers


def test_measured_gives_more_to_the_sensitive_layer():
    rows = [[1.0 / (k + 1) for k in range(16)] for _ in range(3)]
    score = ranks.measured_score(rows, 1, [0.01, 1.0, 0.01], 4)
    found = ranks.greedy(score, 3, 24, step=1, low=4, high=16)
    assert found[1] == max(found)
    assert found[1] > found[0]


def test_a_layer_without_energy_gets_the_least():
    rows = [[0.0] * 8, [1.0] * 8]
    assert ranks.greedy(ranks.energy_score(rows, 1), 2, 10, step=1, low=2, high=8) == [2, 8]


def test_budgets_below_one_rank_are_refused():
    with pytest.raises(RecipeError, match="below one rank"):
        ranks.uniform(4, 3, step=1, high=8)
    with pytest.raises(RecipeError, match="below one rank"):
        ranks.uniform(4, 40, step=16, high=64)
