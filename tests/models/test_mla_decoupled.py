"""The decoupled layer: naive = expanded = absorbed; every cache, mask and way of generating gives the same tokens."""

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

from regear.models.mla import RegearMlaForCausalLM
from regear.models.mla.modeling_regear_mla import RegearMlaDecoupledAttention
from regear.ops.mla import decoupled_attention
from tests.canonical import HEADS, canonical_config, canonical_model


def one_layer(**changes):
    model = canonical_model(num_hidden_layers=1, **changes).double()
    return model, model.model.layers[0].self_attn


def rotary(model, positions):
    """Angles in float64; the model's own are float32."""
    angles = positions[..., None].double() * model.model.rotary_emb.inv_freq.double()
    return torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)


@pytest.mark.parametrize("pairs", [[0, 2], [3, 1], [0, 0]])
@pytest.mark.parametrize(("bias", "qk_norm"), [(False, False), (True, False), (True, True)])
def test_attention_equals_its_naive_form(pairs, bias, qk_norm):
    model, layer = one_layer(rope_pairs=[pairs], bias=bias, qk_norm=qk_norm)
    hidden, positions = torch.randn(1, 9, 24, dtype=torch.float64), torch.arange(9)[None]
    ours, _ = layer(hidden, rotary(model, positions))
    query = layer.q_proj(hidden)[0].unflatten(-1, (HEADS, -1))
    if qk_norm:
        norm = (query.square().mean(-1, keepdim=True) + model.config.rms_norm_eps).rsqrt()
        query = torch.einsum("thd,hnd->thn", query * norm * layer.q_norm_weight, layer.q_up)
    latent, key = layer.kv_a_proj_with_mqa(hidden)[0].split([10, 4], -1)
    frequencies = model.model.rotary_emb.inv_freq.double()[pairs]
    up = layer.kv_b_proj.weight.unflatten(0, (HEADS, -1))
    naive = decoupled_attention(query, latent, key, up, frequencies, 8**-0.5)
    # transformers' norm computes in float32
    torch.testing.assert_close(ours[0], layer.o_proj(naive.flatten(1)), atol=2e-6, rtol=2e-6)


def random_mask(queries, total, kind):
    """Causal, with two pads on the left of the second row."""
    past = total - queries
    allowed = torch.arange(total)[None] <= torch.arange(queries)[:, None] + past
    allowed = allowed.expand(2, 1, -1, -1).clone()
    allowed[1, ..., :2] = False
    allowed[1, :, torch.arange(queries), torch.arange(queries) + past] = True
    return allowed if kind == "bool" else torch.zeros(allowed.shape).masked_fill(~allowed, -1e9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("queries", [1, 7, 171, 512])
@pytest.mark.parametrize(("implementation", "kind"), [("sdpa", "bool"), ("sdpa", "float"), ("eager", "float")])
@pytest.mark.parametrize("extra", [False, True])
def test_absorbed_equals_expanded(dtype, queries, implementation, kind, extra, monkeypatch):
    model = canonical_model(num_hidden_layers=1, bias=extra, qk_norm=extra).to(dtype)
    model.set_attn_implementation(implementation)
    layer, outputs = model.model.layers[0].self_attn, {}
    hidden, new = torch.randn(2, 33, 24, dtype=dtype), torch.randn(2, queries, 24, dtype=dtype)
    mask = random_mask(queries, 33 + queries, kind)
    mask = mask if kind == "bool" else mask.to(dtype)
    for absorbs in (False, True):
        monkeypatch.setattr(layer, "absorbs", lambda *_, answer=absorbs: answer)
        cache = DynamicCache(config=model.config)
        layer(
            hidden,
            model.model.rotary_emb(hidden, torch.arange(33)[None]),
            random_mask(33, 33, kind).to(mask.dtype),
            cache,
        )
        angles = model.model.rotary_emb(hidden, torch.arange(33, 33 + queries)[None])
        outputs[absorbs] = layer(new, angles, mask, cache)
    tolerance = 2e-4 if dtype == torch.float32 else 1e-11 if implementation == "sdpa" else 1e-5
    torch.testing.assert_close(outputs[True][0], outputs[False][0], atol=tolerance, rtol=tolerance)
    if implementation == "eager":
        assert outputs[True][1].shape == (2, HEADS, queries, 33 + queries)
        torch.testing.assert_close(outputs[True][1], outputs[False][1], atol=1e-5, rtol=1e-4)


def test_gradients_equal_those_of_the_naive_form():
    model, layer = one_layer(qk_norm=False)
    model.train()
    hidden, positions = torch.randn(1, 6, 24, dtype=torch.float64), torch.arange(6)[None]
    ours, _ = layer(hidden, rotary(model, positions))
    (ours**2).sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}
    layer.zero_grad()
    query = layer.q_proj(hidden)[0].unflatten(-1, (HEADS, -1))
    latent, key = layer.kv_a_proj_with_mqa(hidden)[0].split([10, 4], -1)
    up = layer.kv_b_proj.weight.unflatten(0, (HEADS, -1))
    frequencies = model.model.rotary_emb.inv_freq.double()[[0, 2]]
    naive = layer.o_proj(decoupled_attention(query, latent, key, up, frequencies, 8**-0.5).flatten(1))
    (naive**2).sum().backward()
    for name, parameter in layer.named_parameters():
        if name != "kv_a_layernorm.weight":
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-5, rtol=1e-5)


