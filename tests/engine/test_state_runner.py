"""Models whose layers keep a window or a state: as with stock generate, alone as in a batch, with guesses as without."""

import copy

import numpy as np
import pytest
import torch

from regear.core.errors import IncompatibleModel, RecipeError
from regear.engine.drafters.ngram import NgramDrafter
from regear.engine.local import Limits, LocalEngine
from regear.engine.own_runner import OwnCacheRunner
from regear.engine.runners import runner_for
from regear.engine.types import Request
from tests.engine.windows import FAMILIES, VOCABULARY, model

PROMPTS = [[1 + (7 * i + 3 * n) % (VOCABULARY - 1) for i in range(n)] for n in (5, 19, 1, 12)]


class Adversary:
    """Guesses what the model will say for some tokens, and then something else; sometimes nothing."""

    def __init__(self, answers):
        self.answers, self.calls = answers, 0

    def propose(self, texts, most):
        self.calls += 1
        found = []
        for text, room in zip(texts, most, strict=True):
            written = len(text.tokens) - text.prompt
            right = (self.calls + text.number) % 5
            guess = np.array(self.answers[text.number][written : written + int(room)], np.int32)
            guess[right:] = (guess[right:] + 1) % VOCABULARY
            found.append(guess if (self.calls + text.number) % 7 else guess[:0])
        return found

    def observe(self, outcomes):
        pass

    def finish(self, number, tokens, prompt, group):
        pass


def requests(temperature=0.0):
    """Of unequal length, prompt and answer, so that rows end in an order of their own."""
    return [
        Request(prompt, max_tokens=count, temperature=temperature, seed=seed)
        for seed, (prompt, count) in enumerate(zip(PROMPTS, (8, 4, 14, 10), strict=True))
    ]


def tokens(engine, asked):
    return [found.token_ids for found in engine.generate(asked)]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_stock_generate(family):
    answers = tokens(LocalEngine(model(family), limits=Limits(chunk=8)), requests())
    for request, found in zip(requests(), answers, strict=True):
        prompt = torch.tensor([list(request.prompt)])
        stock = model(family).generate(prompt, max_new_tokens=request.max_tokens, do_sample=False)
        assert found == stock[0, prompt.shape[1] :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_each_alone(family):
    engine = LocalEngine(model(family), limits=Limits(rows=3))
    asked = requests(1.0)
    assert tokens(engine, asked) == [tokens(engine, [request])[0] for request in asked]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_guesses_change_nothing(family, temperature):
    asked = requests(temperature)
    engine = LocalEngine(model(family))
    plain = tokens(engine, asked)
    engine = LocalEngine(model(family), drafter=Adversary(plain))
    found = engine.generate(asked)
    assert [completion.token_ids for completion in found] == plain
    assert max(completion.acceptance_length for completion in found) > 1.5


@pytest.mark.parametrize("family", ["mistral", "mamba2"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_guesses_from_the_text_change_nothing(family, temperature):
    asked = requests(temperature)
    plain = tokens(LocalEngine(model(family)), asked)
    assert tokens(LocalEngine(model(family), drafter=NgramDrafter(3, 1)), asked) == plain


@pytest.mark.parametrize("family", ["mistral", "mamba2", "granite-hybrid", "qwen3.5"])
def test_without_rolling_back_guesses_would_show(family, monkeypatch):
    asked = requests()
    plain = tokens(LocalEngine(model(family)), asked)
    runner = type(runner_for(model(family)))
    engine = LocalEngine(model(family), drafter=Adversary(plain))
    monkeypatch.setattr(runner, "keep", lambda self, first, kept: None)
    assert tokens(engine, asked) != plain


def test_hidden_state_outside_the_cache_is_refused():
    for type_ in (torch.float64, torch.bfloat16):
        with pytest.raises(IncompatibleModel, match="outside the cache"):
            LocalEngine(copy.deepcopy(model("recurrent-gemma")).to(type_))


@pytest.mark.parametrize(("family", "many"), [("mamba", False), ("mamba2", True), ("mistral", True)])
def test_a_state_that_many_tokens_would_lose_is_read_one_at_a_time(family, many):
    assert OwnCacheRunner(model(family)).continues is many


def test_a_state_costs_the_same_for_any_length():
    size = runner_for(model("mamba2")).bytes_per_row
    limits = Limits(cache_bytes=2 * size + 1000)
    engine = LocalEngine(model("mamba2"), limits=limits)
    asked = [Request([i + 1], max_tokens=300) for i in range(4)]
    for request in asked:
        engine.submit(request)
    engine.step()
    assert engine.table.count == 2
    with pytest.raises(RecipeError, match="raise the limit"):
        LocalEngine(model("mamba2"), limits=Limits(cache_bytes=size // 2)).submit(asked[0])
