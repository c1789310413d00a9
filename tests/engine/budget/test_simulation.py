"""In rollouts with a long tail the budget ends no later than no guesses, or guesses without a budget."""

from pathlib import Path

import pytest


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "benchmarks")
    import draft_budget

    return draft_budget


def test_no_policy_ends_sooner(benchmark):
    names = ["plain", "unlimited", *benchmark.BUDGETS]
    cells = benchmark.simulate({"small": (60, 160, 8, 4)}, [4, 16, 32], seed=0, epochs=2, names=names)
    assert len(cells) == 6
    assert not benchmark.failures(cells)
    few = cells[0]["policies"]
    assert few[benchmark.BUDGETS[1]]["seconds"] < 0.9 * min(few["plain"]["seconds"], few["unlimited"]["seconds"])
    assert all(
        cell["policies"]["plain"]["written"] == cell["policies"][benchmark.BUDGETS[0]]["written"] for cell in cells
    )


def test_a_budget_that_loses_is_noticed(benchmark):
    cell = {
        "shape": "s",
        "curve": "cpu",
        "slots": 4,
        "policies": {"plain": {"seconds": 1}, "unlimited": {"seconds": 2}},
    }
    cell["policies"] |= {name: {"seconds": 1.1} for name in benchmark.BUDGETS}
    assert len(benchmark.failures([cell])) == 2