def test_the_break_even_counts_operations():
    _, layer = one_layer(latent_ranks=[[512] * 3], nope_dim=128, value_dim=128)
    mask = torch.ones(1)
    assert layer.absorbs(1, 8192, mask)
    assert layer.absorbs(170, 10**6, mask)
    assert not layer.absorbs(171, 10**6, mask)
    assert not layer.absorbs(64, 64, mask)  # nothing cached: expanding once is cheapest
    assert not layer.absorbs(2, 10**6, None)
    layer.train()
    assert not layer.absorbs(1, 8192, mask)


def test_both_paths_are_taken(monkeypatch):
    model, taken = canonical_model(), []
    for name in ("expand_kv", "absorbed"):
        function = getattr(RegearMlaDecoupledAttention, name)

        def spy(*args, function=function, name=name, **kwargs):
            taken.append(name)
            return function(*args, **kwargs)

        monkeypatch.setattr(RegearMlaDecoupledAttention, name, spy)
    model.generate(torch.randint(0, 60, (1, 9)), max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert taken == ["expand_kv"] * 3 + ["absorbed"] * 6


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("make", [DynamicCache, lambda config: StaticCache(config=config, max_cache_len=24)])
@pytest.mark.parametrize("first", [1, 5])
def test_cached_steps_equal_one_pass(implementation, make, first):
    model = canonical_model(qk_norm=True, bias=True)
    model.set_attn_implementation(implementation)
    ids = torch.randint(0, 60, (2, 14))
    whole = model(ids).logits
    cache = make(config=model.config)
    parts = [model(ids[:, :first], past_key_values=cache, use_cache=True).logits]
    parts += [model(ids[:, i : i + 3], past_key_values=cache, use_cache=True).logits for i in range(first, 14, 3)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-4, rtol=2e-4)


def test_the_cache_holds_latents_and_shared_keys():
    model = canonical_model()
    cache = DynamicCache(config=model.config)
    model(torch.randint(0, 60, (2, 7)), past_key_values=cache, use_cache=True)
    for layer, (rank, _, _) in zip(cache.layers, model.config.latent_ranks, strict=True):
        assert layer.keys.shape == (2, 1, 7, rank)
        assert layer.values.shape == (2, 1, 7, model.config.rope_dim)


def test_crop_takes_tokens_back():
    model = canonical_model()
    ids = torch.randint(0, 60, (1, 10))
    cache = DynamicCache(config=model.config)
    model(ids, past_key_values=cache, use_cache=True)
    cache.crop(-4)
    again = model(ids[:, 6:], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(again, model(ids).logits[:, 6:], atol=2e-4, rtol=2e-4)


def test_generate_batched_left_padded_equals_single():
    model = canonical_model().double()
    rows = [torch.randint(0, 60, (n,)) for n in (3, 8)]
    fixed = dict(max_new_tokens=8, do_sample=False, eos_token_id=None)
    singles = [model.generate(r[None], **fixed)[0, len(r) :] for r in rows]
    ids, mask = torch.full((2, 8), 60), torch.zeros(2, 8, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, -len(row) :], mask[i, -len(row) :] = row, 1
    together = model.generate(ids, attention_mask=mask, **fixed)[:, 8:]
    assert together.tolist() == [s.tolist() for s in singles]


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"cache_implementation": "static"}])
def test_generate_equals_uncached(settings):
    model = canonical_model().double()
    ids = torch.randint(0, 60, (2, 6))
    fixed = dict(max_new_tokens=6, do_sample=False, eos_token_id=None, attention_mask=torch.ones_like(ids))
    beams = {k: v for k, v in settings.items() if k == "num_beams"}
    uncached = model.generate(ids, use_cache=False, **fixed, **beams)
    assert model.generate(ids, **fixed, **settings).tolist() == uncached.tolist()


