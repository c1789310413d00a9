"""The verb on tables: what a person gives, and what comes back."""

import json

import numpy as np
import polars as pl
import pytest

from regear.cli.main import run


@pytest.fixture
def tables(tmp_path):
    """5,000 units, of which those of north lose 0.3 and the others nothing."""
    generator = np.random.default_rng(0)
    region = generator.choice(["north", "south", "east"], 5000)
    before = generator.normal(size=5000)
    after = before + 0.2 * generator.normal(size=5000) - 0.3 * (region == "north")
    ids = [f"u{i}" for i in range(5000)]
    pl.DataFrame({"id": ids, "score": before, "region": region}).write_ndjson(tmp_path / "before.jsonl")
    pl.DataFrame({"id": ids, "score": after}).write_parquet(tmp_path / "after.parquet")
    return str(tmp_path / "before.jsonl"), str(tmp_path / "after.parquet")


def test_the_slice_that_loses_is_harmed_and_the_others_are_not(tables, capsys):
    assert run(["audit", *tables, "--metric", "score", "--by", "region", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    words = {verdict["slice"]["region"]: verdict["verdict"] for verdict in result["verdicts"]}
    assert words == {"north": "harm", "south": "no_harm", "east": "no_harm"}
    assert result["gate"] == "none"


def test_a_group_without_the_metric_is_named_and_not_passed(tmp_path, capsys):
    rows = {"id": list(range(100)), "m": [1.0] * 60 + [None] * 40, "g": ["a"] * 60 + ["b"] * 40}
    pl.DataFrame(rows).write_parquet(tmp_path / "t.parquet")
    path = str(tmp_path / "t.parquet")
    assert run(["audit", path, path, "--metric", "m", "--by", "g", "--json"]) == 0
    found = {v["slice"]["g"]: v for v in json.loads(capsys.readouterr().out)["verdicts"]}
    assert found["b"]["verdict"] == "undetermined"
    assert "not assessable" in found["b"]["reason"]
    assert found["b"]["n"] == 0
