"""Models that the strict formats hold exactly, written from their source: no calibration, no loss, the source's logits."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from regear.conversion.convert import silent
from regear.conversion.export import Replaced, Replacement, write_checkpoint
from regear.models.families import describe
from regear.models.formats.write import in_format, write
from regear.models.mla import RegearMlaConfig
from regear.models.store import Store
from tests.tiny import make_model

HEADS, WIDTH, LAYERS = 4, 12, 3
ATTENTION = tuple(f"self_attn.{x}_proj.weight" for x in "qkvo")


def exact_layer(store, index, kv_heads):
    """Keys and values of all groups as one latent; with one group the key itself is the shared, rotated key."""
    q, k, v, o = (store.read(f"model.layers.{index}.{name}") for name in ATTENTION)
    rope = k if kv_heads == 1 else torch.zeros(WIDTH, k.shape[1])
    queries = q.unflatten(0, (HEADS, WIDTH))
    nope = torch.zeros_like(queries) if kv_heads == 1 else queries
    rotated = queries if kv_heads == 1 else torch.zeros_like(queries)
    full = torch.eye(2 * kv_heads * WIDTH).view(2, kv_heads, WIDTH, -1).repeat_interleave(HEADS // kv_heads, 1)
    return {
        "self_attn.q_proj.weight": torch.cat([nope, rotated], 1).flatten(0, 1),
        "self_attn.kv_a_proj_with_mqa.weight": torch.cat([k, v, rope]),
        "self_attn.kv_a_layernorm.weight": torch.full((len(k) + len(v),), 2.0**13),
        "self_attn.kv_b_proj.weight": torch.cat([full[0], full[1]], 1).flatten(0, 1),
        "self_attn.o_proj.weight": o,
    }


def replacement(store, spec):
    rank = spec.kv_width

    def config(dtype):
        return RegearMlaConfig(
            **{key: store.config[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "rms_norm_eps")},
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            head_dim=WIDTH,
            rope_parameters=store.config["rope_parameters"],
            tie_word_embeddings=spec.tied,
            rope_mode="decoupled",
            rope_dim=WIDTH,
            nope_dim=WIDTH,
            value_dim=WIDTH,
            rope_pairs=[list(range(WIDTH // 2))] * LAYERS,
            latent_ranks=[[rank] * 3] * LAYERS,
            dtype=dtype,
        )

    shapes = {name: tuple(t.shape) for name, t in exact_layer(store, 0, spec.kv_heads).items()}
    return Replacement(ATTENTION, lambda _: shapes, lambda i: exact_layer(store, i, spec.kv_heads), config)


@pytest.mark.parametrize("name", ["regear_mla", "deepseek_v3", "youtu"])
@pytest.mark.parametrize("family", ["llama", "llama-tied", "llama3-rope", "mistral"])
@pytest.mark.parametrize("eps", [1e-6, 1e-5])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_full_rank_is_the_source(name, family, eps, kv_heads, tmp_path):
    source = make_model(family, tmp_path / "from", num_key_value_heads=kv_heads, rms_norm_eps=eps)
    store = Store(source)
    spec = describe(store.config)
    change = replacement(store, spec)
    (tmp_path / "to").mkdir()
    if name == "regear_mla":
        write_checkpoint(store, spec, change, tmp_path / "to", silent)
    else:
        write(in_format(Replaced(store, spec, change), name), tmp_path / "to", torch.float32, silent)
    ids = torch.randint(0, 256, (2, 40))
    # With one group every key is shared and rotated; with more, keys stand still, so that all positions must be equal.
    where = {} if kv_heads == 1 else {"position_ids": torch.zeros_like(ids)}
    before, after = (
        AutoModelForCausalLM.from_pretrained(tmp_path / x, dtype=torch.float32).eval() for x in ("from", "to")
    )
    expected = before(ids, **where).logits
    assert expected.std() > 1
    assert (after(ids, **where).logits - expected).abs().max() < 1e-4
