"""Planted facts: where they lie, what is asked, how long the prompt is; all from the seed."""

import re

import pytest

from regear.core.errors import DataError
from regear.tasks.needle import DEPTHS, OPTIONS, needles, sentences_of
from regear.tasks.text import Document
from tests.tiny import byte_tokenizer, make_text

DOCUMENTS = [Document(make_text(20_000), "k")]
FACT = re.compile(r"The secret number of (\w+) is (\d{5})\.")


@pytest.mark.parametrize("length", [256, 1000, 4096])
def test_the_answer_stands_in_the_text_at_its_depth(length):
    tokenizer = byte_tokenizer()
    for item in needles(DOCUMENTS, tokenizer, length, items=10):
        text = tokenizer.decode(item.prompt)
        facts = dict(FACT.findall(text))
        asked = re.search(r"\n\nThe secret number of (\w+) is$", text)[1]
        options = [tokenizer.decode(option).strip() for option in item.options]
        assert len(facts) == OPTIONS
        assert set(facts.values()) == set(options)
        assert facts[asked] == options[item.answer]
        whole = length - len(item.options[0])
        assert len(item.prompt) <= whole
        if length >= 1000:
            assert len(item.prompt) > whole - 400
            place = text.index(f"The secret number of {asked} is") / len(text)
            assert abs(place - item.depth) < 0.35 if length == 1000 else abs(place - item.depth) < 0.1


def test_items_follow_from_the_seed_and_vary():
    tokenizer = byte_tokenizer()
    items = needles(DOCUMENTS, tokenizer, 512, items=10, seed=3)
    assert items == needles(DOCUMENTS, tokenizer, 512, items=10, seed=3)
    assert items[:5] == needles(DOCUMENTS, tokenizer, 512, items=5, seed=3)
    assert items != needles(DOCUMENTS, tokenizer, 512, items=10, seed=4)
    assert {item.depth for item in items} == set(DEPTHS)
    assert len({item.answer for item in needles(DOCUMENTS, tokenizer, 512, items=40)}) == OPTIONS


def test_too_little_room_or_text_is_said():
    tokenizer = byte_tokenizer()
    with pytest.raises(DataError, match="longer context"):
        needles(DOCUMENTS, tokenizer, 100, items=1)
    with pytest.raises(DataError, match="more text"):
        needles([Document("One. Two.", "k")], tokenizer, 512, items=1)


def test_sentences_keep_all_words_in_order():
    text = "One two. Three!  Four\n\nfive? Six"
    assert sentences_of([Document(text, "k")]) == ["One two.", "Three!", "Four", "five?", "Six"]
