import numpy as np
import pytest

from regear.engine.budget.curve import fit
from regear.ops.draft_budget import accepted


@pytest.mark.parametrize(("alpha", "capacity"), [(0.8, 0.6), (0.3, 0.9), (2.0, 0.2)])
def test_a_curve_is_found_again(alpha, capacity):
    random = np.random.default_rng(0)
    lengths, proposed = random.uniform(50, 500, 200), random.uniform(0, 2000, 200)
    kept = accepted(proposed, lengths, np.full(200, alpha), np.full(200, capacity))
    assert fit(proposed, kept, lengths) == pytest.approx((alpha, capacity), rel=1e-2)
    noisy = kept * random.lognormal(0, 0.1, 200)
    assert fit(proposed, noisy, lengths) == pytest.approx((alpha, capacity), rel=0.15)


def test_a_capacity_stays_within_its_bounds():
    lengths, proposed = np.full(10, 100.0), np.linspace(10, 300, 10)
    assert fit(proposed, np.zeros(10), lengths)[1] == 0.05
    assert fit(proposed, np.minimum(proposed, 100), lengths)[1] <= 0.98


def test_no_history_is_no_error():
    alpha, capacity = fit(np.zeros(0), np.zeros(0), np.zeros(0))
    assert alpha * capacity == 0.5
