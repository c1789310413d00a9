"""Families as data: what each config means, and what is refused before a weight is read."""

import json

import pytest

from regear.core.errors import IncompatibleModel
from regear.models.families import describe
from regear.models.store import Store


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
        ({"model_type": "gemma2"}, "supported: llama, mistral, qwen2, qwen3"),
        ({"model_type": ""}, "not supported"),
        ({"model_type": "regear_mla"}, "already a regear MLA"),
        ({"model_type": "mistral", "sliding_window": 4096}, "sliding_window=4096"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "sliding-window"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear' is not supported"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "'dynamic' is not supported"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "only part of each head"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
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
