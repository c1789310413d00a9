"""Rows of every format read the same, from any place, and a wrong one is named by file and row."""

import json

import pytest

from regear.core.errors import DataError
from regear.train.examples import Examples
from regear.train.rows import open_sources
from regear.train.stream import Stream
from tests.tiny import byte_tokenizer

TOKENIZER = byte_tokenizer()
ROWS = [{"text": f"row {i} " + "x" * (i % 5)} for i in range(600)]


@pytest.fixture(params=["jsonl", "parquet"])
def table(request, tmp_path):
    path = tmp_path / f"rows.{request.param}"
    if request.param == "jsonl":
        path.write_text("\n".join(json.dumps(row) + "\n" * (i % 3 == 0) for i, row in enumerate(ROWS)))
    else:
        pytest.importorskip("pyarrow")
        from pyarrow import Table
        from pyarrow.parquet import write_table

        write_table(Table.from_pylist(ROWS), path, row_group_size=270)
    return path


def test_rows_are_read_from_any_place_and_picked(table):
    (source,) = open_sources([table])
    rows = list(source.rows())
    assert [row for _, row in rows] == ROWS
    for start in (1, 269, 270, 599):
        assert list(source.rows(rows[start][0])) == rows[start:]
    chosen = [rows[i] for i in (599, 3, 270, 256)]
    assert source.pick([position for position, _ in chosen]) == dict(chosen)


def test_formats_train_alike(table, tmp_path):
    plain = tmp_path / "same.jsonl"
    plain.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    one, two = (Stream([path], TOKENIZER, sequence=32, batch=4, buffer=7) for path in (table, plain))
    for _ in range(5):
        assert next(one).tokens_BL.tolist() == next(two).tokens_BL.tolist()


def test_a_parquet_row_is_named(tmp_path):
    pytest.importorskip("pyarrow")
    from pyarrow import Table
    from pyarrow.parquet import write_table

    write_table(Table.from_pylist([{"text": "a b"}, {"text": None}]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet, row 2: found the columns text, wanted text, or"):
        next(Stream([tmp_path / "a.parquet"], TOKENIZER, sequence=8, batch=1))
    (tmp_path / "b.parquet").write_text("not parquet")
    with pytest.raises(DataError, match=r"b\.parquet: not a readable parquet file"):
        open_sources([tmp_path / "b.parquet"])


WRONG = {
    b"[1]": "found list, wanted a JSON object",
    b"{": "not JSON",
    b'{"text": "\xff"}': "not UTF-8",
    b'{"text": ""}': "text is empty",
    b'{"text": "  "}': "text is empty",
    b"{}": "found the columns none, wanted text, or messages",
    b'{"txt": "a"}': "found the columns txt, wanted text, or messages",
    b'{"text": 3}': "text is int, wanted a string",
    b'{"text": "\\ud800"}': "surrogates not allowed",
    b'{"text": "a", "messages": []}': "not several of these",
    b'{"prompt": "a", "completion": "b"}': "began with text; split the file",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_row_is_named_by_file_and_line(line, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "good text"}\n\n' + line + b"\n")
    with pytest.raises(DataError, match=WRONG[line]) as caught:
        next(Stream([path], TOKENIZER, sequence=8, batch=9))
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty"), (b"\n\n", "has no rows"), (None, "no training file")], ids=str
)
def test_a_file_without_rows_is_refused_at_once(content, message, tmp_path):
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        Stream([path], TOKENIZER, sequence=8, batch=1)


def test_an_objective_refuses_the_other_kind_of_rows(tmp_path):
    pair, text = tmp_path / "pair.jsonl", tmp_path / "text.jsonl"
    pair.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}))
    text.write_text(json.dumps({"text": "a"}))
    with pytest.raises(DataError, match="line 1: found columns of the layout preference, wanted text"):
        Stream([pair], TOKENIZER, sequence=8, batch=2)
    with pytest.raises(DataError, match="line 1: found columns of the layout text, wanted chosen and rejected"):
        Stream([text], TOKENIZER, sequence=8, batch=2, pairs=True)


def test_extra_columns_are_passed_over():
    (example,) = Examples(TOKENIZER, 8).of({"text": "ab", "id": 3, "prompt": None}, "text")
    assert list(example.ids) == [*TOKENIZER("ab")["input_ids"], 256]


def test_suffixes_are_read_in_any_case(tmp_path):
    path = tmp_path / "ROWS.JSONL"
    path.write_text(json.dumps({"text": "a b"}) + "\n")
    (source,) = open_sources([path])
    assert [row for _, row in source.rows()] == [{"text": "a b"}]


@pytest.mark.parametrize("suffix", [".json", ".csv", ".CSV", ".jsonl.gz", ".parquet.zst", ".zip"])
def test_what_is_not_text_is_never_trained_on_as_if_it_were(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    path.write_text('{"text": "a b"}')
    with pytest.raises(DataError, match=r"files are not read; give JSONL, parquet or plain text"):
        open_sources([path])
