"""At full width a conversion changes nothing: every family, every factor, cached and padded as well."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import regear
import regear.models
from regear.conversion.export import DROPS
from tests.tiny import small


def load(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def convert(tiny, family, text, out, *changes):
    return regear.convert(tiny(family), out, *small(text), *changes, to="mla")


def test_full_width_reproduces_the_source(tiny, family, text, tmp_path, cache):
    result = convert(tiny, family, text, tmp_path / "out", "convert.kv_ratio=1")
    ids = torch.randint(0, 256, (2, 40))
    before, after = load(tiny(family))(ids).logits, load(tmp_path / "out")(ids).logits
    assert (before - after).abs().max() < 1e-4
    assert result["perplexity"]["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert result["kl"] < 1e-8


@pytest.mark.parametrize("factor", ["svd", "care", "balanced", "attention", "fisher"])
@pytest.mark.parametrize("branches", ["joint", "separate"])
def test_every_factor_is_exact_at_full_width(factor, branches, tiny, text, tmp_path, cache):
    changes = ["convert.kv_ratio=1", f"convert.factor={factor}", f"convert.branches={branches}"]
    if factor == "attention":
        changes.append("convert.value_weight=0.1")
    convert(tiny, "llama-bias", text, tmp_path / "out", *changes)
    ids = torch.randint(0, 256, (1, 30))
    difference = load(tiny("llama-bias"))(ids).logits - load(tmp_path / "out")(ids).logits
    assert difference.abs().max() < 1e-4


def test_cached_padded_generation_equals_single_and_uncached(tiny, family, text, tmp_path, cache):
    convert(tiny, family, text, tmp_path / "out", "convert.kv_ratio=0.5")
    model, tokenizer = load(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out", padding_side="left")
    prompts = ["the quick brown fox", "a dog"]
    fixed = dict(max_new_tokens=8, do_sample=False, eos_token_id=None)
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    together = model.generate(**batch, **fixed)[:, batch["input_ids"].shape[1] :]
    for row, prompt in enumerate(prompts):
        alone = tokenizer(prompt, return_tensors="pt")
        length = alone["input_ids"].shape[1]
        cached = model.generate(**alone, **fixed)[0, length:]
        uncached = model.generate(**alone, **fixed, use_cache=False)[0, length:]
        assert cached.tolist() == uncached.tolist() == together[row].tolist()


def test_dropping_k_norm_would_be_noticed(tiny, text, tmp_path, cache):
    convert(tiny, "qwen3", text, tmp_path / "out", "convert.kv_ratio=1")
    model, ids = load(tmp_path / "out"), torch.randint(0, 256, (1, 30))
    right = model(ids).logits
    for layer in model.model.layers:
        layer.self_attn.k_norm = torch.nn.Identity()
    assert (model(ids).logits - right).abs().max() > 0.1


def test_keys_left_out_of_a_config_mean_the_familys_defaults(tiny, text, tmp_path, cache):
    source = tmp_path / "source"
    shutil.copytree(tiny("olmo2"), source)
    config = json.loads((source / "config.json").read_text())
    dropped = ("rms_norm_eps", "rope_parameters", "hidden_act", "max_position_embeddings")
    kept = {key: value for key, value in config.items() if key not in dropped}
    (source / "config.json").write_text(json.dumps(kept))
    regear.convert(source, tmp_path / "out", *small(text), "convert.kv_ratio=1", to="mla")
    before, after = load(source), load(tmp_path / "out")
    for key in (*dropped, "bos_token_id", "eos_token_id"):
        assert getattr(after.config, key) == getattr(before.config, key), key
    ids = torch.randint(0, 256, (1, 40))
    assert (before(ids).logits - after(ids).logits).abs().max() < 1e-4


def test_everything_but_keys_and_values_is_carried_over_untouched(tiny, family, text, tmp_path, cache):
    convert(tiny, family, text, tmp_path / "out", "convert.kv_ratio=0.25")
    before, after = (load_file(path / "model.safetensors") for path in (tiny(family), tmp_path / "out"))
    carried = {name for name in before if not name.endswith(DROPS)}
    assert all(torch.equal(before[name], after[name]) for name in carried)
    assert all(re.search(r"(kv_a|k_b|v_b)_proj", name) for name in set(after) - carried)


@pytest.mark.parametrize(
    ("changes", "ranks"),
    [
        (["convert.branches=separate", "convert.allocate=uniform"], lambda r: r[1] + r[2] == r[0]),
        (["convert.allocate=uniform"], lambda r: r == [24, 24, 24]),
        (["convert.factor=care", "convert.allocate=care"], lambda r: r[0] == r[1] == r[2]),
        (
            ["convert.factor=care", "convert.allocate=care_code", "convert.branches=separate"],
            lambda r: r[1] + r[2] == r[0],
        ),
        (["convert.factor=care", "convert.allocate=energy", "convert.align=4"], lambda r: r[0] % 4 == 0),
        (["convert.factor=attention", "convert.allocate=measured"], lambda r: r[0] > 0),
        (["convert.preset=care"], lambda r: r[1] + r[2] == r[0]),
        (["convert.preset=forward-only"], lambda r: r[0] > 0),
    ],
)
def test_every_setting_keeps_the_budget(changes, ranks, tiny, text, tmp_path, cache):
    result = convert(tiny, "llama", text, tmp_path / "out", *changes)
    kv = result["kv_floats_per_token"]
    assert kv["after"] <= kv["before"] // 2
    assert kv["after"] >= kv["before"] // 2 - 4 * 3
    assert all(ranks(r) for r in load(tmp_path / "out").config.latent_ranks)


def test_a_third_is_counted_exactly(tiny, text, tmp_path, cache):
    result = convert(tiny, "llama", text, tmp_path / "out", "convert.kv_ratio=1/3")
    assert result["kv_floats_per_token"] == {"before": 144, "after": 48}
