"""The embedded model, for real: fetched, scored, converted on a little text, reloaded, generating."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import regear
from regear.models.builtin import EMBEDDED, fetch
from regear.models.carry import source_name
from tests.stranger import stranger
from tests.tiny import make_adapter

NAME = "smollm2-135m-instruct"
SMALL = [
    "calibration.tokens=3000",
    "selection.tokens=1000",
    "evaluation.tokens=1000",
]


def test_fetch_gives_an_ordinary_directory(smollm2):
    found = fetch("smollm2-135m-instruct")
    assert found["path"] == str(smollm2)
    assert len(found["sha256"]) == 64
    config = json.loads((smollm2 / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"], config["num_key_value_heads"]) == ("llama", 30, 3)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert "<|im_start|>user" in tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert tokenizer("12 34", add_special_tokens=False)["input_ids"] == tokenizer.convert_tokens_to_ids(
        ["1", "2", "Ġ", "3", "4"]
    )
    assert json.loads((smollm2 / "source.json").read_text())["sha256"] == EMBEDDED["smollm2-135m-instruct"].digest


def test_it_knows_a_capital(smollm2):
    answer = regear.generate("smollm2-135m-instruct", "What is the capital of France?", max_tokens=16)
    assert answer["text"] == "The capital of France is Paris."
    assert answer["finish_reason"] == "stop"


def test_an_adapter_of_it_is_found_by_name(tmp_path, smollm2):
    adapter = make_adapter(smollm2, tmp_path / "mine", ["q_proj", "v_proj"])
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": NAME}))
    plan = regear.convert(adapter, None, to="mla", dry_run=True)
    assert plan["kv_floats_per_token"]["before"] == 11520
    assert source_name(adapter, adapter) == "HuggingFaceTB/SmolLM2-135M-Instruct with the LoRA adapter mine"


GOLDEN = 22.904958
GOLDEN_TEXT = (
    "The capital of France is Paris. It stands on the river Seine, and it has been the country's largest city for "
    "centuries. Visitors come for its museums, its bread and its light."
)


def test_perplexity_is_the_known_one(smollm2):
    """Golden: the value that transformers' own GGUF loader gives on this sentence."""
    from regear.measure.perplexity import score
    from regear.models.load import load_model, load_tokenizer
    from regear.tasks.text import Window

    scores = score(load_model(smollm2), load_tokenizer(smollm2), [Window(GOLDEN_TEXT, "k")])
    assert scores.perplexity == pytest.approx(GOLDEN, rel=1e-3)


@pytest.fixture(scope="module")
def converted(tmp_path_factory, smollm2):
    out = tmp_path_factory.mktemp("mla") / "out"
    # Too little memory for both models at once: caches of fewer bits and decode steps have tests of their own.
    return out, regear.convert("smollm2-135m-instruct", out, *SMALL, to="mla", max_memory=1.2)


def test_half_the_cache_at_little_loss(converted):
    _, result = converted
    assert result["kv_floats_per_token"] == {"before": 11520, "after": 5760}
    assert result["perplexity"]["ratio"] < 1.15  # uniform CARE loses 25 % with ten times this calibration text


def test_the_checkpoint_answers_through_stock_transformers(converted):
    out, _ = converted
    tokenizer = AutoTokenizer.from_pretrained(out, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    chats = [[{"role": "user", "content": q}] for q in ("What is the capital of France?", "Name a color.")]
    text = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats]
    batch = tokenizer(text, return_tensors="pt", padding=True, add_special_tokens=False)
    together = model.generate(**batch, max_new_tokens=12, do_sample=False)[:, batch["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(together[0])
    alone = tokenizer(text[0], return_tensors="pt", add_special_tokens=False)
    single = model.generate(**alone, max_new_tokens=12, do_sample=False)[0, alone["input_ids"].shape[1] :]
    uncached = model.generate(**alone, max_new_tokens=12, do_sample=False, use_cache=False)[
        0, alone["input_ids"].shape[1] :
    ]
    length = len(single)
    assert together[0, :length].tolist() == single.tolist() == uncached.tolist()


def test_ordering_of_the_methods_on_a_real_model(smollm2):
    """Weight-SVD is far worse than CARE, CARE worse than the default, on windows that none of them saw."""
    result = regear.sweep(
        "smollm2-135m-instruct", None, *SMALL, ratios=["1/2"], presets=["svd", "care-uniform", "best"]
    )
    excess = {p["setting"]: p["excess"] for p in result["points"]}
    assert excess["svd"] > 4 * excess["care-uniform"] > 0
    assert excess["best"] < 0.55 * excess["care-uniform"]


@pytest.mark.slow
def test_default_conversion_meets_its_quality(tmp_path, smollm2):
    """The whole default conversion: within 5 % of the original's perplexity at half the cache."""
    result = regear.convert("smollm2-135m-instruct", tmp_path / "out", to="mla")
    assert result["perplexity"]["ratio_ci"][1] < 1.05


def test_few_bits_in_the_cache_cost_little(smollm2):
    """What a weak scheme would lose: 4 bits along tokens give a KL of 0.1 on a real model's keys."""
    fixed = {"against": smollm2, "windows": 1, "speed": False}
    kl = {kind: regear.eval(smollm2, kv=kind, **fixed)["against"]["kl"] for kind in ("int8", "int4")}
    assert kl["int8"] < 1e-3
    assert kl["int8"] < kl["int4"] < 0.02


@pytest.mark.slow
def test_planted_facts_are_found(smollm2):
    result = regear.eval(smollm2, long=True, context=512, windows=4, items=20, speed=False)["long"]
    whole = {row["length"]: row for row in result["needle"] if row["depth"] is None}
    assert whole[512]["accuracy"] > 0.6 > 2 * whole[512]["chance"]
    assert result["positions"][-1]["perplexity"] < result["positions"][0]["perplexity"]


@pytest.mark.slow
def test_a_strict_export_is_the_same_model_to_a_process_without_regear(tmp_path, smollm2):
    words = [*SMALL, "convert.rope_dim=64", "convert.dtype=float32"]
    untimed = {"max_memory": 1.2}
    result = regear.convert(smollm2, tmp_path / "strict", *words, "convert.format=deepseek_v3", **untimed)
    regear.convert(smollm2, tmp_path / "own", *words, "convert.preset=decoupled-grid", **untimed)
    assert result["kv_floats_per_token"] == {"before": 11520, "after": 30 * (128 + 64)}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "own", dtype=torch.float32)
    assert model.config.model_type == "regear_mla"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "strict")
    for question in ("What is the capital of France?", "Write a short story about a fox."):
        chat = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
        ids = torch.tensor([chat["input_ids"]])
        found = stranger(tmp_path / "strict", chat["input_ids"])
        assert not found["regear"]
        assert found["class"].startswith("transformers.models.deepseek_v3")
        assert not found["missing"] + found["unexpected"]
        assert (found["widths"], found["heads"]) == ([[128, 64]] * 30, [1] * 30)
        expected = model.generate(ids, max_new_tokens=24, do_sample=False, eos_token_id=None)[0, ids.shape[1] :]
        assert found["tokens"] == expected.tolist()
