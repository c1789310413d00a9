"""A stopped stream goes on with the same batches; processes share what one would read."""

import json

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from regear.core.errors import DataError
from regear.train.stream import Stream
from tests.tiny import byte_tokenizer, make_text

TOKENIZER = byte_tokenizer()
SIZES = dict(sequence=16, batch=2, buffer=5)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    (place / "a.txt").write_text(make_text(150, seed=1))
    rows = [{"text": make_text(3 + 7 * i % 40, seed=i)} for i in range(9)]
    asked = [{"prompt": f"{i}?", "completion": "yes " * (i % 4 + 1)} for i in range(8)]
    return [place / "a.txt", write_rows(place / "b.jsonl", rows), write_rows(place / "c.jsonl", asked)]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    rows = [{"prompt": f"{i}?", "chosen": "good" * (i % 3 + 1), "rejected": f"bad {i}"} for i in range(7)]
    return [write_rows(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", rows)]


def take(stream, steps):
    return [next(stream) for _ in range(steps)]


def same(one, two):
    return all(
        torch.equal(getattr(a, name), getattr(b, name))
        for a, b in zip(one, two, strict=True)
        for name in ("tokens_BL", "positions_BL", "predict_BL")
    )


@settings(max_examples=40, deadline=None)
@given(stop=st.integers(0, 60), seed=st.integers(0, 3), buffer=st.integers(1, 30), packing=st.booleans())
def test_after_a_stop_the_batches_are_those_of_an_uninterrupted_stream(files, stop, seed, buffer, packing):
    def new():
        return Stream(files, TOKENIZER, sequence=16, batch=2, seed=seed, buffer=buffer, packing=packing)

    whole = new()
    take(whole, stop)
    state = json.loads(json.dumps(whole.state()))
    resumed = new()
    resumed.restore(state)
    assert same(take(whole, 12), take(resumed, 12))
    assert whole.state() == resumed.state()


@settings(max_examples=15, deadline=None)
@given(stop=st.integers(0, 20), buffer=st.integers(1, 9))
def test_pairs_resume_and_stay_together(pairs, stop, buffer):
    def new():
        return Stream(pairs, TOKENIZER, sequence=16, batch=4, buffer=buffer, pairs=True)

    whole, resumed = new(), new()
    take(whole, stop)
    resumed.restore(json.loads(json.dumps(whole.state())))
    batches = take(whole, 5)
    assert same(batches, take(resumed, 5))
    for batch in batches:
        texts = [TOKENIZER.decode(row) for row in batch.tokens_BL]
        for chosen, rejected in zip(texts[::2], texts[1::2], strict=True):
            assert "good" in chosen
            assert "bad" in rejected
            assert chosen[:2] == rejected[:2]


def test_two_processes_read_what_one_of_twice_the_batch_reads_and_resume_on_one(files):
    one = Stream(files, TOKENIZER, sequence=16, batch=4, buffer=5)
    two = [Stream(files, TOKENIZER, **SIZES).shard(rank, 2) for rank in range(2)]
    for _ in range(20):
        whole, parts = next(one), [next(stream) for stream in two]
        assert torch.equal(whole.tokens_BL, torch.cat([part.tokens_BL for part in parts]))
        assert torch.equal(whole.predict_BL, torch.cat([part.predict_BL for part in parts]))
    resumed = Stream(files, TOKENIZER, sequence=16, batch=4, buffer=5)
    resumed.restore(two[1].state())
    assert same(take(one, 5), take(resumed, 5))


def test_an_epoch_reads_every_token_once_and_the_next_in_another_order(tmp_path):
    rows = [{"text": chr(65 + i) * 15} for i in range(20)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    stream = Stream([path], TOKENIZER, sequence=16, batch=20, buffer=8)
    first, second = ["".join(TOKENIZER.decode(r[:1]) for r in batch.tokens_BL) for batch in take(stream, 2)]
    assert sorted(first) == sorted(second) == [chr(65 + i) for i in range(20)]
    assert first != second
    assert first != "".join(sorted(first))


def test_only_the_buffer_is_held_and_only_its_rows_are_read_again(tmp_path, monkeypatch):
    path = write_rows(tmp_path / "a.jsonl", [{"text": f"{i:04} some words"} for i in range(2000)])
    stream = Stream([path], TOKENIZER, sequence=16, batch=2, buffer=10)
    take(stream, 300)
    assert len(stream.buffer) < 10
    assert len(stream.packer.open) + len(stream.packer.ready) < 10
    state = stream.state()
    assert len(json.dumps(state)) < 2000
    resumed = Stream([path], TOKENIZER, sequence=16, batch=2, buffer=10)
    made = []
    tokens = resumed.examples.of
    monkeypatch.setattr(resumed.examples, "of", lambda row, layout: made.append(row) or tokens(row, layout))
    resumed.restore(state)
    next(resumed)
    assert len(made) < 30


def test_a_state_of_other_data_is_refused(files):
    stream = Stream(files, TOKENIZER, **SIZES)
    with pytest.raises(DataError, match="files, seed differ"):
        Stream(files[:2], TOKENIZER, **SIZES, seed=4).restore(stream.state())
