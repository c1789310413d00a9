"""Strict exports: the same logits as the canonical model in stock classes, refused where they could not be."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, StaticCache

import regear.models  # noqa: F401
from regear.conversion.convert import silent
from regear.conversion.formats.reexport import canonical
from regear.core.errors import CheckpointError, IncompatibleModel, RecipeError
from regear.models.formats.strict import STRICT
from regear.models.formats.write import in_format, output_dtype, write
from regear.models.store import Store
from tests.canonical import MIXTURE, canonical_model
from tests.tiny import LLAMA3_ROPE

UNEVEN = [[10] * 3, [6] * 3, [8] * 3]
FIXED = dict(do_sample=False, eos_token_id=None)


def saved(place, **changes):
    model = canonical_model(**changes)
    model.save_pretrained(place)
    return model


def exported(source, target, name, pad=None, dtype=torch.float32):
    target.mkdir()
    write(in_format(canonical(Store(source)), name, pad), target, dtype, silent)
    return target


def load(place, **changes):
    found, report = AutoModelForCausalLM.from_pretrained(
        place, trust_remote_code=False, output_loading_info=True, dtype=torch.float32, **changes
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    return found.eval()


@pytest.mark.parametrize("name", STRICT)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rms_norm_eps": 1e-5},
        {"tie_word_embeddings": True},
        {"tie_word_embeddings": True, "rms_norm_eps": 1e-5},
        {"latent_ranks": UNEVEN},
        {"softmax_scale": 0.21},
        {"rope_parameters": {**LLAMA3_ROPE, "original_max_position_embeddings": 16}},
        {"rope_pairs": [[0, 1]] * 3},
        {"rope_pairs": [[0, 1]] * 3, "rope_parameters": {**LLAMA3_ROPE, "original_max_position_embeddings": 16}},
    ],
    ids=lambda changes: "-".join(changes) or "plain",
)
def test_logits_are_those_of_the_canonical_model(name, changes, tmp_path):
    model = saved(tmp_path / "from", **{"rms_norm_eps": 1e-6, **changes})
    strict = load(exported(tmp_path / "from", tmp_path / "to", name))
    ids = torch.randint(0, 60, (2, 40))
    expected = model(ids).logits
    assert expected.std() > 0.3
    torch.testing.assert_close(strict(ids).logits, expected, atol=2e-4, rtol=2e-4)
    back = in_format(canonical(Store(tmp_path / "to")), "regear_mla")
    for tensor, was in ((back.read(n), Store(tmp_path / "from").read(n)) for n in back.shapes):
        torch.testing.assert_close(tensor, was, atol=1e-6, rtol=1e-5)
    assert set(back.shapes) == set(Store(tmp_path / "from").shapes)


@pytest.mark.parametrize("name", STRICT)
def test_the_cache_holds_latents_of_the_stated_width(name, tmp_path):
    saved(tmp_path / "from", latent_ranks=UNEVEN)
    for pad in (None, 16):
        model = load(exported(tmp_path / "from", tmp_path / f"to{pad}", name, pad))
        cache = DynamicCache(config=model.config)
        model(torch.randint(0, 60, (2, 7)), past_key_values=cache, use_cache=True)
        assert {layer.keys.shape for layer in cache.layers} == {(2, 1, 7, pad or 10)}
        assert {layer.values.shape for layer in cache.layers} == {(2, 1, 7, 4)}
        assert model.config.kv_lora_rank == (pad or 10)


@pytest.mark.parametrize("name", STRICT)
def test_generation_in_every_way_gives_the_canonical_tokens(name, tmp_path):
    model = saved(tmp_path / "from").double()
    strict = load(exported(tmp_path / "from", tmp_path / "to", name)).double()
    rows = [torch.randint(0, 60, (n,)) for n in (4, 9)]
    expected = [model.generate(row[None], max_new_tokens=8, **FIXED)[0, len(row) :].tolist() for row in rows]
    ids, mask = torch.full((2, 9), 60), torch.zeros(2, 9, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, -len(row) :], mask[i, -len(row) :] = row, 1
    for settings in ({}, {"cache_implementation": "static"}, {"use_cache": False}):
        found = strict.generate(ids, attention_mask=mask, max_new_tokens=8, **FIXED, **settings)
        assert found[:, 9:].tolist() == expected, settings
    beams = [m.generate(rows[1][None], max_new_tokens=6, num_beams=3, **FIXED).tolist() for m in (model, strict)]
    assert beams[0] == beams[1]


def test_crop_and_static_caches_serve_the_export(tmp_path):
    saved(tmp_path / "from")
    model = load(exported(tmp_path / "from", tmp_path / "to", "deepseek_v3"))
    ids = torch.randint(0, 60, (1, 10))
    for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=16)):
        model(ids[:, :6], past_key_values=cache, use_cache=True)
        if isinstance(cache, DynamicCache):
            model(ids[:, :3], past_key_values=cache, use_cache=True)
            cache.crop(-3)
        found = model(ids[:, 6:], past_key_values=cache, use_cache=True).logits
        torch.testing.assert_close(found, model(ids).logits[:, 6:], atol=2e-4, rtol=2e-4)


def test_wrong_eps_would_be_noticed(tmp_path):
    """Served with an eps other than 1e-6 in the latent norm, the model is another one: the rescale is not cosmetic."""
    model = saved(tmp_path / "from", rms_norm_eps=1e-5)
    strict = load(exported(tmp_path / "from", tmp_path / "to", "deepseek_v3"))
    for layer in strict.model.layers:
        assert layer.self_attn.kv_a_layernorm.variance_epsilon == strict.config.rms_norm_eps == 1e-6
        layer.self_attn.kv_a_layernorm.variance_epsilon = 1e-5
    ids = torch.randint(0, 60, (1, 20))
    assert (strict(ids).logits - model(ids).logits).abs().max() > 0.05


def test_bfloat16_is_as_noisy_as_the_source_in_bfloat16_and_float16_breaks(tmp_path):
    model = saved(tmp_path / "from", num_hidden_layers=2)
    strict = load(exported(tmp_path / "from", tmp_path / "to", "deepseek_v3"))
    ids = torch.randint(0, 60, (16, 40))
    exact = model(ids).logits

    def noise(which, dtype):
        return float((which.to(dtype)(ids).logits.float() - exact).square().mean().sqrt())

    ours, theirs = noise(strict, torch.bfloat16), noise(model, torch.bfloat16)
    assert ours < 1.2 * theirs
    half = noise(load(tmp_path / "to"), torch.float16)
    assert half > 2 * ours  # float16 is finer than bfloat16 everywhere else


def test_float16_is_refused_and_a_float16_source_becomes_bfloat16():
    with pytest.raises(IncompatibleModel, match="underflow; use bfloat16"):
        output_dtype(torch.float32, "deepseek_v3", torch.float16)
    assert output_dtype(torch.float16, "youtu") == torch.bfloat16
    assert output_dtype(torch.float16, "regear_mla") == torch.float16
    assert output_dtype(torch.float32, "deepseek_v3", torch.bfloat16) == torch.bfloat16


@pytest.mark.parametrize("name", STRICT)
def test_saving_what_was_loaded_changes_nothing(name, tmp_path):
    saved(tmp_path / "from", rms_norm_eps=1e-5)
    exported(tmp_path / "from", tmp_path / "to", name)
    load(tmp_path / "to").save_pretrained(tmp_path / "again")
    load(tmp_path / "again").save_pretrained(tmp_path / "third")
    first, again = (load_file(tmp_path / place / "model.safetensors") for place in ("to", "again"))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "third" / file).read_bytes()
    assert json.loads((tmp_path / "third" / "config.json").read_text())["regear"]


@pytest.mark.parametrize("name", STRICT)
def test_keys_are_those_of_a_stock_model(name, tmp_path):
    """64 layers: transformers ignores unexpected layers 61 of deepseek_v3, and must not lose an expected one."""
    layers = 64 if name == "deepseek_v3" else 3
    model = saved(tmp_path / "from", num_hidden_layers=layers)
    exported(tmp_path / "from", tmp_path / "to", name)
    with torch.device("meta"):
        stock = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / "to"))
    held = {key: tuple(value.shape) for key, value in stock.state_dict().items()}
    assert held == Store(tmp_path / "to").shapes
    ids = torch.randint(0, 60, (1, 12))
    torch.testing.assert_close(load(tmp_path / "to")(ids).logits, model(ids).logits, atol=1e-3, rtol=1e-3)


def test_untying_adds_one_table_and_youtu_can_do_without(tmp_path):
    saved(tmp_path / "from", tie_word_embeddings=True, rms_norm_eps=1e-6)
    source = canonical(Store(tmp_path / "from"))
    table = 61 * 24
    counts = {n: sum(torch.Size(s).numel() for s in in_format(source, n).shapes.values()) for n in STRICT}
    assert counts["deepseek_v3"] == counts["youtu"] + table


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"bias": True}, "a bias on queries, a bias on keys and values, a bias on the attention output"),
        ({"mlp_bias": True}, "a bias on the MLP"),
        ({"qk_norm": True}, "a norm on queries"),
        ({"post_norm": True}, "norms after attention and MLP"),
        (MIXTURE, "softmax routing over experts"),
        ({"hidden_act": "gelu"}, "the activation gelu"),
        ({"rope_pairs": [[0, 0]] * 3}, "rotated frequencies"),
        ({"rope_pairs": [[1, 3]] * 3}, "rotated frequencies"),
        ({"rope_pairs": [[0, 2], [0, 1], [0, 2]]}, "rotated frequencies"),
    ],
)
@pytest.mark.parametrize("name", STRICT)
def test_what_it_cannot_hold_is_refused_by_name(name, changes, named, tmp_path):
    saved(tmp_path / "from", **changes)
    with pytest.raises(IncompatibleModel, match=f"{name} has no place for {named}.*use convert.format=regear_mla"):
        in_format(canonical(Store(tmp_path / "from")), name)


def test_wrong_checkpoints_are_refused(tmp_path):
    saved(tmp_path / "from")
    with pytest.raises(RecipeError, match="below the widest latent, 10"):
        in_format(canonical(Store(tmp_path / "from")), "youtu", 8)
    exported(tmp_path / "from", tmp_path / "to", "youtu")
    config = json.loads((tmp_path / "to" / "config.json").read_text())
    (tmp_path / "to" / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "regear"}))
    with pytest.raises(IncompatibleModel, match="not written by regear"):
        canonical(Store(tmp_path / "to"))
    (tmp_path / "to" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(CheckpointError, match=r"tensor model\.layers\.2"):
        canonical(Store(tmp_path / "to"))


def test_embeddings_trained_after_untying_are_not_tied_again(tmp_path):
    saved(tmp_path / "from", tie_word_embeddings=True)
    exported(tmp_path / "from", tmp_path / "to", "deepseek_v3")
    model = load(tmp_path / "to")
    with torch.no_grad():
        model.lm_head.weight[3] += 1
    model.save_pretrained(tmp_path / "trained")
    with pytest.raises(CheckpointError, match="changed since"):
        canonical(Store(tmp_path / "trained")).read("model.embed_tokens.weight")
