"""Families as data: what each config means, and what is refused before a weight is read."""

import json

import pytest
import torch

from regear.core.errors import CheckpointError, IncompatibleModel
from regear.models.families import FAMILIES, describe
from regear.models.refusals import FAMILIES_REFUSED, KEYS_REFUSED
from regear.models.store import Store
from regear.models.strict import decoupled_obstacles, server_obstacles, strict_obstacles


def test_the_spec_names_every_tensor_of_a_real_checkpoint(tiny, family):
    store = Store(tiny(family))
    spec = describe(store.config)
    assert set(spec.tensors()) == set(store.shapes)
    assert spec.kv_floats_per_token == spec.layers * 2 * spec.kv_heads * spec.head_dim
    store.require(spec.tensors())


BASE = dict(
    model_type="llama", num_attention_heads=4, num_hidden_layers=2, hidden_size=32, intermediate_size=64, vocab_size=10
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "lama"}, "did you mean 'llama'"),
        ({"model_type": "bert"}, "supported: llama, mistral, qwen2, qwen3"),
        ({"model_type": ""}, "not supported"),
        ({"model_type": "regear_mla"}, "already a regear MLA"),
        ({"model_type": "mistral", "sliding_window": 4096}, "sliding_window=4096"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "sliding-window"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear' is not supported"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "'dynamic' is not supported"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "only part of each head"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"model_type": "gemma2"}, "sliding-window attention in every other layer, and soft-capped logits"),
        ({"model_type": "gemma3_text"}, "sliding-window attention in most layers"),
        ({"model_type": "gpt_oss"}, "attention sinks"),
        ({"model_type": "deepseek_v3"}, "latent attention already"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0: soft-capped attention logits"),
        ({"query_pre_attn_scalar": 256}, "query_pre_attn_scalar=256: attention scaled"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding-window attention"),
        ({"layer_types": ["chunked_attention"] * 2}, "holds chunked_attention"),
        ({"model_type": "qwen3_moe", "use_sliding_window": True}, "sliding-window"),
        ({"model_type": "qwen3_moe", "num_experts": "many"}, "a wrong value"),
        ({"hidden_size": None}, None),
    ],
)
def test_refusals(changes, message):
    config = {k: v for k, v in {**BASE, **changes}.items() if v is not None}
    with pytest.raises(IncompatibleModel, match=message or "lacks 'hidden_size'") as caught:
        describe(config)
    assert "\n" not in str(caught.value)


def test_old_configs_are_read(tiny):
    config = json.loads((tiny("llama3-rope") / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config |= {"rope_scaling": {k: v for k, v in rope.items() if k != "rope_theta"}, "rope_theta": rope["rope_theta"]}
    assert describe(config).rope_type == "llama3"
    assert describe({**BASE, "num_key_value_heads": None}).kv_heads == 4


@pytest.mark.parametrize("family", FAMILIES_REFUSED)
def test_families_that_no_conversion_holds_are_refused_by_what_they_have(family):
    with pytest.raises(IncompatibleModel, match=f"{family}' is not supported: it has \\w+"):
        describe({**BASE, "model_type": family})
    assert family not in FAMILIES


@pytest.mark.parametrize("key", KEYS_REFUSED)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_supported_family_with_a_foreign_key_is_refused(family, key):
    config = {**BASE, "model_type": family, "sliding_window": None}
    describe({**config, key: None, "layer_types": ["full_attention"] * 2})
    with pytest.raises(IncompatibleModel, match=f"{key}=2"):
        describe({**config, key: 2})


@pytest.mark.parametrize(
    ("family", "obstacles"),
    [
        ("llama", []),
        ("llama3-rope", []),
        ("mistral-nemo", []),
        ("qwen2", ["a bias on queries", "a bias on keys and values"]),
        ("qwen3", ["QK-norm (it can only be approximated)"]),
        ("olmo2", ["norms after attention and MLP instead of before", "QK-norm over all heads at once"]),
        ("qwen3-moe", ["softmax routing over experts", "QK-norm (it can only be approximated)"]),
        (
            "llama-bias",
            [
                "a bias on queries",
                "a bias on keys and values",
                "a bias on the attention output",
                "a bias on the MLP",
            ],
        ),
    ],
)
def test_what_the_strict_formats_cannot_hold_is_listed(family, obstacles, tiny):
    spec = describe(Store(tiny(family)).config)
    assert strict_obstacles(spec) == obstacles
    assert bool(server_obstacles(spec)) == (family == "llama3-rope")
    assert bool(decoupled_obstacles(spec)) == (family == "olmo2")


def test_another_activation_is_an_obstacle():
    assert strict_obstacles(describe({**BASE, "hidden_act": "gelu"})) == ["the activation gelu"]


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({}, (0, 1, 2, 3)),
        ({"mlp_only_layers": [0, 2]}, (1, 3)),
        ({"decoder_sparse_step": 2}, (1, 3)),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [3]}, (1,)),
        ({"num_experts": 0}, None),
        ({"num_experts": None, "num_local_experts": 6}, (0, 1, 2, 3)),
    ],
)
def test_which_layers_have_experts(changes, layers):
    """As transformers builds them: the same module in every layer."""
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    config = {**BASE, "model_type": "qwen3_moe", "num_hidden_layers": 4, "num_experts": 3, **changes}
    config = {key: value for key, value in config.items() if value is not None}
    spec = describe(config)
    assert (spec.experts and spec.experts.layers) == layers
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(
            Qwen3MoeConfig(**{k: v for k, v in config.items() if k != "model_type"})
        )
    assert tuple(i for i, layer in enumerate(built.model.layers) if hasattr(layer.mlp, "experts")) == (layers or ())


def test_joined_experts_are_refused(tiny, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny("qwen3-moe"))
    model.save_pretrained(tmp_path, save_original_format=False)
    store = Store(tmp_path)
    with pytest.raises(CheckpointError, match="experts are stored joined"):
        store.require(describe(store.config).tensors())
