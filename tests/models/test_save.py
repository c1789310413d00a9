"""A model in memory goes back to disk as it came, or is refused before anything is done to it."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from regear.core.errors import CheckpointError
from regear.models.save import as_stored, save_like
from regear.models.store import Store
from tests.tiny import make_model


def changed(place, change):
    """The tiny Llama with other tensors in its file."""
    model = make_model("llama", place / "changed")
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    return Store(model)


@pytest.mark.parametrize("family", ["llama-tied", "qwen3-moe"])
def test_what_was_loaded_is_written_as_it_was(tiny, family, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny(family))
    save_like(Store(tiny(family)), model.state_dict(), tmp_path)
    one, other = (load_file(place / "model.safetensors") for place in (tiny(family), tmp_path))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_buffers_that_loaders_recompute_are_left_out(tmp_path):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    store = changed(tmp_path, lambda tensors: tensors.update({name: torch.ones(6)}))
    model = AutoModelForCausalLM.from_pretrained(store.directory)
    (tmp_path / "out").mkdir()
    save_like(store, model.state_dict(), tmp_path / "out")
    assert Store(tmp_path / "out").shapes.keys() == store.shapes.keys() - {name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({"extra": torch.ones(2)}), r"tensor extra of shape \(2,\) is absent in the loaded model"),
        (lambda t: t.update({"model.norm.weight": torch.ones(7)}), r"of shape \(7,\) is of shape \(48,\)"),
        (
            lambda t: t.update({"model.norm.weight": t["model.norm.weight"].to(torch.float8_e4m3fn)}),
            "stored as F8_E4M3; wanted one of F64",
        ),
    ],
)
def test_what_could_not_be_written_back_is_refused(tiny, tmp_path, change, message):
    store = changed(tmp_path, change)
    model = AutoModelForCausalLM.from_pretrained(tiny("llama"))
    with pytest.raises(CheckpointError, match=message):
        as_stored(store, model.state_dict())
