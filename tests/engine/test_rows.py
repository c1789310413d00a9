"""A model's answers to a file of prompts become rows that training reads."""

import json

import pytest

import regear
from regear.cli import main
from regear.core.errors import DataError, RecipeError
from regear.engine import rows as module
from regear.train.stream import Stream
from tests.tiny import byte_tokenizer, make_text

PROMPTS = ["the quick", "seven wizards", "over a lazy", "rain"]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    return path


def answer(tiny, prompts, out, **options):
    return regear.generate_rows(tiny("llama"), prompts, out, **{"max_tokens": 8, "seed": 3, **options})


def test_rows_hold_prompt_and_answer_and_can_be_trained_on(tiny, prompts, tmp_path):
    found = answer(tiny, prompts, tmp_path / "rows.jsonl", temperature=0.0)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert found["rows"] + found["empty"] == len(PROMPTS)
    assert [row["prompt"] for row in rows] == [p for p in PROMPTS if p in {row["prompt"] for row in rows}]
    said = regear.generate(tiny("llama"), rows[0]["prompt"], raw=True, max_tokens=8)
    assert rows[0]["completion"] == said["text"]
    assert rows[0]["finish_reason"] == said["finish_reason"]
    batch = next(Stream([tmp_path / "rows.jsonl"], byte_tokenizer(), sequence=64, batch=1))
    assert batch.count > 0


def test_a_cut_run_goes_on_and_ends_with_the_same_bytes(tiny, prompts, tmp_path, monkeypatch):
    answer(tiny, prompts, tmp_path / "whole.jsonl")

    class Cut(Exception):
        pass

    def stop(stage, done, of):
        if done == 2:
            raise Cut

    out = tmp_path / "rows.jsonl"
    with pytest.raises(Cut):
        answer(tiny, prompts, out, progress=stop)
    assert not out.exists()
    (partial,) = tmp_path.glob(".rows.jsonl.*.partial")
    with open(partial, "a") as file:
        file.write('{"prompt": "half a li')
    asked = []
    whole = module.LocalEngine.submit
    monkeypatch.setattr(module.LocalEngine, "submit", lambda self, x: asked.append(x) or whole(self, x))
    answer(tiny, prompts, out)
    assert len(asked) == 2
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not list(tmp_path.glob(".rows*"))


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085"])
def test_line_separators_inside_a_prompt_break_no_row(tiny, tmp_path, mark):
    path = tmp_path / "prompts.jsonl"
    row = json.dumps({"prompt": f"one{mark}two"}, ensure_ascii=False) + "\n"
    path.write_text(2 * row, encoding="utf-8")
    found = answer(tiny, path, tmp_path / "rows.jsonl", temperature=0.0)
    written = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert [json.loads(line)["prompt"] for line in written] == [f"one{mark}two"] * found["rows"]
    assert found["rows"] + found["empty"] == 2


def test_a_drafter_changes_no_row(tiny, prompts, tmp_path):
    for draft in ("none", f"model:{tiny('llama')}"):
        answer(tiny, prompts, tmp_path / f"{draft[:4]}.jsonl", draft=draft)
    assert (tmp_path / "none.jsonl").read_bytes() == (tmp_path / "mode.jsonl").read_bytes()


def test_another_seed_says_something_else(tiny, prompts, tmp_path):
    for seed in (1, 2):
        answer(tiny, prompts, tmp_path / f"{seed}.jsonl", seed=seed)
    assert (tmp_path / "1.jsonl").read_text() != (tmp_path / "2.jsonl").read_text()


def test_text_windows_are_gone_on_from(tiny, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(make_text(2 * 2048 + 10))
    answer(tiny, text, tmp_path / "rows.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert rows[0]["prompt"] == text.read_text()[: module.BEGINNING]


def test_messages_lose_their_last_answer_and_need_a_template(tiny, tmp_path):
    asked = [{"role": "user", "content": "hello"}]
    rows = tmp_path / "chat.jsonl"
    rows.write_text(json.dumps({"messages": [*asked, {"role": "assistant", "content": "old"}]}) + "\n")
    assert list(module.read_prompts(rows, byte_tokenizer())) == [asked]
    with pytest.raises(DataError, match="no chat template"):
        answer(tiny, rows, tmp_path / "rows.jsonl")
    template = byte_tokenizer()
    template.chat_template = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
    assert template.decode(module._encode(template, asked)) == "user:hello;"
    assert module._answered(asked, "new")["messages"][-1] == {"role": "assistant", "content": "new"}


@pytest.mark.parametrize("line", ['{"text": "a"}', "[1]", '{"prompt": ""}', '{"messages": []}', "{"])
def test_a_row_without_a_prompt_is_named(tiny, tmp_path, line):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n' + line + "\n")
    with pytest.raises(DataError, match=r"p\.jsonl, line 2"):
        answer(tiny, path, tmp_path / "rows.jsonl")


def test_an_output_is_never_replaced(tiny, prompts, tmp_path):
    (tmp_path / "rows.jsonl").write_text("mine")
    with pytest.raises(RecipeError, match="already there"):
        answer(tiny, prompts, tmp_path / "rows.jsonl")


def test_the_verb_takes_a_prompt_or_a_file(tiny, prompts, tmp_path, capsys):
    model, out = str(tiny("llama")), str(tmp_path / "rows.jsonl")
    assert main.run(["generate", model, "--prompts", str(prompts), "-o", out, "--max-tokens", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["output"] == out
    drafting = ["generate", model, "a prompt", "--draft", "ngram", "--draft-tokens", "2", "--max-tokens", "4", "--json"]
    assert main.run(drafting) == 0
    assert json.loads(capsys.readouterr().out)["acceptance_length"] >= 1
    assert main.run([*drafting[:4], "gram"]) == 2
    assert "did you mean 'ngram'" in capsys.readouterr().err
    assert main.run(["generate", model, "--prompts", str(prompts)]) == 2
    assert main.run(["generate", model, "a prompt", "-o", out]) == 2
