"""Experts apart and joined: as transformers' own loader joins them, and strictly by name."""

import torch
from transformers import AutoModelForCausalLM

from regear.conversion.layers import Layers
from regear.models.experts import apart, join, split
from regear.models.store import Store


def test_experts_are_joined_as_transformers_joins_them(tiny):
    whole = AutoModelForCausalLM.from_pretrained(tiny("qwen3-moe"))
    layers = Layers(Store(tiny("qwen3-moe")))
    for index in range(3):
        wanted, found = whole.model.layers[index].state_dict(), layers.layer(index).state_dict()
        assert set(wanted) == set(found)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    layers.require()


def test_a_loaded_model_splits_into_the_tensors_of_its_checkpoint(tiny):
    whole = AutoModelForCausalLM.from_pretrained(tiny("qwen3-moe"), dtype=torch.float32)
    store, found = Store(tiny("qwen3-moe")), split(whole.state_dict())
    assert found.keys() == store.shapes.keys()
    assert all(torch.equal(tensor, store.read(name)) for name, tensor in found.items())


def test_other_tensors_are_read_as_they_are():
    assert apart("mlp.up_proj.weight", (3, 4)) == {"mlp.up_proj.weight": (3, 4)}
    tensor = torch.ones(3, 4)
    assert join("mlp.up_proj.weight", (3, 4), {"mlp.up_proj.weight": tensor}.__getitem__) is tensor
