"""The small model guesses with the engine's noise, whatever has happened to its rows."""

from dataclasses import replace

import numpy as np
import pytest

from regear.engine.drafters import model as module
from regear.engine.drafters.model import ModelDrafter
from regear.engine.local import LocalEngine
from regear.engine.types import Request


def test_the_model_itself_guesses_everything_right(model, requests, plain):
    """Its guesses are the engine's own draws, so every pass brings as many tokens as it can."""
    for draft in (1, 3):
        engine = LocalEngine(model, drafter=ModelDrafter(model, 260), draft=draft)
        for tokens, found in zip(plain, engine.generate(requests), strict=True):
            assert found.token_ids == tokens
            passes = 1 + -(-(len(tokens) - 1) // (draft + 1))
            assert found.acceptance_length == pytest.approx(len(tokens) / passes)


def test_coupling_beats_independent_noise(model, small):
    requests = [Request([i, i + 1], 24, temperature=1.0, seed=i) for i in range(12)]

    class Apart(ModelDrafter):
        def propose(self, texts, most):
            texts = [replace(text, request=replace(text.request, seed=text.request.seed + 99)) for text in texts]
            return super().propose(texts, most)

    lengths = [
        np.mean([found.acceptance_length for found in LocalEngine(model, drafter=drafter).generate(requests)])
        for drafter in (ModelDrafter(small, 260), Apart(small, 260))
    ]
    assert lengths[0] > 1.3 * lengths[1]


@pytest.mark.parametrize("tokens", [64, 130, 200, 700])
def test_little_memory_costs_guesses_only(tokens, model, small, requests, plain):
    drafter = ModelDrafter(small, 260, cache_bytes=tokens * 3 * 2 * 2 * 12 * 8)
    assert [found.token_ids for found in LocalEngine(model, drafter=drafter).generate(requests)] == plain
    assert drafter.seats.tokens.size <= tokens
    assert not drafter.seats.numbers


def test_long_prompts_are_read_a_while_at_a_time(model, monkeypatch):
    monkeypatch.setattr(module, "PIECE", 16)
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    drafter = ModelDrafter(model, 260)
    (found,) = LocalEngine(model, drafter=drafter).generate([Request(list(range(50)), 6)])
    assert found.acceptance_length == 1  # it never got to guess
    monkeypatch.setattr(module, "PATIENCE", 60.0)
    (found,) = LocalEngine(model, drafter=drafter).generate([Request(list(range(50)), 6)])
    assert found.acceptance_length == 3
