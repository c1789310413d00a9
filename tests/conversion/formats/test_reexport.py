"""`convert` on an MLA checkpoint: another format, measured on both sides; and what a process without regear makes of it."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

import regear
import regear.models
from regear.core.errors import CheckpointError, IncompatibleModel, RecipeError
from regear.models.adapter import source_digest
from regear.models.load import load_model
from regear.models.store import Store
from tests.canonical import MIXTURE, canonical_model
from tests.stranger import stranger
from tests.tiny import byte_tokenizer, make_adapter, small


def checkpoint(place, dtype=torch.float32, **changes):
    """A decoupled checkpoint with a tokenizer and a licence."""
    words = {"vocab_size": 260, "eos_token_id": 256, "pad_token_id": 256}
    model = canonical_model(**words, max_position_embeddings=256, **changes)  # short, so that timing it is short
    model.to(dtype).save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    (place / "LICENSE").write_text("A licence.\n")
    return model.float()


def load(place):
    return AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", ["deepseek_v3", "youtu"])
def test_a_process_without_regear_generates_the_same_tokens(name, tmp_path, text, cache):
    model = checkpoint(tmp_path / "mla", rms_norm_eps=1e-5, tie_word_embeddings=True, latent_ranks=[[10] * 3] * 3)
    words = [*small(text, 600), f"convert.format={name}", "convert.latent_pad=16"]
    result = regear.convert(tmp_path / "mla", tmp_path / "out", *words)
    assert result["format"] == name
    assert result["kv_floats_per_token"] == {"before": 3 * 14, "after": 3 * 20}
    assert result["kl"] < 1e-6
    assert result["perplexity"]["ratio"] == pytest.approx(1, abs=1e-5)
    ids = torch.randint(0, 256, (1, 30))
    found = stranger(tmp_path / "out", ids[0].tolist())
    assert found["class"].startswith(f"transformers.models.{name}")
    assert not found["missing"] + found["unexpected"]
    assert found["widths"] == [[16, 4]] * 3
    assert found["heads"] == [1] * 3
    assert not found["regear"]
    expected = model.generate(ids, max_new_tokens=24, do_sample=False, eos_token_id=None)[0, 30:].tolist()
    assert found["tokens"] == expected
    assert not list((tmp_path / "out").glob("*.py"))
    assert (tmp_path / "out" / "LICENSE").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "120 bytes" in card  # 3 layers of 16 + 4 floats, two bytes each
    assert "FlashMLA (512 + 64) | no: here 16 + 4" in card
    assert "trust_remote_code" not in card


def test_there_and_back_is_what_healing_starts_from(tmp_path, text, cache):
    model = checkpoint(tmp_path / "mla", tie_word_embeddings=True, latent_ranks=[[10] * 3, [6] * 3, [8] * 3])
    regear.convert(tmp_path / "mla", tmp_path / "strict", *small(text, 600), "convert.format=deepseek_v3")
    regear.convert(tmp_path / "strict", tmp_path / "other", *small(text, 600), "convert.format=youtu")
    result = regear.convert(tmp_path / "other", tmp_path / "back", *small(text, 600), "convert.format=regear_mla")
    assert result["kv_floats_per_token"] == {"before": 3 * 14, "after": 10 + 6 + 8 + 12}
    again, first = Store(tmp_path / "back"), Store(tmp_path / "mla")
    assert again.shapes == first.shapes
    for name in first.shapes:
        torch.testing.assert_close(again.read(name), first.read(name), atol=1e-6, rtol=1e-5)
    ids = torch.randint(0, 256, (1, 30))
    back = load(tmp_path / "back")
    torch.testing.assert_close(back(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)
    assert back.config.latent_ranks == model.config.latent_ranks
    assert back.config.pad_token_id == 256
    assert (tmp_path / "back" / "modeling_regear_mla.py").exists()
    record = json.loads((tmp_path / "back" / "regear.json").read_text())
    assert record["chosen"]["from"]["format"] == "youtu"
    assert record["chosen"]["from"]["chosen"]["from"]["format"] == "deepseek_v3"


@pytest.mark.parametrize("changes", [{"bias": True}, {"post_norm": True}, MIXTURE], ids=["bias", "after", "mixture"])
def test_a_padded_regear_mla_checkpoint_is_the_same_model(changes, tmp_path, text, cache):
    model = checkpoint(tmp_path / "mla", **changes, latent_ranks=[[10] * 3, [6] * 3, [8] * 3])
    regear.convert(tmp_path / "mla", tmp_path / "out", *small(text, 600), "convert.latent_pad=12")
    ids, padded = torch.randint(0, 256, (1, 30)), load(tmp_path / "out")
    torch.testing.assert_close(padded(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)
    assert padded.config.kv_lora_rank == 12


def test_an_adapter_of_an_mla_checkpoint_is_merged_on_the_way(tmp_path, text, cache):
    model = checkpoint(tmp_path / "mla")
    targets = ["self_attn.q_proj", "self_attn.kv_b_proj", "mlp.down_proj"]
    adapter = make_adapter(tmp_path / "mla", tmp_path / "mine", targets)
    result = regear.convert(adapter, tmp_path / "out", *small(text, 600), "convert.format=deepseek_v3")
    assert result["kl"] < 1e-5
    ids, merged = torch.randint(0, 256, (1, 30)), load_model(adapter, "cpu")
    found = load(tmp_path / "out")(ids).logits
    torch.testing.assert_close(found, merged(ids).logits, atol=1e-3, rtol=1e-3)
    assert (found - model(ids).logits).abs().max() > 0.1
    assert json.loads((tmp_path / "out" / "regear.json").read_text())["model"] == source_digest(adapter)


def test_a_float16_source_is_written_in_bfloat16_with_a_warning(tmp_path, text, cache, capsys):
    checkpoint(tmp_path / "mla", torch.float16)
    regear.convert(tmp_path / "mla", tmp_path / "out", *small(text, 600), "convert.format=deepseek_v3")
    assert "cannot be float16: its latents would underflow; writing bfloat16" in capsys.readouterr().err
    assert set(Store(tmp_path / "out").dtypes.values()) == {"BF16"}
    wide = [*small(text, 600), "convert.format=deepseek_v3", "convert.dtype=float32"]
    assert regear.convert(tmp_path / "mla", tmp_path / "wide", *wide)["kl"] < 1e-6


def test_the_dry_run_states_the_added_parameters(tmp_path, text):
    checkpoint(tmp_path / "mla", tie_word_embeddings=True)
    words = ["convert.format=deepseek_v3", *small(text)]
    plan = regear.convert(tmp_path / "mla", None, *words, dry_run=True)
    assert plan["parameters_after"] - plan["parameters_before"] == 260 * 24
    assert plan["format"] == "deepseek_v3"


def test_the_dry_run_counts_every_expert_of_a_layer(tmp_path, text):
    plans = []
    for experts in (4, 40):
        place = tmp_path / str(experts)
        checkpoint(place, **MIXTURE | {"num_experts": experts})
        plans.append(regear.convert(place, None, "convert.latent_pad=12", *small(text), dry_run=True))
    added = 36 * (3 * MIXTURE["moe_intermediate_size"] + 1) * 24  # two matrices in, one out and a row of the router
    assert plans[1]["memory_bytes"] - plans[0]["memory_bytes"] >= 4 * added


def test_what_has_no_effect_or_no_meaning_is_refused(tmp_path, text, tiny, cache):
    checkpoint(tmp_path / "mla")
    with pytest.raises(RecipeError, match="kv_ratio has no effect on a checkpoint that is already MLA"):
        regear.convert(tmp_path / "mla", tmp_path / "out", "convert.format=youtu", "convert.kv_ratio=0.5")
    with pytest.raises(IncompatibleModel, match=r"already a regear MLA.*or another convert.format"):
        regear.convert(tmp_path / "mla", tmp_path / "out")
    with pytest.raises(RecipeError, match="format=youtu holds decoupled keys only; found rope=exact"):
        regear.convert(tmp_path / "mla", tmp_path / "out", "convert.format=youtu", "convert.rope=exact")
    with pytest.raises(RecipeError, match="dtype"):
        regear.convert(tmp_path / "mla", tmp_path / "out", "convert.format=youtu", "convert.dtype=float16")
    with pytest.raises(IncompatibleModel, match="already a regear MLA"):
        regear.sweep(tmp_path / "mla", None, *small(text, 600), ratios=["1/2"])
    regear.convert(tiny("llama"), tmp_path / "exact", *small(text))
    with pytest.raises(IncompatibleModel, match="exact RoPE, and no other format holds its keys"):
        regear.convert(tmp_path / "exact", tmp_path / "out", "convert.format=deepseek_v3")
    assert not (tmp_path / "out").exists()


def test_a_faulty_map_would_not_pass(tmp_path, text, cache, monkeypatch):
    """The output is measured against its source before it appears."""
    checkpoint(tmp_path / "mla")
    monkeypatch.setattr("regear.models.formats.fold.interleave", lambda rows: rows)
    with pytest.raises(CheckpointError, match="more than rounding can"):
        regear.convert(tmp_path / "mla", tmp_path / "out", *small(text, 600), "convert.format=deepseek_v3")
    assert not (tmp_path / "out").exists()
