"""`regear run`: steps in order, each taking what the last one made; a gate that does not pass ends the run."""

import json

import pytest
import yaml

from regear.cli.main import run
from tests.tiny import make_text


@pytest.fixture
def folder(tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    rows = [{"text": make_text(seed=i), "language": ("en", "de")[i % 2]} for i in range(2)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "text.txt").write_text(make_text(seed=7))
    return tmp_path


def recipe(folder, *steps, **more):
    (folder / "chain.yaml").write_text(yaml.safe_dump({"steps": list(steps), **more}))
    return "chain.yaml"


def convert(model):
    changes = [f"{use}.text=[text.txt]" for use in ("calibration", "selection", "evaluation")]
    return {"convert": {"model": str(model), "output": "mla", "changes": [*changes, "calibration.tokens=256"]}}


AUDIT = {"text": ["texts.jsonl"], "by": ["language"]}


def test_convert_then_audit_leaves_a_card_that_says_whom_it_hurt(folder, tiny, capsys):
    assert run(["run", recipe(folder, convert(tiny("llama")), {"audit": AUDIT}), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [verb for step in result["steps"] for verb in step] == ["convert", "audit"]
    assert result["steps"][1]["audit"]["before"] == str(tiny("llama"))
    assert result["steps"][1]["audit"]["after"] == "mla"
    assert "Whom the change hurts" in (folder / "mla" / "README.md").read_text()


def test_a_gate_that_does_not_pass_ends_the_run(folder, tiny, capsys):
    (folder / "gates.yaml").write_text("require: [{slice: {language: de}, metric: bits_per_byte}]")
    heal = {"heal": {"output": "healed"}}
    steps = [convert(tiny("llama")), {"audit": AUDIT | {"gates": "gates.yaml"}}, heal]
    assert run(["run", recipe(folder, *steps), "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["gate"] == "undetermined"  # a handful of windows decides nothing
    assert len(result["steps"]) == 2
    assert not (folder / "healed").exists()


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"convert": {"model": "m", "output": "o"}, "audit": {}}], "found 2 verbs in one step"),
        ([{"convert": {"output": "o"}}], "the first step has nothing before it"),
        ([{"convert": {"model": "m", "outptu": "o"}}], "did you mean 'steps.convert.output'"),
        ([], "at least 1"),
    ],
)
def test_a_wrong_recipe_is_one_line_before_any_work(folder, capsys, steps, message):
    assert run(["run", recipe(folder, *steps)]) == 2
    found = capsys.readouterr().err
    assert message in found
    assert found.count("\n") == 1


@pytest.mark.parametrize(
    ("audit", "message"),
    [
        ({"gates": "nope.yaml"}, "no gates file nope.yaml"),
        ({"report": "text.txt"}, "cannot write the report text.txt"),
        ({"ledger": "text.txt/l.jsonl"}, "cannot write the ledger text.txt/l.jsonl"),
    ],
)
def test_what_an_audit_needs_is_checked_before_the_first_step(folder, tiny, capsys, audit, message):
    assert run(["run", recipe(folder, convert(tiny("llama")), {"audit": audit})]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "mla").exists()


def test_an_unknown_step_is_told_which_there_are(folder, capsys):
    assert run(["run", recipe(folder, {"foo": {}})]) == 2
    assert "found step 'foo'; wanted one of convert, heal, eval, audit" in capsys.readouterr().err
