"""Texts with attributes become windows that keep them."""

import json

import pytest

from regear.core.errors import DataError
from regear.tasks.passages import read_passages, script_of


def rows(path, *entries):
    path.write_text("\n".join(json.dumps(entry) for entry in entries))
    return path


def test_rows_of_the_same_attributes_are_one_text(tmp_path):
    path = rows(
        tmp_path / "t.jsonl",
        {"text": "a" * 1500, "language": "en", "weight": 2},
        {"text": "б" * 50, "language": "ru"},
        {"text": "c" * 1500, "language": "en"},
    )
    found = read_passages([path])
    assert [(p.id, p.cluster, p.window.bytes) for p in found] == [
        ("t.jsonl/0/0", "t.jsonl/0/0", 2048),
        ("t.jsonl/0/1", "t.jsonl/0/1", 3002 - 2048),
        ("t.jsonl/1/0", "t.jsonl/1/0", 100),
    ]
    assert found[2].attributes == {"script": "cyrillic", "file": "t.jsonl", "language": "ru"}


def test_a_row_with_an_id_stands_alone(tmp_path):
    path = rows(
        tmp_path / "t.jsonl",
        {"id": "x", "text": "ab", "dialect": "north"},
        {"id": "y", "cluster": "k", "text": "b" * 3000, "dialect": "north"},
    )
    found = read_passages([path])
    assert [(p.id, p.cluster) for p in found] == [("x", "x"), ("y/0", "k"), ("y/1", "k")]
    assert all(p.attributes["dialect"] == "north" for p in found)


def test_plain_files_are_known_by_name(tmp_path):
    for name in ("one.txt", "two.txt"):
        (tmp_path / name).write_text("word " * 450)
    found = read_passages([tmp_path / "one.txt", tmp_path / "two.txt"])
    assert [p.attributes["file"] for p in found] == ["one.txt"] * 2 + ["two.txt"] * 2
    assert len({p.cluster for p in found}) == 4


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([{"language": "en"}], "line 1"),
        ([{"text": " "}], "line 1"),
        ([{"text": "a", "tags": ["x"]}], "single values"),
        ([{"text": "a", "id": "1"}, {"text": "b", "id": "1"}], "stands above already"),
    ],
)
def test_mistakes_are_named(entries, problem, tmp_path):
    with pytest.raises(DataError, match=problem):
        read_passages([rows(tmp_path / "t.jsonl", *entries)])


def test_the_same_id_in_two_files(tmp_path):
    files = [rows(tmp_path / name, {"text": "some text", "id": "1"}) for name in ("a.jsonl", "b.jsonl")]
    with pytest.raises(DataError, match="more than once in the texts: 1"):
        read_passages(files)


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Straße 12", "latin"),
        ("हाँ जी, API", "devanagari"),
        ("日本語の文字", "kana"),
        ("中文", "cjk"),
        ("한국어", "hangul"),
        ("123 …", "none"),
        ("שלום", "hebrew"),
    ],
)
def test_scripts(text, script):
    assert script_of(text) == script
