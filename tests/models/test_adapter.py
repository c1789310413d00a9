"""LoRA adapters: merged on reading, equal to the same sums done by hand, refused by name beyond plain LoRA."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

import regear
from regear.core.errors import CheckpointError, IncompatibleModel
from regear.models.adapter import MergedStore, open_store, source_digest
from regear.models.load import load_model, load_tokenizer
from regear.models.store import Store
from tests.tiny import make_adapter, make_model, small

TARGETS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj")


def merged_by_hand(base, adapter, place, scale):
    """An ordinary checkpoint with W + scale B A written out."""
    weights, matrices = load_file(base / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    for name in [n for n in matrices if ".lora_A." in n]:
        target = name.removeprefix("base_model.model.").replace(".lora_A", "")
        factor = scale(target) if callable(scale) else scale
        weights[target] = weights[target] + factor * matrices[name.replace("lora_A", "lora_B")] @ matrices[name]
    place.mkdir()
    for path in base.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    return place


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 16 / 4),
        ({"use_rslora": True}, 16 / 2),
        ({"fan_in_fan_out": True}, 16 / 4),  # PEFT ignores it for linear maps
        ({"alpha_pattern": {"v_proj": 2, "layers.1.self_attn.q_proj": 32}}, None),
    ],
)
def test_merging_on_reading_equals_the_sums_by_hand(settings, scale, tiny, tmp_path):
    adapter = make_adapter(tiny("llama"), tmp_path / "adapter", TARGETS, **settings)
    own = {"model.layers.1.self_attn.q_proj.weight": 8.0}
    hand = merged_by_hand(
        tiny("llama"), adapter, tmp_path / "hand", scale or (lambda n: own.get(n, 0.5 if "v_proj" in n else 4.0))
    )
    store, wanted = open_store(adapter), Store(hand)
    assert set(store.shapes) == set(wanted.shapes)
    for name in store.shapes:
        torch.testing.assert_close(store.read(name), wanted.read(name), atol=1e-6, rtol=1e-6)
    ids = torch.arange(40)[None]
    torch.testing.assert_close(load_model(adapter)(ids).logits, load_model(hand)(ids).logits, atol=1e-4, rtol=1e-4)
    assert (load_model(tiny("llama"))(ids).logits - load_model(hand)(ids).logits).abs().max() > 0.1


def test_ranks_may_differ_by_module(tiny, tmp_path):
    adapter = make_adapter(tiny("llama"), tmp_path / "adapter", TARGETS, rank_pattern={"down_proj": 2})
    hand = merged_by_hand(tiny("llama"), adapter, tmp_path / "hand", lambda n: 8.0 if "down_proj" in n else 4.0)
    name = "model.layers.2.mlp.down_proj.weight"
    torch.testing.assert_close(open_store(adapter).read(name), Store(hand).read(name))


def test_a_half_precision_base_stays_in_its_type(tmp_path):
    base = make_model("llama", tmp_path / "base")
    tensors = {k: v.bfloat16() for k, v in load_file(base / "model.safetensors").items()}
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    adapter = make_adapter(base, tmp_path / "adapter", TARGETS)
    name = "model.layers.0.self_attn.q_proj.weight"
    a, b = (
        load_file(adapter / "adapter_model.safetensors")[f"base_model.model.{name[:-7]}.lora_{x}.weight"] for x in "AB"
    )
    wanted = (tensors[name].float() + 4 * b @ a).bfloat16()
    assert torch.equal(open_store(adapter).read(name), wanted)


def test_an_adapter_converts_like_the_model_it_makes(tiny, text, tmp_path, cache):
    adapter = make_adapter(tiny("llama"), tmp_path / "mine", TARGETS)
    hand = merged_by_hand(tiny("llama"), adapter, tmp_path / "hand", 4.0)
    (adapter / "LICENSE").write_text("The adapter's licence.\n")
    result = regear.convert(adapter, tmp_path / "out", *small(text), to="mla")
    wanted = regear.convert(hand, tmp_path / "wanted", *small(text), to="mla")
    for key in ("before", "after"):
        assert result["perplexity"][key] == pytest.approx(wanted["perplexity"][key], rel=1e-4)
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "wanted"))
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(
        ours["model.layers.0.mlp.down_proj.weight"], theirs["model.layers.0.mlp.down_proj.weight"]
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert "llama with the LoRA adapter mine" in card
    assert "base_model: llama\n" in card
    assert "license: mit" in card
    assert (tmp_path / "out" / "LICENSE").read_text() == "A licence.\n"
    assert (tmp_path / "out" / "adapter-LICENSE").exists()
    assert json.loads((tmp_path / "out" / "regear.json").read_text())["model"] == source_digest(adapter)
    for path in (tmp_path / "out").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name


def test_an_adapter_is_evaluated_and_generates(tiny, text, tmp_path, cache):
    adapter = make_adapter(tiny("llama"), tmp_path / "mine", TARGETS)
    found = regear.eval(str(adapter), text=[str(text)], against=str(tiny("llama")), windows=1)
    assert found["against"]["kl"] > 0.01
    assert regear.generate(str(adapter), "a dog", max_tokens=3)["tokens"] == 3


def test_a_dry_run_of_an_adapter_reads_no_weight(tiny, tmp_path, cache, monkeypatch):
    adapter = make_adapter(tiny("llama"), tmp_path / "mine", TARGETS)
    monkeypatch.setattr(MergedStore, "rows", None)
    assert regear.convert(adapter, None, to="mla", dry_run=True)["kv_floats_per_token"]["before"] == 144
    with pytest.raises(CheckpointError, match="overlaps"):
        regear.convert(adapter, tiny("llama") / "inside", to="mla", dry_run=True)


def test_its_own_tokenizer_wins(tiny, tmp_path):
    adapter = make_adapter(tiny("llama"), tmp_path / "adapter", TARGETS)
    assert load_tokenizer(adapter).chat_template is None
    tokenizer = load_tokenizer(adapter)
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained(adapter)
    assert load_tokenizer(adapter).chat_template == "{{ messages[0].content }}"


def test_the_digest_covers_base_and_adapter_and_no_place(tiny, tmp_path):
    digests = {
        source_digest(make_adapter(tiny("llama"), tmp_path / "1", TARGETS)),
        source_digest(make_adapter(tiny("llama"), tmp_path / "2", TARGETS, seed=1)),
        source_digest(make_adapter(tiny("llama-bias"), tmp_path / "3", TARGETS)),
        source_digest(make_adapter(tiny("llama"), tmp_path / "4", TARGETS, use_rslora=True)),
    }
    assert len(digests) == 4
    (tmp_path / "moved").symlink_to(tiny("llama"))
    assert source_digest(make_adapter(tmp_path / "moved", tmp_path / "5", TARGETS)) in digests


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora=True (DoRA)"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save=['lm_head'] (whole modules"),
        ({"bias": "all"}, "bias='all'"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"peft_type": "IA3"}, "of type IA3"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' (an initialisation that changes"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "joined parameters"),
        ({"layer_replication": [[0, 2]]}, "repeated layers"),
        ({"something_new": 3}, "something_new=3"),
        ({"r": None}, "lacks r or lora_alpha"),
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"base_model_name_or_path": "/nowhere/base"}, "names the base model '/nowhere/base', which is not here"),
        ({"r": 3}, "its rank 3 and its base want"),
    ],
)
def test_refusals(settings, message, tiny, text, tmp_path, cache):
    adapter = make_adapter(tiny("llama"), tmp_path / "adapter", TARGETS)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | settings))
    with pytest.raises((IncompatibleModel, CheckpointError), match=re.escape(message)) as caught:
        regear.convert(adapter, tmp_path / "out", *small(text), to="mla")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"base_model.model.lm_head.weight": torch.ones(2)}, "holds base_model.model.lm_head.weight"),
        (lambda t: t | {"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(2)}, "lora_embedding_A"),
        (lambda t: {k: v for k, v in t.items() if "layers.1.mlp.down_proj.lora_B" not in k}, "half of an update"),
        (lambda t: {k.replace("layers.2", "layers.7"): v for k, v in t.items()}, "which its base llama lacks"),
        (lambda t: {}, "holds no tensor"),
        (lambda t: {k: v * float("nan") for k, v in t.items()}, "makes NaN"),
    ],
)
def test_damaged_adapters_are_refused(change, message, tiny, text, tmp_path, cache):
    adapter = make_adapter(tiny("llama"), tmp_path / "adapter", TARGETS)
    path = adapter / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    with pytest.raises((IncompatibleModel, CheckpointError), match=message):
        regear.convert(adapter, tmp_path / "out", *small(text), to="mla")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("copy", [True, False])
def test_an_update_of_a_tied_head_is_refused(copy, text, tmp_path, cache):
    """A copy of the head in the checkpoint is read by nobody, so an update of it would be lost."""
    base = make_model("llama-tied", tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(tensors | head, base / "model.safetensors", metadata={"format": "pt"})
    adapter = make_adapter(base, tmp_path / "adapter", ["self_attn.q_proj", "lm_head"])
    if not copy:
        save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    for use in (
        lambda: regear.convert(adapter, tmp_path / "out", *small(text), to="mla"),
        lambda: regear.generate(str(adapter), "a dog", max_tokens=1),
    ):
        with pytest.raises(IncompatibleModel, match="changes lm_head, which its base base ties") as caught:
            use()
        assert "\n" not in str(caught.value)


def test_missing_weights_and_adapters_on_adapters_are_refused(tiny, tmp_path):
    adapter = make_adapter(tiny("llama"), tmp_path / "adapter", TARGETS)
    second = make_adapter(tiny("llama"), tmp_path / "second", TARGETS)
    config = json.loads((second / "adapter_config.json").read_text())
    (second / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(adapter)}))
    with pytest.raises(CheckpointError, match="holds an adapter itself"):
        open_store(second)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="save the adapter as safetensors"):
        open_store(adapter)
