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
    "engine_passes": ["--context", "8", "--cases", "1x1 2x3"],
    "engine_rollouts": ["--quick", "--tokens", "6"],
    "engine_exact": ["--prompts", "4", "--context", "16", "--tokens", "6"],
    "suffix_rollouts": ["--quick", "--tokens", "8", "--prompts-of", "problems"],
    "suffix_index": [
        *["--groups", "3", "--siblings", "4", "--length", "60", "--rows", "5", "--steps", "4", "--places", "9"]
    ],
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


def test_passes_are_timed_with_both_products(drive):
    passes = drive("engine_passes")["results"]["passes"]
    assert [(one["texts"], one["tokens_a_text"]) for one in passes] == [(1, 1), (2, 3)]
    assert all(min(*one["seconds"].values(), one["floor_seconds"]) > 0 for one in passes)


def test_products_that_differ_end_the_benchmark_of_passes(drive, monkeypatch):
    from regear.ops import linear

    right = linear.Packed.__call__
    monkeypatch.setattr(linear.Packed, "__call__", lambda self, x: right(self, x) * 1.01)
    with pytest.raises(SystemExit, match="the scores differ"):
        drive("engine_passes")


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


def test_suffix_index_measures_every_cell(drive):
    results = drive("suffix_index")["results"]
    assert results["gate"]["regear, generations 1"]
    assert results["gate"]["regear, generations 4"]
    assert results["gate"]["places"] == 9
    assert results["history"]["tokens"] == 3 * 4 * 60
    assert {(row["side"], row["chunk"], row["generations"]) for row in results["appends"]} >= {
        ("regear", 8, 1),
        ("regear", 1, 4),
    }
    assert all(row["us_a_token"] > 0 for row in results["appends"])
    assert {row["shared"] for row in results["queries"]} == {False, True}
    for row in results["accepted"]["edited"]:
        assert 0 <= row["accepted_a_step"] <= row["guessed_a_step"] <= row["limit"]
    assert any("rival" in note for note in results["notes"])


def test_suffix_index_notices_a_wrong_match(drive, monkeypatch):
    monkeypatch.setattr("suffix_gate.plain", lambda *_: 1)
    with pytest.raises(SystemExit, match="plain search"):
        drive("suffix_index")


def test_a_plain_search_for_the_longest_end(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    plain = importlib.import_module("suffix_gate").plain
    rows = [np.array([1, 2, 3, 4]), np.array([5, 2, 3])]
    assert plain(rows, np.array([9, 1, 2, 3]), True, 9) == 3
    assert plain(rows, np.array([5, 2, 3]), False, 9) == 3
    assert plain(rows, np.array([5, 2, 3]), True, 9) == 2  # nothing comes after all three
    assert plain(rows, np.array([5, 2, 3]), False, 1) == 1
    assert plain(rows, np.array([4, 5]), True, 9) == 1  # rows are apart
    assert plain(rows, np.array([4]), True, 9) == 0


def test_edited_texts_are_alike_and_differ(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    made = importlib.import_module("suffix_history")
    tokens = np.arange(4000, dtype=np.int32)
    copies = [made.edited(tokens, 0.1, 3000, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert np.array_equal(copies[0], copies[1])
    assert not np.array_equal(copies[0], copies[2])
    for copy in copies:
        assert len(copy) == 3000
        assert 0.05 < np.mean(np.diff(copy) != 1) < 0.15


def test_replayed_texts_keep_what_comes_true(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    made, measure = importlib.import_module("suffix_history"), importlib.import_module("suffix_replay")
    side = importlib.import_module("suffix_index_regear").Regear()
    row = {"epoch": 0, "group": 7, "sample": 0, "prompt": [1, 2], "tokens": list(range(3, 40))}
    path = tmp_path / "rollouts.jsonl"
    path.write_text("\n".join(json.dumps(row | {"epoch": epoch, "seed": 2**64 - 1}) for epoch in (1, 0)))
    texts = made.rollouts(path)
    texts.save(tmp_path / "texts.npz")
    texts = made.Texts.load(tmp_path / "texts.npz")
    assert texts.seeds == [2**64 - 1] * 2
    found = measure.epochs(side, texts, 4)
    assert found["by_epoch"][0] == 0  # nothing repeats
    assert found["by_epoch"][1] == pytest.approx(29 / 8)  # 37 tokens in 8 steps: all but one of each were guessed
    assert side.index.tokens == 2 * 39


def test_rollouts_over_epochs_are_timed_beside_plain_ones(drive):
    results = drive("suffix_rollouts")["results"]
    assert {name.split(",")[0] for name in results["replays"]} == {"epoch 1", "epoch 2", "last epoch"}
    assert all(row["acceptance_length"] >= 1 for row in results["replays"].values())
    cells = results["timed"]["2"]
    assert set(cells) == {"plain", "n-grams, as far as it pays", "suffix, all guesses", "suffix, budget"}
    assert cells["plain"]["of_plain"] == cells["plain"]["acceptance_length"] == 1
    assert all(gate["near_ties_only"] for gate in results["gates"].values())
    assert results["variety"]["distinct_texts"] <= 1


def test_rollouts_refuse_a_text_that_guesses_changed(drive, monkeypatch):
    import suffix_rollouts

    real = suffix_rollouts.Rollouts.run

    def run(self, model, epoch, slots, drafter):
        found = real(self, model, epoch, slots, drafter)
        if drafter is not None:
            found.tokens[0][0] = (found.tokens[0][0] + 1) % 50
        return found

    with pytest.raises(SystemExit, match="where no tie is"):
        drive("suffix_rollouts", Rollouts=type("Changed", (suffix_rollouts.Rollouts,), {"run": run}))
