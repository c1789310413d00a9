"""A checkpoint run layer by layer is the checkpoint loaded whole; its end in chunks is its end at once."""

import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import regear
from regear.conversion import head as head_module
from regear.conversion.head import drawn_gradient, token_losses
from regear.conversion.layers import Layers, pad
from regear.conversion.stream import Source, batches, edited, losses
from regear.core.errors import CheckpointError
from regear.measure.speed import cache_size
from regear.models.families import describe
from regear.models.load import load_model
from regear.models.store import Store
from regear.ops.divergence import token_kl, token_nll
from tests.tiny import small

ROWS = [list(range(5, 45)), list(range(100, 121)), list(range(60, 93))]


@pytest.fixture
def converted(tiny, family, text, tmp_path, cache):
    regear.convert(tiny(family), tmp_path / "out", *small(text), to="mla")
    return tmp_path / "out"


def test_layer_by_layer_is_the_loaded_model(tiny, family, converted):
    for path in (tiny(family), converted):
        layers, model = Layers(Store(path)), load_model(path)
        layers.require()
        states, head = layers.final(pad(ROWS)), layers.head()
        for row, state in zip(ROWS, states, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([row])).logits[0]
            torch.testing.assert_close(
                state[: len(row)] @ head.rows(0, head.vocabulary).T, logits, atol=2e-4, rtol=1e-4
            )
        assert layers.cache_size() == cache_size(model)


def test_a_converted_checkpoint_is_checked_by_name_and_shape(tiny, text, tmp_path, cache):
    regear.convert(tiny("llama"), tmp_path / "out", *small(text), to="mla")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    name = "model.layers.1.self_attn.kv_a_proj.weight"
    for damage, message in (
        ({k: v for k, v in tensors.items() if k != name}, f"{name} is missing"),
        ({**tensors, name: tensors[name][1:].clone()}, "has shape"),
        ({**tensors, "model.layers.1.more": torch.ones(1)}, "layers.1.more"),
    ):
        shutil.copytree(tmp_path / "out", tmp_path / "bad", dirs_exist_ok=True)
        save_file(damage, tmp_path / "bad" / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=message):
            Layers(Store(tmp_path / "bad")).require()


@pytest.mark.parametrize("entries", [1 << 20, 100, 7])
def test_the_end_in_chunks_is_the_end_at_once(entries, tiny, monkeypatch):
    monkeypatch.setattr(head_module, "CHUNK_ENTRIES", entries)
    monkeypatch.setattr(head_module, "BLOCK", 5)
    head = Layers(Store(tiny("llama"))).head()
    torch.manual_seed(0)
    states, others = torch.randn(17, 48), torch.randn(17, 48)
    targets, weight = torch.randint(0, 260, (17,)), head.rows(0, 260)
    nll, kl = token_losses([head, head], [states, others], targets)
    torch.testing.assert_close(nll[1].float(), token_nll(others @ weight.T, targets), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(kl[1].float(), token_kl(states @ weight.T, others @ weight.T), atol=1e-4, rtol=1e-4)
    uniform = torch.rand(17, dtype=torch.float64)
    entry = states.clone().requires_grad_()
    logits = entry @ weight.T
    drawn = (logits.double().softmax(-1).cumsum(-1) <= uniform[:, None]).sum(1)
    (expected,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, drawn, reduction="sum"), entry)
    torch.testing.assert_close(drawn_gradient(head, states, uniform), expected, atol=1e-4, rtol=1e-4)


def test_a_variant_may_replace_a_whole_attention_module(tiny):
    store = Store(tiny("llama"))
    source = Source(store, describe(store.config))
    data = batches(ROWS, [1.0] * 3)

    class Nothing(torch.nn.Module):
        def forward(self, hidden_states, **kwargs):
            return torch.zeros_like(hidden_states), None

    asked = []

    def variant(index):
        asked.append(index)
        return Nothing() if index == 1 else None

    same, changed = losses(source, data, [lambda index: None, variant])
    assert asked == [0, 1, 2]
    assert same.kl == [0.0] * 3
    model = load_model(tiny("llama"))
    model.model.layers[1].self_attn = Nothing()
    for row, nll in zip(ROWS, changed.nll, strict=True):
        ids = torch.tensor([row])
        with torch.no_grad():
            assert nll == pytest.approx(float(model(ids, labels=ids).loss) * (len(row) - 1), rel=1e-4)
    layer = source.layer(0)
    kept = layer.self_attn
    with edited(layer, Nothing()):
        assert layer.self_attn is not kept
    assert layer.self_attn is kept


def test_long_rows_make_small_batches():
    rows = [[1] * 1500, [1] * 10, [1] * 750, [1] * 9000, [1] * 5]
    found = batches(rows, [1.0] * 5)
    assert [tuple(batch.ids.shape) for batch in found] == [(1, 1500), (2, 750), (1, 9000), (1, 5)]
    assert [int(batch.real.sum()) for batch in found] == [1500, 760, 9000, 5]
    assert math.isclose(sum(float(batch.weight.sum()) for batch in found), 11265)


def test_models_that_do_not_fit_are_not_loaded_whole(tiny, text, tmp_path, cache, monkeypatch):
    from regear.conversion import verify

    def refuse(*arguments):
        raise AssertionError("a model was loaded whole")

    monkeypatch.setattr(verify, "load_model", refuse)
    monkeypatch.setattr(verify, "available_memory_bytes", lambda: 100_000)
    result = regear.convert(tiny("llama"), tmp_path / "out", *small(text), to="mla")
    assert result["perplexity"]["ratio"] > 0
    assert result["kv_floats_per_token"] == {"before": 144, "after": 72}
    assert "not measured" in (tmp_path / "out.run" / "report.html").read_text().lower()


def test_more_memory_than_allowed_is_refused_before_any_work(tiny, text, cache):
    from regear.core.errors import RecipeError

    with pytest.raises(RecipeError, match=r"found --max-memory 0\.01"):
        regear.convert(tiny("llama"), None, *small(text), to="mla", dry_run=True, max_memory=0.01)
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(RecipeError, match="wanted gigabytes"):
            regear.convert(tiny("llama"), None, *small(text), to="mla", dry_run=True, max_memory=wrong)
