"""One battery for every drafter of the table, alone and in turn."""

import numpy as np
import pytest

from regear.core.errors import IncompatibleModel, RecipeError
from regear.engine.drafters.base import Outcome, Target, Text
from regear.engine.drafters.combine import Cascade
from regear.engine.drafters.model import ModelDrafter
from regear.engine.drafters.ngram import NgramDrafter
from regear.engine.drafters.suffix import SuffixDrafter
from regear.engine.drafters.table import DRAFTERS, check_draft, open_drafter, parse
from regear.engine.local import Limits, LocalEngine
from regear.engine.types import Request
from regear.models.load import load_tokenizer
from tests.tiny import make_model

MAKERS = {
    "none": lambda small: None,
    "ngram": lambda small: NgramDrafter(),
    "model": lambda small: ModelDrafter(small, 260),
    "suffix": lambda small: SuffixDrafter(),
    "suffix+model": lambda small: Cascade([SuffixDrafter(), ModelDrafter(small, 260)]),
    "ngram+model": lambda small: Cascade([NgramDrafter(), ModelDrafter(small, 260)]),
}


def test_the_battery_covers_the_table():
    assert {row.name for row in DRAFTERS} <= MAKERS.keys()


def held(drafter):
    """Texts that a drafter still knows."""
    if isinstance(drafter, Cascade):
        return sum(held(part) for part in drafter.drafters) + len(drafter.source)
    if isinstance(drafter, ModelDrafter):
        return len(drafter.seats.numbers)
    return len(drafter.read if isinstance(drafter, SuffixDrafter) else drafter.places)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("draft", [1, 4])
def test_texts_stay_the_same_and_memory_is_freed(name, draft, model, small, requests, plain, capfd):
    drafter = MAKERS[name](small)
    engine = LocalEngine(model, drafter=drafter, draft=draft, limits=Limits(rows=7))
    found = engine.generate(requests)
    assert [one.token_ids for one in found] == plain
    assert not capfd.readouterr().err  # nothing was switched off
    assert drafter is None or held(drafter) == 0


@pytest.mark.parametrize("name", MAKERS)
def test_texts_that_are_put_back_and_cancelled_leave_nothing(name, model, small, requests, plain):
    drafter = MAKERS[name](small)
    engine = LocalEngine(model, drafter=drafter, limits=Limits(cache_bytes=4 * 128 * 3 * 2 * 2 * 12 * 8))
    numbers = [engine.submit(request) for request in requests]
    for _ in range(12):
        engine.step()
    for number in numbers[::2]:
        engine.cancel(number)
    while not all(number in engine.done for number in numbers):
        engine.step()
    assert [engine.done[number].token_ids for number in numbers[1::2]] == plain[1::2]
    assert drafter is None or held(drafter) == 0


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "none"])
def test_guesses_keep_to_what_was_asked(name, small):
    drafter, random = MAKERS[name](small), np.random.default_rng(0)
    texts = [
        Text(i, np.array(random.integers(0, 9, 3 + 9 * i), np.int32), 1, Request([1], temperature=i % 2))
        for i in range(5)
    ]
    for most in ([0, 1, 2, 3, 4], [0] * 5, [4] * 5):
        found = drafter.propose(texts, np.array(most))
        assert len(found) == 5
        assert all(len(guess) <= count and (guess < 260).all() for guess, count in zip(found, most, strict=True))
        drafter.observe([Outcome(text.number, len(g), 0, g[:1]) for text, g in zip(texts, found, strict=True)])
    assert any(len(guess) for guess in found)


def test_words_of_the_option():
    assert parse("none") == []
    assert [(row.name, argument) for row, argument in parse("ngram+model:/a+b/c:d")] == [
        ("ngram", ""), ("model", "/a+b/c:d"),
    ]  # fmt: skip
    for bad in ("gram", "none+ngram", "ngram+ngram", "", "ngram+gram"):
        with pytest.raises(RecipeError):
            parse(bad)
    with pytest.raises(RecipeError, match="did you mean 'ngram'"):
        parse("ngrm")
    with pytest.raises(RecipeError, match="wanted >= 1"):
        check_draft("ngram", 0)


def test_opening(model, tiny, tmp_path):
    target = Target(model, load_tokenizer(tiny("llama")))
    assert open_drafter("none", target) is None
    both = open_drafter(f"ngram+model:{tiny('qwen3')}", target).drafter
    assert [type(part) for part in both.drafters] == [NgramDrafter, ModelDrafter]
    for bad in ("model", "model:", "ngram:3"):
        with pytest.raises(RecipeError):
            open_drafter(bad, target)
    other = make_model("llama", tmp_path / "other", vocab_size=300)
    with pytest.raises(IncompatibleModel, match="300 tokens and the model 260"):
        open_drafter(f"model:{other}", Target(model))
    tokenizer = load_tokenizer(tiny("llama"))
    tokenizer.add_tokens(["new"])
    with pytest.raises(IncompatibleModel, match="differ in 1 entries"):
        open_drafter(f"model:{tiny('llama')}", Target(model, tokenizer))
