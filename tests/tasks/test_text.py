"""Windows are fixed by the text alone; the built-in splits share no passage."""

import importlib.resources
import itertools

import hypothesis.strategies as st
import pytest
import yaml
from hypothesis import given, settings

from regear.core.errors import DataError
from regear.tasks.text import (
    WINDOW_BYTES,
    Document,
    Window,
    builtin_documents,
    cut,
    digest_of,
    read_documents,
    spread,
    take_tokens,
    tokenise,
    windows_of,
)
from regear.train.overlap import shared_windows
from tests.tiny import byte_tokenizer


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet="aé漢🙂\n", max_size=300), st.integers(8, 40))
def test_windows_are_whole_characters_in_order(text, size):
    windows = cut(Document(text, "k"), size)
    joined = "".join(w.text for w in windows)
    assert text.startswith(joined)
    assert all(size - 3 <= w.bytes <= size for w in windows)
    assert len(text.encode()) - len(joined.encode()) < size


def test_spread_draws_evenly_and_keeps_all_when_few():
    windows = [Window(str(i), "k") for i in range(10)]
    assert [w.text for w in spread(windows, 3)] == ["1", "5", "8"]
    assert spread(windows, 20) == windows
    assert len({w.text for w in spread(windows, 7)}) == 7


def test_take_tokens_comes_close():
    windows = windows_of([Document("word " * 5000, "k")])
    _, ids = take_tokens(windows, byte_tokenizer(), 4 * WINDOW_BYTES)
    assert sum(map(len, ids)) == 4 * WINDOW_BYTES


def test_rows_with_weights(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "weight": 2}\n\n{"text": "b"}\n')
    assert [(d.text, d.weight) for d in read_documents([path], "calibration")] == [("a", 2.0), ("b", 1.0)]


@pytest.mark.parametrize(
    "row", ['{"txt": "a"}', "[]", "{", '{"text": 3}', '{"text": "a", "weight": -1}', '{"text": "a", "weight": "x"}']
)
def test_bad_rows_name_their_line(row, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n' + row + "\n")
    with pytest.raises(DataError, match="line 2") as caught:
        read_documents([path], "calibration")
    assert "\n" not in str(caught.value)


def test_a_directory_is_not_a_text(tmp_path):
    with pytest.raises(DataError, match="is a directory"):
        read_documents([tmp_path], "calibration")


def test_digest_follows_text_and_weight():
    a, b = Window("a", "k"), Window("b", "k")
    assert digest_of([a, b]) != digest_of([b, a])
    assert digest_of([a]) != digest_of([Window("a", "k", 2.0)])
    assert digest_of([a]) == digest_of([Window("a", "other")])


def test_builtin_splits_are_disjoint_and_large_enough():
    """Reads the real texts: the running Python's own, and packages fetched once into the cache."""
    splits = ("calibration", "selection", "evaluation", "training", "unseen")
    windows = {split: windows_of(read_documents(["builtin"], split)) for split in splits}
    assert len(windows["evaluation"]) >= 64
    assert len(windows["training"]) * WINDOW_BYTES > 6_500_000
    assert 60_000 < len(windows["unseen"]) * WINDOW_BYTES < 100_000
    for kind in ("essay", "manual", "code"):
        assert all(any(w.kind == kind for w in found) for use, found in windows.items() if use != "unseen")
    assert {w.kind for w in windows["unseen"]} == {"play"}
    lines = {
        split: {line.strip() for w in found for line in w.text.splitlines() if len(line.strip()) > 60}
        for split, found in windows.items()
    }
    # Boilerplate (a licence line, say) may recur; passages may not. Calibration and training are both fitting.
    for a, b in set(itertools.combinations(splits, 2)) - {("calibration", "training")}:
        assert len(lines[a] & lines[b]) <= 3, (a, b, sorted(lines[a] & lines[b]))


def test_no_built_in_document_serves_training_and_judging():
    table = yaml.safe_load(importlib.resources.files("regear.tasks").joinpath("texts.yaml").read_text())
    documents = {split: [d for entry in entries for d in named(entry)] for split, entries in table["splits"].items()}
    for judge in ("selection", "evaluation", "unseen"):
        assert not set(documents["training"]) & set(documents[judge])
    assert len(documents["training"]) == len(set(documents["training"]))


def named(entry):
    """The documents of an entry, by source and path."""
    paths = entry.get("paths", [entry["path"]] if "path" in entry else [])
    return [(entry["source"], f"{entry.get('folder', '')}/{path}".lstrip("/")) for path in paths]


def test_no_built_in_text_that_judges_repeats_a_passage_of_training():
    training = [document.text for document in builtin_documents("training")]
    for judge in ("selection", "evaluation", "unseen"):
        assert shared_windows(training, windows_of(builtin_documents(judge))) == 0


def test_calibration_reads_some_windows_as_chat_and_all_with_what_the_tokenizer_adds():
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    windows = [Window(letter * 3, "k") for letter in "abcd"]
    plain = tokenise(windows, tokenizer, chat=0.5)
    assert [tokenizer.decode(row) for row in plain] == ["aaa", "bbb", "ccc", "ddd"]  # no template, no chat
    tokenizer.chat_template = "{% for m in messages %}<{{ m.content }}>{% endfor %}"
    assert [tokenizer.decode(row) for row in tokenise(windows, tokenizer, chat=0.5)] == ["aaa", "<bbb>", "ccc", "<ddd>"]
    assert [tokenizer.decode(row) for row in tokenise(windows, tokenizer)] == ["aaa", "bbb", "ccc", "ddd"]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<end> $A", special_tokens=[("<end>", 256)])
    assert all(row[0] == 256 for row in tokenise(windows, tokenizer))
