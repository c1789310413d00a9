"""Measurements against their definitions, on tiny models: scoring, pairing, choices, caches."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

import regear
from regear.measure.choice import score_choices
from regear.measure.perplexity import score, score_pair
from regear.measure.speed import cache_size, decode_seconds, filled_cache
from regear.models.load import load_model, load_tokenizer
from regear.tasks.choice import ChoiceItem
from regear.tasks.text import Window
from tests.tiny import byte_tokenizer, make_model, make_text, small


@pytest.fixture
def model(tiny):
    return load_model(tiny("llama"))


def test_scores_equal_the_models_own_loss(model, tiny):
    tokenizer = load_tokenizer(tiny("llama"))
    windows = [Window("hello wörld", "k"), Window("another window", "k")]
    scores = score(model, tokenizer, windows)
    for window, nll, tokens, bytes_ in zip(windows, scores.nll, scores.tokens, scores.bytes, strict=True):
        ids = torch.tensor([tokenizer(window.text)["input_ids"]])
        assert tokens == ids.shape[1] - 1 == bytes_  # one token a byte, the first not scored
        assert nll == pytest.approx(float(model(ids, labels=ids).loss) * tokens, rel=1e-5)
    assert scores.perplexity == pytest.approx(math.exp(sum(scores.nll) / sum(scores.tokens)))
    assert scores.bits_per_byte == pytest.approx(sum(scores.nll) / sum(scores.bytes) / math.log(2))


def test_pairing_keeps_the_direction_of_kl(model, tiny, tmp_path):
    other = load_model(make_model("llama", tmp_path / "other", seed=1))
    tokenizer, windows = load_tokenizer(tiny("llama")), [Window(make_text(200), "k")]
    after, before = score_pair(other, model, tokenizer, windows)
    ids = torch.tensor([tokenizer(windows[0].text)["input_ids"]])
    p = model(ids).logits[0, :-1].log_softmax(-1)  # KL(reference ‖ model)
    q = other(ids).logits[0, :-1].log_softmax(-1)
    assert after.mean_kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)
    assert after.nll == score(other, tokenizer, windows).nll
    assert before.nll == score(model, tokenizer, windows).nll


def test_cache_size_is_read_off_the_cache(model):
    assert cache_size(model) == {"floats": 3 * 2 * 2 * 12, "bytes": 3 * 2 * 2 * 12 * 4}


def test_decode_timing_leaves_the_cache_as_it_was(model):
    cache = filled_cache(model, 12)
    assert decode_seconds(model, cache, 2) > 0
    assert cache.get_seq_length() == 12


def test_choices_equal_scoring_each_option_alone(model, tiny):
    tokenizer = load_tokenizer(tiny("llama"))
    items = [
        ChoiceItem("a", "What is it?", ("one", "twenty two", "x", "four"), 1),
        ChoiceItem("b", "Who?", ("me", "you"), 0),
    ]
    scores = score_choices(model, tokenizer, items)
    assert scores.chance == pytest.approx((1 / 4 + 1 / 2) / 2)
    for number, item in enumerate(items):
        sums = []
        for option in item.options:
            prompt, rest = tokenizer(item.prompt)["input_ids"], tokenizer(" " + option)["input_ids"]
            logits = model(torch.tensor([prompt + rest])).logits[0].log_softmax(-1)
            places = range(len(prompt) - 1, len(prompt) + len(rest) - 1)
            sums.append(sum(float(logits[i, t]) for i, t in zip(places, rest, strict=True)))
        assert scores.right[number] == int(max(range(len(sums)), key=sums.__getitem__) == item.answer)
        assert scores.gold_logprob[number] == pytest.approx(
            sums[item.answer] / len(item.options[item.answer]), rel=1e-4
        )


@pytest.mark.parametrize("kind", ["bf16", "int8"])
@pytest.mark.parametrize("latent", [False, True])
def test_choices_through_a_cache_stay_close_and_pads_change_nothing(kind, latent, tiny, text, tmp_path, cache):
    place = tiny("llama")
    if latent:
        place = tmp_path / "latent"
        regear.convert(tiny("llama"), place, *small(text), to="mla")
    model, tokenizer = load_model(place), load_tokenizer(tiny("llama"))
    question = make_text(150)
    items = [ChoiceItem("a", question, ("one", "x", "a much longer option than the others"), n) for n in range(3)]
    plain, found = score_choices(model, tokenizer, items), score_choices(model, tokenizer, items, kind)
    assert found.gold_logprob != plain.gold_logprob
    assert found.gold_logprob == pytest.approx(plain.gold_logprob, abs=0.1)
    alone = [ChoiceItem("a", question, (item.options[item.answer],), 0) for item in items]
    assert found.gold_logprob == pytest.approx(score_choices(model, tokenizer, alone, kind).gold_logprob, abs=0.01)


def test_eval_reads_through_the_cache_it_is_told(tiny, text, cache):
    fixed = {"against": tiny("llama"), "text": [text], "windows": 1, "speed": False}
    results = {kind: regear.eval(tiny("llama"), kv=kind, **fixed) for kind in ("bf16", "int8", "int4")}
    kl = {kind: result["against"]["kl"] for kind, result in results.items()}
    assert 0 < kl["int8"] < kl["int4"]
    assert 0 < kl["bf16"] < kl["int4"]
    assert (results["int4"]["kv"], results["int4"]["against"]["kv"]) == ("int4", None)
    size = results["int4"]["kv_bytes_by_kind"]
    assert results["int4"]["kv_bytes_per_token"] == size["int4"] < size["int8"] < size["bf16"] == 2 * 144
    same = regear.eval(tiny("llama"), kv="int4", against_kv="int4", **fixed)
    assert same["against"]["ratio"] == 1


def test_change_is_paired(model, tiny, tmp_path):
    tokenizer = load_tokenizer(tiny("llama"))
    items = [ChoiceItem(str(i), f"Question {i}?", ("a", "bb", "ccc"), i % 3) for i in range(6)]
    scores = score_choices(model, tokenizer, items)
    change = scores.change_from(scores)
    assert (change["accuracy"].value, change["accuracy"].low, change["gold_logprob"].high) == (0, 0, 0)


def test_eval_pairs_and_reports(tiny, text, tmp_path, cache):
    other = make_model("llama", tmp_path / "other", seed=1)
    result = regear.eval(other, against=tiny("llama"), text=[text], report=tmp_path / "report")
    keys = {"model", "tokens", "bytes", "perplexity", "bits_per_byte", "kv_floats_per_token", "against"}
    assert keys <= set(result)
    pair = result["against"]
    assert pair["ratio"] == pytest.approx(result["perplexity"] / pair["perplexity"])
    assert pair["ratio_ci"][0] <= pair["ratio"] <= pair["ratio_ci"][1]
    assert pair["kl"] > 0
    assert result["tokens"] == 3 * 2047
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Perplexity ratio" in page
    assert (tmp_path / "report" / "report.json").exists()


def test_across_tokenizers_only_bits_per_byte_compare(tiny, text, tmp_path, cache):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    other = make_model("llama", tmp_path / "other", seed=1)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(alphabet)} | {"th": 257}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("t", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(other)
    result = regear.eval(other, against=tiny("llama"), text=[text], speed=False)
    assert result["against"]["ratio"] is None
    assert result["against"]["kl"] is None
    assert result["bits_per_byte"] > 0
    assert abs(result["bytes"] - 3 * 2047) <= 3


def test_loading_refuses_tensors_that_do_not_fit(tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    from regear.core.errors import CheckpointError

    path = make_model("llama", tmp_path / "m")
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.0.extra"] = torch.ones(1)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="does not fit its config"):
        load_model(path)
    assert isinstance(load_model(tiny("llama")), type(AutoModelForCausalLM.from_pretrained(tiny("llama"))))
    assert byte_tokenizer()("a")["input_ids"]


def test_a_beginning_of_text_token_is_context_and_not_text(model, tiny):
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_tokenizer(tiny("llama"))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<end> $A", special_tokens=[("<end>", 256)])
    scores = score(model, tokenizer, [Window("hello", "k")])
    assert (scores.tokens, scores.bytes) == ([5], [5])
