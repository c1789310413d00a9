"""The remote engine on vLLM's own server gives the local engine's greedy tokens, ends and log-probabilities."""

import math

import pytest

import regear
from regear.core.errors import RecipeError
from regear.engine.local import LocalEngine
from regear.engine.remote import RemoteEngine
from regear.engine.types import Request
from regear.models.load import load_model, load_tokenizer
from tests.engines.test_vllm import PROMPTS, TOKENS
from tests.engines.vllm_server import vllm_server
from tests.tiny import make_model

pytestmark = pytest.mark.engines


def test_a_real_server(tmp_path):
    """One server for all, since it takes a minute to start."""
    model = make_model("llama", tmp_path / "model", head_dim=32, hidden_size=64)  # a width vLLM has a kernel for
    local = LocalEngine(load_model(model), load_tokenizer(model))
    with vllm_server(model, "tiny", tmp_path / "log") as url:
        engine = RemoteEngine(url)
        assert (engine.model, engine.dialect) == ("tiny", "vllm")
        requests = [Request(prompt, TOKENS, logprobs=True) for prompt in PROMPTS]
        wanted = local.generate(requests)
        heard = [[] for _ in requests]
        for listener in (None, lambda place, new: heard[place].extend(new)):
            for found, own in zip(engine.generate(requests, listener), wanted, strict=True):
                assert (found.token_ids, found.finish_reason) == (own.token_ids, "length")
                assert found.logprobs == pytest.approx(own.logprobs, abs=1e-3)
                assert math.isnan(found.acceptance_length)
        assert heard == [own.token_ids for own in wanted]
        ends(engine, local, wanted[0].token_ids)
        samples(engine)
        with pytest.raises(RecipeError, match="serves no model 'other'; it serves tiny"):
            RemoteEngine(url, "other")
        with pytest.raises(RecipeError, match=r"refused the request \(400\)"):
            engine.generate([Request([1] * 300, 4)])
        found = regear.generate(url, "the fox", raw=True, max_tokens=6)
        assert found["token_ids"] == regear.generate(model, "the fox", raw=True, max_tokens=6)["token_ids"]


def ends(engine, local, tokens):
    """At a stop token, at a stop string, and not at the model's own end token where none is asked for."""
    stop = Request(PROMPTS[0], TOKENS, stop_tokens=(tokens[5],))
    penalised = Request(PROMPTS[0], TOKENS, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.2)
    string = Request(PROMPTS[0], TOKENS, stop=[local.tokenizer.decode(tokens[3:5])])
    for request in (stop, penalised, string):
        (found,), (own,) = engine.generate([request]), local.generate([request])
        assert (found.token_ids, found.finish_reason) == (own.token_ids, own.finish_reason)


def samples(engine):
    """Seeds repeat and differ; vLLM's noise is its own, so the tokens are not the local engine's."""
    asked = [Request([1, 2], 12, temperature=1.0, seed=seed, top_k=50, min_p=0.01) for seed in (1, 1, (1 << 64) - 2)]
    one, same, other = (done.token_ids for done in engine.generate(asked))
    assert one == same != other
