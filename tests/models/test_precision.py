"""A model in a chosen precision: what becomes int8, what stays, how little the answers change."""

import gc
import weakref

import pytest
import torch
from torch import nn

from regear.core.errors import RecipeError
from regear.measure.perplexity import score_pair
from regear.models.load import load_model, load_tokenizer
from regear.models.precision import check_dtype, load_as, quantise_weights
from regear.ops.int8 import Int8Linear
from regear.tasks.text import read_documents, windows_of


def test_every_family_predicts_nearly_the_same(family, tiny, text):
    reference, model = load_model(tiny(family)), load_as(tiny(family), dtype="int8")
    windows = windows_of(read_documents([text], "evaluation"))
    after, before = score_pair(model, reference, load_tokenizer(tiny(family)), windows)
    assert 0 < after.mean_kl < (0.05 if "moe" in family else 0.02)  # a router that changes its mind costs more
    assert abs(after.ratio_to(before).value - 1) < 0.02


def test_all_maps_but_no_embedding(tiny):
    model = load_as(tiny("llama-tied"), dtype="int8")
    assert not any(isinstance(part, nn.Linear) for part in model.modules())
    assert isinstance(model.get_output_embeddings(), Int8Linear)
    assert type(model.get_input_embeddings()) is nn.Embedding
    names = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    assert all("norm" in name or "embed" in name for name in names)


def test_the_float_weights_are_freed(tiny):
    model = load_model(tiny("llama-tied"))
    floats = [weakref.ref(part.weight) for part in model.modules() if isinstance(part, nn.Linear)]
    quantise_weights(model)
    gc.collect()
    alive = [held() for held in floats if held() is not None]
    assert len(alive) == 1
    assert alive[0] is model.get_input_embeddings().weight  # the head's, which the embedding needs


def test_maps_of_one_input_share_their_gain(tiny):
    layer = load_as(tiny("qwen3"), dtype="int8").model.layers[1]
    attention, mlp = layer.self_attn, layer.mlp
    assert torch.equal(attention.q_proj.gain, attention.v_proj.gain)
    assert torch.equal(mlp.gate_proj.gain, mlp.up_proj.gain)
    assert not torch.equal(attention.q_proj.gain, mlp.up_proj.gain)


def test_the_result_depends_on_the_model_alone(tiny):
    torch.manual_seed(1)
    first = load_as(tiny("llama"), dtype="int8")
    torch.manual_seed(2)
    tokens = torch.arange(9).unsqueeze(0)
    assert torch.equal(first(tokens).logits, load_as(tiny("llama"), dtype="int8")(tokens).logits)


def test_matrices_that_are_read_stay_float(tiny):
    class Reads(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.inner, self.kv_b_proj = model, nn.Linear(4, 4)
            for name in ("get_input_embeddings", "get_output_embeddings", "generate"):
                setattr(self, name, getattr(model, name))

        def forward(self, **inputs):
            return self.inner(**inputs)

    model = Reads(load_model(tiny("llama")))
    quantise_weights(model)
    assert isinstance(model.kv_b_proj, nn.Linear)
    assert isinstance(model.inner.lm_head, Int8Linear)


def test_a_processor_of_fewer_codes_rounds_every_map_finer(tiny, monkeypatch):
    monkeypatch.setattr("regear.ops.int8.levels", lambda: 63)
    model = load_as(tiny("llama"), dtype="int8")
    assert {(part.most, part.digits) for part in model.modules() if isinstance(part, Int8Linear)} == {(63, 2)}


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_floats(name, tiny):
    model = load_as(tiny("llama"), dtype=name)
    assert model.dtype == getattr(torch, name)
    assert model(torch.arange(5).unsqueeze(0)).logits.isfinite().all()


def test_refusals(monkeypatch):
    with pytest.raises(RecipeError, match="did you mean 'int8'"):
        check_dtype("int9")
    monkeypatch.setattr("regear.models.precision.pick_device", lambda name: torch.device("cuda:0"))
    with pytest.raises(RecipeError, match="--device cpu"):
        check_dtype("int8")
    check_dtype("bfloat16")
