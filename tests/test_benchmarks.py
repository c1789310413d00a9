"""The engine's benchmarks run from end to end on a tiny model, and their gates notice what is wrong."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from regear.models.load import load_model

DRIVERS = {
    "engine_decode": ["--contexts", "16", "--rows", "1,2", "--tokens", "4"],
    "engine_verify": ["--context", "24", "--rows", "1,2", "--widths", "1,3", "--texts", "2", "--tokens", "6"],
    "engine_rollouts": ["--quick", "--tokens", "6"],
    "engine_exact": ["--prompts", "4", "--context", "16", "--tokens", "6"],
}


@pytest.fixture
def drive(tiny, text, tmp_path, monkeypatch):
    """Run a driver on a tiny model; its module, patched or not, and what it saved."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")

    def run(name: str, **patches) -> dict:
        module, saved = importlib.import_module(name), tmp_path / f"{name}.json"
        if hasattr(module, "rates"):
            monkeypatch.setattr(module, "rates", lambda: {"bytes_per_second": 1e10, "operations_per_second": 1e11})
        for attribute, value in patches.items():
            monkeypatch.setattr(module, attribute, value)
        words = ["--model", str(tiny("llama")), "--text", str(text), "--rounds", "1", "--save", str(saved), "--json"]
        monkeypatch.setattr("sys.argv", [name, *words, *DRIVERS[name]])
        module.main()
        return json.loads(saved.read_text())

    return run


def test_decode_measures_every_cell(drive):
    record = drive("engine_decode")
    assert {"machine", "commit", "seed"} <= set(record)
    cells = record["results"]["cells"]
    assert [(cell["context"], cell["rows"]) for cell in cells] == [(16, 1), (16, 2)]
    for cell in cells:
        assert {"regear", "generate"} <= set(cell["tokens_per_second"])
        assert min(cell["tokens_per_second"].values()) > 0
        assert cell["same_texts"]["generate"] == 1
        assert cell["floor"]["bytes"] > 0
    assert any("ctranslate2" in note for note in record["results"]["notes"])


def test_verify_measures_both_ways(drive):
    results = drive("engine_verify")["results"]
    assert [row["rows"] for row in results["passes"]] == [1, 2]
    for row in results["passes"]:
        assert set(row["over_one"]["regear"]) == set(row["over_one"]["transformers"]) == {"1", "3"}
    assert {row["text"] for row in results["texts"]} == {"repeats", "does not"}
    assert all(row["near_ties_only"] for row in results["texts"])


def test_rollouts_count_useful_tokens(drive):
    results = drive("engine_rollouts")["results"]
    assert results["rollouts"] == 4
    assert results["gate"]["near_ties_only"]
    for found in results["contenders"].values():
        assert 0 < found["longest"] <= results["cap"]
        assert found["useful_tokens_per_second"] == pytest.approx(found["tokens"] / found["makespan_seconds"])


def test_exact_compares_with_generate(drive):
    cases = drive("engine_exact")["results"]["cases"]
    assert {"ngram beside off", "generate beside off"} <= {case["case"] for case in cases}
    assert all(case["near_ties_only"] and not case["parted"] for case in cases)


class Always:
    """Guesses one token again and again."""

    def propose(self, texts, most):
        return [np.full(count, 7, np.int32) for count in most]

    def observe(self, outcomes):
        pass

    def finish(self, number, tokens, prompt, group):
        pass


def test_exact_notices_a_guess_kept_wrongly(drive, monkeypatch):
    monkeypatch.setattr("regear.engine.verify.kept", lambda drawn, guessed, counts: counts)
    with pytest.raises(SystemExit, match="no tie"):
        drive("engine_exact", drafters=lambda *_: {"always": Always})


def test_all_contenders_end_texts_alike(tiny, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    made, load = importlib.import_module("engine_contenders"), importlib.import_module("engine_common").load_stock
    prompts = [[1, 2, 3, 4, 5], [7, 8]]
    free = made.Stock(load(tiny("llama")))(prompts, 8).tokens
    stops = (free[0][2],)
    ended = [row[: row.index(stops[0]) + 1] if stops[0] in row else row for row in free]
    model = load(tiny("llama"))
    stock, batched = made.Stock(model, stops=stops), made.Batched(model, stops=stops)
    for way in (stock, batched, made.Ours(load_model(tiny("llama")), stop_tokens=stops)):
        run = way(prompts, 8)
        assert run.tokens == ended
        assert [len(times) for times in run.times] == [len(row) for row in ended]


def test_a_rate_counts_while_all_texts_decode(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    run = importlib.import_module("engine_common").Run([[1] * 4, [1] * 3], [[1, 3, 5, 7], [3, 5, 11]], 0.0)
    assert run.rate() == pytest.approx(3 / 4)  # from 3 to 7: two tokens of one text and one of the other
    assert run.rate(whole=True) == pytest.approx(4 / 8)
    assert run.seconds() == 11
