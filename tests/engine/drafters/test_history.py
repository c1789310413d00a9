"""Past texts come from JSONL and saved indexes; what cannot be read or written ends in one line and exit code 2."""

import json
from copy import copy
from dataclasses import replace

import numpy as np
import pytest

from regear.cli.main import run
from regear.core.errors import DataError
from regear.core.files import can_write
from regear.engine import rows as rows_module
from regear.engine.drafters.base import Target, Text
from regear.engine.drafters.history import keep, open_suffix, read_texts, suffix_of
from regear.engine.drafters.suffix import MAGIC, SuffixDrafter
from regear.engine.types import Request
from regear.models.load import load_tokenizer

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'bad' %}{{ raise_exception('no such role') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def target(model, tiny):
    tokenizer = load_tokenizer(tiny("llama"))
    tokenizer.chat_template = TEMPLATE
    return Target(model, tokenizer)


@pytest.fixture
def rows(target, tmp_path):
    """Rows as written to a file and read back: lists of prompt, tokens and group."""

    def read(*found, path=tmp_path / "rows.jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in found))
        return [(prompt.tolist(), tokens.tolist(), group) for prompt, tokens, group in read_texts(path, target)]

    return read


def test_every_form_of_row(rows, target):
    def encoded(text):
        return target.tokenizer(text, add_special_tokens=False)["input_ids"]

    stop = [target.model.generation_config.eos_token_id]
    assert rows(
        {"prompt_ids": [1, 2], "token_ids": [3, 4], "group": 7},
        {"token_ids": [5]},
        {"prompt": "to be", "completion": " or not", "finish_reason": "stop", "group": "a"},
        {"prompt": "to be", "completion": " or not", "finish_reason": "length"},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
    ) == [
        ([1, 2], [3, 4], "7"),
        ([], [5], None),
        (target.tokenizer("to be")["input_ids"], encoded(" or not") + stop, "a"),
        (target.tokenizer("to be")["input_ids"], encoded(" or not"), None),
        (encoded("<user>hi<assistant>"), encoded("ho") + stop, None),
    ]


WRONG = [
    "nothing like JSON",
    "5",
    "null",
    "[1, 2]",
    "{}",
    '{"prompt": "a"}',
    '{"completion": "a"}',
    '{"prompt": 5, "completion": "a"}',
    '{"prompt": ["a"], "completion": "a"}',
    '{"prompt": "a", "completion": null}',
    '{"prompt": "a", "completion": ["b"]}',
    '{"token_ids": null}',
    '{"token_ids": 7}',
    '{"token_ids": "17"}',
    '{"token_ids": ["1", "2"]}',
    '{"token_ids": [1.5]}',
    '{"token_ids": [true]}',
    '{"token_ids": [[1, 2]]}',
    '{"token_ids": [1], "prompt_ids": [1, [2]]}',
    '{"token_ids": [1], "prompt_ids": null}',
    '{"token_ids": [99999999999]}',
    '{"token_ids": [' + "9" * 5000 + "]}",
    '{"token_ids": [260]}',
    '{"token_ids": [-1]}',
    '{"token_ids": [1], "prompt_ids": [260]}',
    '{"messages": []}',
    '{"messages": null}',
    '{"messages": ["hi", "ho"]}',
    '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant"}]}',
    '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": [1]}]}',
    '{"messages": [{"role": "user", "content": "hi"}]}',
    '{"messages": [{"role": "user", "content": "hi"}, {"role": "user", "content": "ho"}]}',
    '{"token_ids": [1], "group": "\\ud800"}',
    '{"messages": [{"role": "bad", "content": "hi"}, {"role": "assistant", "content": "ho"}]}',
    "[" * 100_000,
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong[:60])
def test_rows_of_a_wrong_form_are_refused_with_their_line(wrong, target, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"token_ids": [1]}\n\n' + wrong + "\n")
    with pytest.raises(DataError, match=r"rows\.jsonl, line 3") as error:
        list(read_texts(path, target))
    assert "\n" not in str(error.value)


def test_texts_without_a_prompt_and_of_no_tokens_are_read(rows, target, tmp_path):
    rows({"token_ids": [1, 2, 3]}, {"prompt": "", "completion": "abc"}, {"prompt_ids": [], "token_ids": []})
    drafter = open_suffix("", Target(target.model, target.tokenizer, (tmp_path / "rows.jsonl",)))
    found = drafter.propose([Text(0, np.array([1, 2], np.int32), 1, Request([1]))], np.array([1]))
    assert found[0].tolist() == [3]


def test_what_lies_behind_other_drafters_is_kept(tmp_path, target):
    from regear.engine.drafters.table import open_drafter

    for words in ("suffix", "ngram+suffix"):
        drafter = open_drafter(words, target)
        assert isinstance(suffix_of(drafter), SuffixDrafter)
        keep(drafter, tmp_path / words)
        assert SuffixDrafter.load(tmp_path / words).index.tokens == 0
    assert suffix_of(open_drafter("ngram", target)) is None


def test_an_index_of_another_vocabulary_is_refused(tmp_path, target):
    path = tmp_path / "index"
    keep(open_suffix("", target), path)
    assert open_suffix("", replace(target, history=(path,)))
    other = copy(target.tokenizer)
    other.get_vocab = lambda: {"other": 0}
    with pytest.raises(DataError, match="another vocabulary"):
        open_suffix("", replace(target, tokenizer=other, history=(path,)))
    SuffixDrafter().save(path)  # of ids alone
    assert open_suffix("", replace(target, tokenizer=other, history=(path,)))


def call(capsys, *words):
    code = run(["generate", *map(str, words), "--max-tokens", "8", "--json"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def asked(tiny):
    return tiny("llama"), "the quick brown fox", "--draft", "suffix"


def test_an_answer_that_was_saved_is_guessed(asked, tmp_path, capsys):
    code, plain, _ = call(capsys, *asked[:2])
    assert code == 0
    answer, prompt = json.loads(plain)["token_ids"], load_tokenizer(asked[0])(asked[1])["input_ids"]
    paths = [tmp_path / name for name in ("rows", "first", "second")]
    paths[0].write_text(json.dumps({"prompt_ids": prompt[1:], "token_ids": answer}))
    for before, after in ((None, paths[1]), (paths[1], paths[2]), (paths[0], paths[1])):
        code, found, _ = call(capsys, *asked, *(["--history", before] if before else []), "--save-history", after)
        assert code == 0
        assert json.loads(found)["token_ids"] == answer
        drafter = SuffixDrafter.load(after)
        text = Text(0, np.array(prompt, np.int32), len(prompt), Request(prompt))
        assert drafter.propose([text], np.array([8]))[0].tolist() == answer


def refused(capsys, *words, wanted):
    code, out, err = call(capsys, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("regear: ")
    assert wanted in err
    assert "internal" not in err


def test_histories_that_cannot_be_read(asked, tmp_path, capsys):
    path, good = tmp_path / "history", tmp_path / "good"
    SuffixDrafter().save(good)
    body = good.read_bytes()
    refused(capsys, *asked, "--history", path, wanted="no file")
    refused(capsys, *asked, "--history", tmp_path, wanted="no file")
    refused(capsys, *asked[:2], "--history", good, wanted="--draft none reads and keeps no history")
    refused(capsys, *asked[:2], "--draft", "ngram", "--save-history", good, wanted="wanted --draft suffix")
    refused(capsys, *asked, "--history", good, "--history", good, wanted="found 2 saved indexes")
    refused(capsys, *asked[:2], "--draft", "suffix:x", wanted="wanted suffix alone")
    for damaged, wanted in (
        (body[:-3], "no suffix index that can be read"),
        (body[:-20] + b"!" + body[-19:], "no suffix index that can be read"),
        (MAGIC, "no suffix index that can be read"),
        (b'{"token_ids": [1]}\n{"words": 3}\n', "line 2"),
        (b"\xff\xfe\x00", "cannot read"),
        (b"PK\x03\x04 something", "line 1"),
    ):
        path.write_bytes(damaged)
        refused(capsys, *asked, "--history", path, wanted=wanted)
        assert path.read_bytes() == damaged
    assert good.read_bytes() == body


def test_places_that_cannot_be_written(asked, tmp_path, capsys):
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    for place in (tmp_path / "file" / "index", tmp_path / "folder"):
        refused(capsys, *asked, "--save-history", place, wanted="cannot write")
    assert (tmp_path / "file").read_text() == "a file"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "inner"]


def test_places_are_checked_before_anything_is_written(asked, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("regear.engine.text.load_as", None)  # no weight may be read
    refused(capsys, *asked, "--save-history", tmp_path, wanted="cannot write")
    assert not can_write(tmp_path)
    assert can_write(tmp_path / "new" / "index")
    assert not list(tmp_path.iterdir())


def test_a_run_that_was_cut_off_saves_what_both_parts_wrote(asked, tmp_path, capsys, monkeypatch):
    prompts, out, saved = (tmp_path / name for name in ("prompts.jsonl", "rows.jsonl", "index"))
    questions = ["the quick brown", "over the lazy dog", "a box of five jugs"]
    prompts.write_text("".join(json.dumps({"prompt": one}) + "\n" for one in questions))
    words = ["--draft", "suffix", "--prompts", prompts, "-o", out, "--save-history", saved]

    def tokens():
        return SuffixDrafter.load(saved).index.tokens

    assert call(capsys, asked[0], *words)[0] == 0
    whole = tokens()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 3
    real = rows_module._publish
    for written in (1, 3):  # cut off after one row, and after all of them
        out.unlink()
        saved.unlink()

        def cut(partial, place, written=written):
            lines = partial.read_text().splitlines(keepends=True)
            partial.write_text("".join(lines[:written]))
            raise DataError("cut off")

        with monkeypatch.context() as once:
            once.setattr(rows_module, "_publish", cut)
            assert call(capsys, asked[0], *words)[0] == 2
        saved.unlink()
        assert rows_module._publish is real
        assert call(capsys, asked[0], *words)[0] == 0
        assert [json.loads(line) for line in out.read_text().splitlines()] == rows
        assert tokens() >= 0.9 * whole  # not equal: a text may be other tokens than the answer that it is of


def test_a_history_that_could_not_be_replaced_stays(asked, tmp_path, capsys, monkeypatch):
    path = tmp_path / "index"
    assert call(capsys, *asked, "--save-history", path)[0] == 0
    before = path.read_bytes()

    def full(*words):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    refused(capsys, *asked, "--history", path, "--save-history", path, wanted="no room to write")
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["index"]
