"""Caches that store few bits: for every family and for latents, in any order of feeding, counted byte by byte."""

import pytest
import torch
from transformers import Cache, Gemma2Config
from transformers.cache_utils import DynamicLayer

import regear
from regear.core.errors import IncompatibleModel, RecipeError
from regear.measure.speed import cache_bytes, filled_cache, stored_bytes
from regear.models.kvcache import BLOCK, FIRST, StoredLayer, kv_cache, parts
from regear.models.load import load_model
from regear.ops.kvquant import dequantise, group_width, quantise, spread_out
from tests.engines.stock import dense_deepseek
from tests.tiny import small


@pytest.fixture(scope="module")
def latent(tiny, text, tmp_path_factory):
    """A converted tiny model."""
    folder = tmp_path_factory.mktemp("latent")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGEAR_HOME", str(folder / "home"))
        regear.convert(tiny("llama"), folder / "out", *small(text), to="mla")
    return folder / "out"


def tokens(length, rows=1):
    return torch.arange(length * rows).mul(7).remainder(250).reshape(rows, length)


@torch.no_grad()
def feed(model, ids, kind, cuts):
    """Logits of every position when the ids arrive in pieces cut at `cuts`."""
    cache, start, found = kv_cache(model.config, kind), 0, []
    for end in [*cuts, ids.shape[1]]:
        found.append(model(input_ids=ids[:, start:end], past_key_values=cache, use_cache=True).logits)
        start = end
    return torch.cat(found, 1), cache


class Rounded(DynamicLayer):
    """The naive twin: plain full-precision tensors, rounded as the definition says at every read."""

    def __init__(self, bits, latent):
        super().__init__()
        self.bits, self.latent = bits, latent

    def update(self, keys, values, *args, **kwargs):
        before = self.get_seq_length()
        keys, values = super().update(keys.bfloat16().float(), values.bfloat16().float())
        full = max(0, before - FIRST) // BLOCK
        return self.rounded(keys, full, True), self.rounded(values, full, self.latent)

    def rounded(self, x, full, by_channel):
        x = x.clone()
        for i in range(full if x.shape[-1] else 0):
            place = slice(FIRST + i * BLOCK, FIRST + (i + 1) * BLOCK)
            block = x[:, :, place]
            if by_channel:
                block = dequantise(quantise(block.transpose(-1, -2), self.bits), self.bits, BLOCK).transpose(-1, -2)
            else:
                group = group_width(x.shape[-1])
                groups = spread_out(block).unflatten(-1, (-1, group))
                block = spread_out(dequantise(quantise(groups, self.bits), self.bits, group).flatten(-2))
            x[:, :, place] = block
        return x


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "latent"])
@torch.no_grad()
def test_reading_equals_rounding_full_precision_tensors(name, kind, tiny, latent):
    model = load_model(latent if name == "latent" else tiny(name))
    ids, bits = tokens(FIRST + 2 * BLOCK + 9), {"int8": 8, "int4": 4}[kind]
    twin = Cache(layers=[Rounded(bits, name == "latent") for _ in range(3)])
    cache = kv_cache(model.config, kind)
    for part in parts(ids.shape[1], kind):
        found = model(input_ids=ids[:, part], past_key_values=cache, use_cache=True).logits
        expected = model(input_ids=ids[:, part], past_key_values=twin, use_cache=True).logits
        assert torch.allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("name", ["llama", "latent"])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_blocks_read_what_decoding_reads(name, kind, tiny, latent):
    model = load_model(latent if name == "latent" else tiny("llama"))
    ids = tokens(FIRST + BLOCK + 20)
    one_by_one, _ = feed(model, ids, kind, range(1, ids.shape[1]))
    in_blocks, _ = feed(model, ids, kind, [part.stop for part in parts(ids.shape[1], kind)][:-1])
    plain, _ = feed(model, ids, None, [])
    # Not to the last bit: float noise moves a number across the border between two codes now and then.
    assert (one_by_one - in_blocks).abs().mean() < 0.1 * (in_blocks - plain).abs().mean()


@torch.no_grad()
def test_stock_mla_models_store_latents_and_rotated_keys_along_channels(tmp_path):
    """A strict export is a stock DeepSeek model: latents where keys lie, rotated keys where values lie."""
    widths = dict(kv_lora_rank=24, qk_rope_head_dim=8, qk_nope_head_dim=12, v_head_dim=12)
    model = load_model(dense_deepseek(tmp_path / "stock", layers=2, **widths))
    ids = tokens(300)
    plain = model(input_ids=ids).logits
    errors = []
    for kind in ("int8", "int4"):
        found, cache = feed(model, ids, kind, [part.stop for part in parts(300, kind)][:-1])
        errors.append(float((found - plain).square().mean() / plain.square().mean()))
        assert [shelf.by_channel for shelf in cache.layers[0].shelves] == [True, True]
        assert [shelf.width for shelf in cache.layers[0].shelves] == [24, 8]
    assert errors[0] < 1e-3
    assert errors[0] < errors[1] < 0.1
    assert cache_bytes(model)["int8"] == 2 * 32 * (1 + 4 / BLOCK)