def test_a_decode_step_compiles_as_one_graph():
    model = canonical_model()
    assert model._can_compile_fullgraph
    cache = StaticCache(config=model.config, max_cache_len=16)
    ids = torch.randint(0, 60, (1, 6))
    model(ids, past_key_values=cache, use_cache=True)
    step = torch.compile(model, fullgraph=True, backend="eager")
    token = torch.randint(0, 60, (1, 1))
    compiled = step(token, past_key_values=cache, use_cache=True).logits
    whole = model(torch.cat([ids, token], 1)).logits[:, -1:]
    torch.testing.assert_close(compiled, whole, atol=2e-4, rtol=2e-4)


def test_gradients_reach_every_parameter_and_survive_checkpointing():
    model = canonical_model(bias=True, qk_norm=True).train()
    ids = torch.randint(0, 60, (2, 9))

    def gradients():
        model.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    plain = gradients()
    assert all(g.abs().sum() > 0 for g in plain.values())
    model.gradient_checkpointing_enable()
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[name])


def test_saves_and_loads_through_auto_classes(tmp_path):
    model = canonical_model(qk_norm=True)
    model.save_pretrained(tmp_path)
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert (again.config.kv_lora_rank, again.config.qk_rope_head_dim) == (10, 4)
    assert not hasattr(canonical_config(latent_ranks=[[10] * 3, [8] * 3, [9] * 3]), "kv_lora_rank")
    ids = torch.randint(0, 60, (1, 9))
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_latents_of_odd_width_are_a_model_too(tmp_path):
    model = canonical_model(latent_ranks=[[9] * 3] * 3)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.head_dim % 2 == 1
    tokens = torch.arange(12)[None]
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    with pytest.raises(Exception, match="even rotary dimension"):
        canonical_config(source_head_dim=11)


def test_a_fresh_model_has_a_neutral_latent_norm():
    layer = RegearMlaForCausalLM(canonical_config(qk_norm=True)).model.layers[0].self_attn
    x = torch.randn(3, 10)
    torch.testing.assert_close(layer.kv_a_layernorm(x), x, rtol=1e-6, atol=1e-6)
    half = x.bfloat16()
    torch.testing.assert_close(layer.bfloat16().kv_a_layernorm(half), half, rtol=0, atol=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rope_dim": 3, "rope_pairs": [[0]] * 3},
        {"rope_pairs": [[0, 2]]},
        {"rope_pairs": [[0, 4]] * 3},
        {"latent_ranks": [[10, 10, 9]] * 3},
        {"num_key_value_heads": 3},
        {"rope_mode": "partial"},
        {"qk_norm": True, "qk_norm_width": "all"},
    ],
)
def test_config_refuses_what_cannot_be(wrong):
    with pytest.raises(Exception, match=r"rope|latent ranks|decoupled"):
        canonical_config(**wrong)
