"""The engine on int8 weights: the same text with guesses and without, alone and in company, lean and not."""

import numpy as np
import pytest
import torch

import regear
from regear.core.errors import RecipeError
from regear.engine.drafters.ngram import NgramDrafter
from regear.engine.local import LocalEngine
from regear.engine.runner import AttentionRunner
from regear.engine.types import Request
from regear.models.load import load_model, load_tokenizer
from regear.models.precision import load_as
from regear.ops.int8 import Int8Linear
from tests.tiny import FAMILIES

PROMPTS = [[7, 8, 9] * 4, list(range(30)), [3], [5, 6] * 10]
REQUESTS = [Request(p, 16, temperature=t, seed=s) for s, p in enumerate(PROMPTS) for t in (0.0, 1.0)]


class Echo:
    """Guesses what another run wrote, every third token wrong."""

    def __init__(self, texts):
        self.texts = texts

    def propose(self, texts, most):
        found = []
        for text, room in zip(texts, most, strict=True):
            guess = np.array(self.texts[text.number][len(text.tokens) :][:room], np.int32)
            guess[2::3] ^= 1
            found.append(guess)
        return found

    def observe(self, outcomes):
        pass

    def finish(self, number, tokens, prompt, group):
        pass


def written(model, requests=REQUESTS, **options):
    return [done.token_ids for done in LocalEngine(model, **options).generate(requests)]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "olmo2", "qwen3-moe"])
def test_guesses_and_neighbours_change_nothing(family, tiny):
    model = load_as(tiny(family), dtype="int8")
    alone = [written(model, [request])[0] for request in REQUESTS]
    assert written(model) == alone
    assert written(model, drafter=NgramDrafter()) == alone
    whole = [list(request.prompt) + text for request, text in zip(REQUESTS, alone, strict=True)]
    assert written(model, drafter=Echo(whole)) == alone


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "qwen3-moe"])
def test_the_lean_decoder_is_proven_on_rounded_weights_too(family, tiny):
    runner = LocalEngine(load_as(tiny(family), dtype="int8")).runner
    assert isinstance(runner, AttentionRunner)
    assert runner.split
    assert runner.lean is not None
    assert isinstance(runner.lean.layers[0].qkv, Int8Linear)
    assert not runner.lean.layers[0].qkv.rounding.exact


def test_a_wrong_lean_decoder_is_found_out(tiny, monkeypatch):
    monkeypatch.setattr("regear.engine.lean.LeanDecoder._normed", lambda self, x, weight: x * weight)
    monkeypatch.setattr("regear.engine.compiled.CompiledDecoder._add_norm", lambda self, *rest: None)
    assert AttentionRunner(load_as(tiny("llama"), dtype="int8")).lean is None


def test_the_verb(tiny):
    plain = regear.generate(tiny("llama"), "the fox", max_tokens=4)
    few = regear.generate(tiny("llama"), "the fox", max_tokens=4, dtype="int8")
    assert (plain["dtype"], few["dtype"]) == (None, "int8")
    assert few["tokens"] == len(few["token_ids"]) <= 4
    with pytest.raises(RecipeError, match="unknown dtype"):
        regear.generate(tiny("llama"), "the fox", dtype="int7")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_writes_what_its_model_does(dtype, tiny):
    result = regear.generate(tiny("llama"), "the fox", raw=True, max_tokens=6, dtype=dtype)
    model = load_model(tiny("llama"), dtype=getattr(torch, dtype))
    ids = torch.tensor([load_tokenizer(tiny("llama"))("the fox")["input_ids"]])
    assert result["token_ids"][0] == int(model(ids).logits[0, -1].argmax())