def test_more_bits_are_closer(tiny, latent):
    for place in (tiny("llama"), latent):
        model = load_model(place)
        ids = tokens(300)
        plain, _ = feed(model, ids, None, [])
        errors = []
        for kind in ("bf16", "int8", "int4"):
            found, _ = feed(model, ids, kind, [part.stop for part in parts(300, kind)][:-1])
            errors.append(float((found - plain).square().mean()))
        assert 0 < errors[0] < errors[2]
        assert 0 < errors[1] < errors[2]


@pytest.mark.parametrize("name", ["llama", "qwen3", "latent"])
@pytest.mark.parametrize("kind", ["bf16", "int8", "int4"])
def test_bytes_are_those_of_the_formula(name, kind, tiny, latent):
    model = load_model(latent if name == "latent" else tiny(name))
    size = cache_bytes(model)
    short, long = (filled_cache(model, FIRST + blocks * BLOCK, kv=kind) for blocks in (1, 3))
    assert stored_bytes(long) - stored_bytes(short) == 2 * BLOCK * size[kind]
    if kind != "bf16":
        assert stored_bytes(short) == FIRST * size["bf16"] + BLOCK * size[kind]
        assert not any(t.is_floating_point() and t.numel() > 1e4 for s in long.layers for t in s.shelves[0].tensors())
    assert size["int4"] < size["int8"] < size["bf16"]


def test_generation_works_with_every_kind(tiny, latent):
    for place in (tiny("llama"), latent):
        model = load_model(place)
        ids = tokens(90)
        fixed = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
        plain = model.generate(ids, **fixed)
        found = model.generate(ids, past_key_values=kv_cache(model.config, "bf16"), **fixed)
        assert found.shape == plain.shape
        beams = model.generate(ids, past_key_values=kv_cache(model.config, "int8"), num_beams=2, **fixed)
        assert beams.shape == plain.shape


def test_a_crop_forgets_the_newest(tiny):
    model = load_model(tiny("llama"))
    ids = tokens(FIRST + BLOCK + 30)
    _, cache = feed(model, ids, "int8", [40])
    for removed in (3, 40):
        before = cache.get_seq_length()
        cache.crop(-removed)
        assert cache.get_seq_length() == before - removed
    length = cache.get_seq_length()
    with torch.no_grad():
        again = model(input_ids=ids[:, length:], past_key_values=cache, use_cache=True).logits
        expected = model(input_ids=ids).logits[:, length:]
    assert torch.allclose(again, expected, atol=0.3)
    cache.crop(-cache.get_seq_length())
    assert cache.get_seq_length() == 0
    with pytest.raises(ValueError, match="negative"):
        cache.crop(5)


def test_rows_can_be_picked_repeated_and_reordered():
    layer = StoredLayer(8)
    x = torch.randn(2, 2, FIRST + BLOCK + 5, 8)
    layer.update(x, x)
    layer.stored_bytes()
    base = layer.shelves[0].read(torch.float32)
    layer.reorder_cache(torch.tensor([1, 0]))
    assert torch.equal(layer.shelves[0].read(torch.float32), base[[1, 0]])
    layer.batch_repeat_interleave(2)
    assert torch.equal(layer.shelves[0].read(torch.float32), base[[1, 1, 0, 0]])
    layer.batch_select_indices(torch.tensor([3]))
    assert torch.equal(layer.shelves[0].read(torch.float32), base[[0]])
    layer.reset()
    assert layer.get_seq_length() == 0


def test_what_cannot_be_stored_is_refused(tiny):
    model = load_model(tiny("llama"))
    with pytest.raises(RecipeError, match="did you mean 'int4'"):
        kv_cache(model.config, "int14")
    with pytest.raises(IncompatibleModel, match="SlidingWindow"):
        kv_cache(Gemma2Config(num_hidden_layers=2), "int8")
    layer = StoredLayer(8)
    huge = torch.full((1, 1, FIRST + BLOCK, 4), 1e6)
    layer.update(huge, huge)
    with pytest.raises(IncompatibleModel, match="float16"):
        layer.update(huge, huge)
