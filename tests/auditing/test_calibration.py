"""The audit's error rates, by simulation: wide bounds in seconds, the full form marked slow."""

import importlib
import json
from pathlib import Path

import pytest


@pytest.fixture
def power(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent.parent / "benchmarks")
    return importlib.import_module("audit_power")


QUICK = {"simulations": 150, "resamples": 300, "seed": 1}


def holds(found, level=0.95):
    """The binomial interval does not lie below the level."""
    return found["ci"][1] >= level


@pytest.mark.parametrize("kind", ["normal", "log-normal, sigma 0.5", "losses, 2 %", "flips, 30 % and 20 %"])
@pytest.mark.parametrize("units", [30, 200])
def test_an_interval_holds_as_often_as_it_says(power, kind, units):
    assert holds(power.pointwise(kind, units, **QUICK)["covered"])


def test_users_are_resampled_and_not_their_rows(power):
    found = power.clustered(**QUICK, users=60, units=600)
    assert holds(found["by user"])
    assert not holds(found["by unit"])


@pytest.mark.parametrize("kind", ["normal", "losses, 2 %"])
def test_many_slices_together_raise_few_false_alarms(power, kind):
    found = power.family(kind, simulations=60, resamples=300, seed=1, units=500)
    assert holds(found["all_covered"])
    for alarms in (found["false_harm"], found["false_no_harm"]):
        assert alarms["ci"][0] <= 0.05


def test_planted_harm_is_found_and_nothing_else(power):
    found = power.planted(4, 0, loss=0.1)
    assert found["top_3"]["share"] == 1
    assert found["harm"]["count"] >= 3
    assert power.planted(6, 0, loss=0.0)["false_alarms_discovered"]["count"] <= 2


@pytest.mark.slow
def test_the_full_simulation_keeps_its_promises(power, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["audit_power", "--json", "--save", str(tmp_path / "power.json")])
    power.main()
    results = json.loads((tmp_path / "power.json").read_text())["results"]
    assert results["off"]["false_alarms"] == []
    # The one stated limit: very skewed changes of few units.
    assert all("sigma 1" in case for case in results["off"]["covered_too_rarely"])
    assert results["planted"]["top_3"]["ci"][1] >= 0.95
    assert not holds(results["clustered"]["by unit"])
