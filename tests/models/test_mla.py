"""The regear_mla modelling file: equal to its naive form, cached equal to uncached, padded equal to single."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, StaticCache

from regear.models.mla import RegearMlaConfig, RegearMlaForCausalLM
from regear.ops.mla import latent_attention

JOINT, SEPARATE, OVERLAP = [10, 10, 10], [14, 6, 8], [12, 9, 7]


def build(ranks=(JOINT, SEPARATE, OVERLAP), bias=True, qk_norm=True, **changes):
    torch.manual_seed(0)
    config = RegearMlaConfig(
        vocab_size=61,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=len(ranks),
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=8,
        latent_ranks=[list(r) for r in ranks],
        q_bias=bias,
        kv_bias=bias,
        o_bias=bias,
        qk_norm=qk_norm,
        eos_token_id=60,
        pad_token_id=60,
        bos_token_id=None,
        **changes,
    )
    model = RegearMlaForCausalLM(config).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.uniform_(0.5, 1.5) if "norm" in name else parameter.normal_(0, 0.4)
    return model


@pytest.mark.parametrize("ranks", [JOINT, SEPARATE, OVERLAP])
@pytest.mark.parametrize(
    ("bias", "qk_norm", "norm_width"), [(False, False, "head"), (True, True, "head"), (True, True, "all")]
)
def test_attention_equals_its_naive_form(ranks, bias, qk_norm, norm_width):
    model = build([ranks], bias, qk_norm, qk_norm_width=norm_width)
    layer = model.model.layers[0].self_attn
    hidden = torch.randn(1, 9, 24, dtype=torch.float64)
    rotary = model.model.rotary_emb(hidden, torch.arange(9)[None])
    ours, _ = layer(hidden, rotary, attention_mask=None)
    query = layer.q_proj(hidden)[0]
    if qk_norm:
        query = layer.q_norm(query if norm_width == "all" else query.view(9, 6, 8))
    query = query.view(9, 6, 8)
    zeros = torch.zeros(3, 8, dtype=torch.float64)
    naive = latent_attention(
        query,
        layer.kv_a_proj(hidden)[0],
        layer.k_b_proj.weight.view(3, 8, -1),
        layer.v_b_proj.weight.view(3, 8, -1),
        layer.k_b_proj.bias.view(3, 8) if bias else zeros,
        layer.v_b_proj.bias.view(3, 8) if bias else zeros,
        model.model.rotary_emb.inv_freq.double(),
        layer.k_norm.weight if qk_norm else None,
    )
    # transformers computes the rotation's angles and the norms in float32
    torch.testing.assert_close(ours[0], layer.o_proj(naive.flatten(1)), atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("make", [DynamicCache, lambda config: StaticCache(config=config, max_cache_len=24)])
@pytest.mark.parametrize("first", [1, 5])
def test_cached_steps_equal_one_pass(make, first):
    model = build()
    ids = torch.randint(0, 60, (2, 14))
    whole = model(ids).logits
    cache = make(config=model.config)
    parts = [model(ids[:, :first], past_key_values=cache, use_cache=True).logits]
    parts += [model(ids[:, i : i + 3], past_key_values=cache, use_cache=True).logits for i in range(first, 14, 3)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-6, rtol=1e-6)


def test_the_cache_holds_latents_and_nothing_else():
    model = build()
    cache = DynamicCache(config=model.config)
    model(torch.randint(0, 60, (2, 7)), past_key_values=cache, use_cache=True)
    for layer, (rank, _, _) in zip(cache.layers, model.config.latent_ranks, strict=True):
        assert layer.keys.shape == (2, 1, 7, rank)
        assert layer.values.numel() == 0


def test_crop_takes_tokens_back():
    model = build()
    ids = torch.randint(0, 60, (1, 10))
    cache = DynamicCache(config=model.config)
    model(ids, past_key_values=cache, use_cache=True)
    cache.crop(-4)
    again = model(ids[:, 6:], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(again, model(ids).logits[:, 6:], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_decode_as_they_do_alone(side):
    model = build()
    rows = [torch.randint(0, 60, (n,)) for n in (4, 9)]
    steps = torch.randint(0, 60, (2, 3))
    ids, mask = torch.full((2, 9), 60), torch.zeros(2, 9, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(9 - len(row), 9) if side == "left" else slice(0, len(row))
        ids[i, place], mask[i, place] = row, 1
    cache = DynamicCache(config=model.config)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    for step in range(3):
        mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
        positions = (mask.sum(-1, keepdim=True) - 1).long()
        token = steps[:, step : step + 1]
        together = model(
            token, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        ).logits
    for i, row in enumerate(rows):
        alone = model(torch.cat([row, steps[i]])[None]).logits[0, -1]
        torch.testing.assert_close(together[i, -1], alone, atol=1e-6, rtol=1e-6)


def test_generate_batched_left_padded_equals_single():
    model = build()
    rows = [torch.randint(0, 60, (n,)) for n in (3, 8)]
    singles = [model.generate(r[None], max_new_tokens=8, do_sample=False, eos_token_id=None)[0, len(r) :] for r in rows]
    ids, mask = torch.full((2, 8), 60), torch.zeros(2, 8, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, -len(row) :], mask[i, -len(row) :] = row, 1
    together = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, eos_token_id=None)[:, 8:]
    assert together.tolist() == [s.tolist() for s in singles]


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"cache_implementation": "static"}])
def test_generate_equals_uncached(settings):
    model = build()
    ids = torch.randint(0, 60, (2, 6))
    mask = torch.ones_like(ids)
    fixed = dict(max_new_tokens=6, do_sample=False, eos_token_id=None, attention_mask=mask)
    beams = {k: v for k, v in settings.items() if k == "num_beams"}
    uncached = model.generate(ids, use_cache=False, **fixed, **beams)
    assert model.generate(ids, **fixed, **settings).tolist() == uncached.tolist()


def test_attention_implementations_agree():
    model = build()
    ids = torch.randint(0, 60, (2, 9))
    sdpa = model(ids).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(ids).logits, sdpa, atol=1e-5, rtol=1e-5)  # eager takes its softmax in float32


def test_gradients_reach_every_parameter_and_survive_checkpointing():
    model = build().train()
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
    model = build().float()
    model.save_pretrained(tmp_path)
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ids = torch.randint(0, 60, (1, 9))
    assert torch.equal(again(ids).logits, model.eval()(ids).logits)


@pytest.mark.parametrize("ranks", [[], [[4, 4, 4]], [[4, 5, 4]] * 3, [[9, 4, 4]] * 3, [[4, 4, 0]] * 3])
def test_config_refuses_impossible_ranks(ranks):
    with pytest.raises(Exception, match="rank"):
        RegearMlaConfig(num_hidden_layers=3, latent_ranks=ranks)


EXPERTS = dict(expert_layers=[1], num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, norm_topk_prob=True)
LAYERS = [{"post_norm": True, "qk_norm_width": "all"}, EXPERTS]


@pytest.mark.parametrize("changes", LAYERS)
def test_other_layers_cache_train_and_save(changes, tmp_path):
    model = build(**changes).float()
    ids = torch.randint(0, 60, (2, 14))
    whole, cache = model(ids).logits, DynamicCache(config=model.config)
    parts = [model(ids[:, i : i + 2], past_key_values=cache, use_cache=True).logits for i in range(0, 14, 2)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-4, rtol=1e-4)
    model.train()(ids, labels=ids, use_cache=False).loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
    model.eval().save_pretrained(tmp_path)
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.equal(again(ids).logits, whole)


def test_experts_are_saved_apart_and_start_small(tmp_path):
    build(**EXPERTS).float().save_pretrained(tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert {f"model.layers.1.mlp.experts.{i}.up_proj.weight" for i in range(4)} < names
    assert "model.layers.0.mlp.up_proj.weight" in names
    fresh = RegearMlaForCausalLM(AutoConfig.from_pretrained(tmp_path)).model.layers[1].mlp
    for parameter in fresh.parameters():
        assert 0.01 < parameter.std() < 0.03


def test_norms_after_attention_and_mlp_follow_olmo2():
    """The layer around attention, with the same sublayers, equals transformers' own."""
    from transformers.models.olmo2.modeling_olmo2 import Olmo2DecoderLayer

    layer = build(post_norm=True, qk_norm_width="all").model.layers[0]
    hidden = torch.randn(1, 9, 24, dtype=torch.float64)
    rotary = torch.ones(1, 9, 8), torch.zeros(1, 9, 8)
    ours = layer(hidden, position_embeddings=rotary)
    assert torch.equal(ours, Olmo2DecoderLayer.forward(layer, hidden, position_embeddings=rotary))
