"""The local engine: greedy equals stock generate, seeds repeat, limits hold, bad parameters are refused."""

import pytest
import torch

import regear
from regear.core.errors import RecipeError
from regear.engine.local import Limits, LocalEngine
from regear.engine.text import encode_prompt, stop_tokens
from regear.engine.types import Request
from regear.models.load import load_model, load_tokenizer


def test_greedy_equals_stock_generate(tiny):
    model = load_model(tiny("llama"))
    ids = [1, 2, 3, 4]
    (found,) = LocalEngine(model).generate([Request(ids, max_tokens=6)])
    stock = model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert found.token_ids == stock[0, 4:].tolist()
    assert found.finish_reason == "length"


def test_seeds_repeat_and_differ(tiny):
    engine = LocalEngine(load_model(tiny("llama")))
    runs = [engine.generate([Request([1, 2], 12, temperature=1.0, seed=s)])[0].token_ids for s in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_samples_of_one_prompt_begin_when_it_has_been_read(tiny):
    model = load_model(tiny("llama"))
    asked = [Request(range(20), 4, temperature=1.0, seed=seed) for seed in range(5)]
    alone = [LocalEngine(model).generate([request])[0].token_ids for request in asked]
    assert [found.token_ids for found in LocalEngine(model).generate(asked)] == alone


def test_stopping(tiny):
    model = load_model(tiny("llama"))
    first = LocalEngine(model).generate([Request([5, 6], 8)])[0].token_ids
    (stopped,) = LocalEngine(model).generate([Request([5, 6], 8, stop_tokens=(first[2],))])
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids == first[: first.index(first[2]) + 1]
    assert stop_tokens(model) == (256,)


def test_prompts_use_the_chat_template_unless_raw(tiny):
    tokenizer = load_tokenizer(tiny("llama"))
    assert encode_prompt(tokenizer, "hi", raw=False) == encode_prompt(tokenizer, "hi", raw=True)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    assert tokenizer.decode(encode_prompt(tokenizer, "hi", raw=False)) == "[hi]"
    assert tokenizer.decode(encode_prompt(tokenizer, "hi", raw=True)) == "hi"


def test_the_verb(tiny):
    result = regear.generate(tiny("llama"), "the fox", max_tokens=5)
    assert result["tokens"] == len(result["token_ids"]) <= 5
    assert result["acceptance_length"] == 1.0
    assert result["tokens_per_second"] > 0


def test_the_verb_with_a_drafter(tiny):
    words = {"max_tokens": 24, "temperature": 0.8, "seed": 3}
    alone = regear.generate(tiny("llama"), "the fox", **words)
    found = regear.generate(tiny("llama"), "the fox", **words, draft=f"ngram+model:{tiny('llama')}", draft_tokens=3)
    assert found["text"] == alone["text"]
    assert found["acceptance_length"] > alone["acceptance_length"] == 1.0


@pytest.mark.parametrize(
    "bad", [{"max_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"prompt": ""}, {"draft": "x"}, {"draft_tokens": 0}]
)
def test_bad_parameters(bad, tiny):
    with pytest.raises(RecipeError):
        regear.generate(tiny("llama"), bad.pop("prompt", "x"), **bad)


@pytest.mark.parametrize("chunk", [3, 512])
def test_given_tokens_are_scored_as_the_model_scores_them(chunk, tiny):
    model = load_model(tiny("qwen3"))
    texts = [list(range(5, 30)), [7], [9, 9, 9]]
    found = LocalEngine(model, limits=Limits(chunk=chunk)).score(texts)
    for text, mine in zip(texts, found, strict=True):
        logs = model(torch.tensor([text])).logits[0].log_softmax(-1)
        wanted = [logs[place, token].item() for place, token in enumerate(text[1:])]
        assert mine == pytest.approx(wanted, abs=1e-4)


def test_scoring_needs_an_idle_engine_and_a_text(tiny):
    engine = LocalEngine(load_model(tiny("llama")))
    engine.submit(Request([1, 2], 4))
    with pytest.raises(RecipeError, match="in flight"):
        engine.score([[1, 2]])
    with pytest.raises(RecipeError, match="empty"):
        LocalEngine(load_model(tiny("llama"))).score([[]])
