"""The comparison with other tools runs without them, and its readings are right."""

import importlib
import json
from pathlib import Path

import pytest


@pytest.fixture
def rivals(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent.parent / "benchmarks")
    return importlib.import_module("audit_rivals")


def test_without_rivals_regear_is_measured_alone(rivals, tmp_path, monkeypatch):
    kinds = ["one-way", "uniform"]
    monkeypatch.setattr(rivals, "WHERE", {kind: rivals.WHERE[kind] for kind in kinds})
    saved = tmp_path / "rivals.json"
    monkeypatch.setattr(
        "sys.argv", ["audit_rivals", "--units", "4000", "--large", "2000", "--json", "--save", str(saved)]
    )
    rivals.main()
    results = json.loads(saved.read_text())["results"]
    assert "rivals left out" in results["note"]
    assert results["tools"]["regear"]["found"] == {"one-way": True, "uniform": True}
    assert len(results["large"]["values"]) == 12


def test_what_counts_as_found(rivals):
    table = rivals.made("two-way", 2000, 0, True)
    where = rivals.WHERE["two-way"]
    assert rivals.hit(table, where, {"slices": [{"x0": 0}, where]})
    assert rivals.hit(table, where, {"slices": [{**where, "x0": 0}]}) == (
        (rivals.mask(table, {**where, "x0": 0}).sum() / rivals.mask(table, where).sum()) >= 0.5
    )
    assert not rivals.hit(table, where, {"slices": [{"x2": 1}, *[{"x0": 0}] * 4, where]})
    assert rivals.hit(table, {}, {"whole": True, "apart": False})
    assert not rivals.hit(table, {}, {"whole": True, "apart": True})
