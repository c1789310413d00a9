"""vLLM serves our decoupled layers from their latents, biases and query norm included, and unequal ranks in full."""

import shutil

import pytest
import torch

import regear
from regear.models.mla import RegearMlaConfig, RegearMlaForCausalLM, modeling_regear_mla
from tests.engines.engine import call, greedy, serve
from tests.engines.test_vllm import PLAIN_ROPE, PROMPTS, TOKENS
from tests.tiny import byte_tokenizer, randomise, small

pytestmark = pytest.mark.engines
MODULE = "modeling_regear_mla"
FORMS = {
    "plain": {},
    "every bias": dict(q_bias=True, kv_bias=True, o_bias=True),
    "query norm": dict(qk_norm=True, kv_bias=True),
    "chosen frequencies": dict(rope_pairs=[[3 * i % 32 for i in range(32)]] * 3),
    "unequal ranks": dict(latent_ranks=[[512] * 3, [256] * 3, [384] * 3], rms_norm_eps=1e-5),
    "a width no kernel takes": dict(latent_ranks=[[100] * 3] * 3),
}
LATENT = ["plain", "every bias", "query norm", "chosen frequencies"]


@pytest.fixture(scope="module")
def decoupled(tmp_path_factory):
    """A maker of random checkpoints by the names of `FORMS`, 512 latent and 64 rotated floats wide unless named so."""
    made = {}

    def make(form):
        if form not in made:
            made[form] = write(tmp_path_factory.mktemp("decoupled") / form.replace(" ", "-"), **FORMS[form])
        return made[form]

    return make


def write(place, **changes):
    """A checkpoint whose heads attend to few tokens: with flat attention a wrong rotation goes unseen."""
    sizes = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, vocab_size=260)
    heads = dict(head_dim=64, num_key_value_heads=4, rope_mode="decoupled", rope_dim=64, nope_dim=64, value_dim=64)
    tokens = dict(bos_token_id=None, eos_token_id=256, pad_token_id=256, max_position_embeddings=512)
    ranks = dict(latent_ranks=[[512] * 3] * 3, rope_pairs=[list(range(32))] * 3)
    kinds = {"AutoConfig": "Config", "AutoModel": "Model", "AutoModelForCausalLM": "ForCausalLM"}
    auto = {key: f"{MODULE}.RegearMla{kind}" for key, kind in kinds.items()}
    torch.manual_seed(0)
    model = RegearMlaForCausalLM(RegearMlaConfig(**(sizes | heads | tokens | ranks | changes), auto_map=auto)).float()
    randomise(model, keep="kv_a_layernorm").save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    shutil.copyfile(modeling_regear_mla.__file__, place / f"{MODULE}.py")
    return place


def test_the_fuser_takes_equal_ranks_and_leaves_unequal_ones_alone(decoupled):
    forms = list(FORMS)
    found = dict(zip(forms, call("vllm_fuser.py", *map(decoupled, forms))["models"], strict=True))
    for form in LATENT:
        assert [layer["mla"] for layer in found[form]["layers"]] == [True] * 3, found[form]
        assert found[form]["head_size"] == 576
        assert found[form]["dims"] | {"q_lora_rank": None} == {
            "q_lora_rank": None,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 64,
            "qk_rope_head_dim": 64,
            "v_head_dim": 64,
        }
    unequal = found["unequal ranks"]
    assert not unequal["uses_mla"]
    assert [layer["mla"] for layer in unequal["layers"]] == [False] * 3
    assert all(layer["dispatches"] for layer in unequal["layers"])
    assert unequal["head_size"] == 64 + 64


@pytest.mark.parametrize("form", ["every bias", "query norm", "chosen frequencies"])
def test_equal_ranks_are_served_from_their_latents(decoupled, form):
    served = serve(decoupled(form), PROMPTS, TOKENS, trust_remote_code=True)
    assert served["backends"] == ["CPU_MLA"]
    assert set(served["kv_width"]) == {576}
    assert served["token_ids"] == greedy(decoupled(form), PROMPTS, TOKENS, remote=True)


def test_unequal_ranks_are_served_with_full_attention(decoupled):
    place = decoupled("unequal ranks")
    served = serve(place, PROMPTS[:1], TOKENS, trust_remote_code=True)
    assert served["backends"] == ["CPU_ATTN"]
    assert set(served["kv_width"]) == {2 * 4 * 128}
    assert served["token_ids"] == greedy(place, PROMPTS[:1], TOKENS, remote=True)


def test_a_width_no_kernel_takes_is_served_only_without_mla(decoupled):
    place = decoupled("a width no kernel takes")
    with pytest.raises(AssertionError, match="Head dimension 164 is not supported by MLA"):
        serve(place, PROMPTS, TOKENS, trust_remote_code=True)
    served = serve(place, PROMPTS, TOKENS, mla=False, trust_remote_code=True)
    assert served["token_ids"] == greedy(place, PROMPTS, TOKENS, remote=True)


def test_a_padded_strict_export_is_served_by_vllms_own_deepseek(decoupled, text, tmp_path):
    """Neutral norms, a rescaled residual and padded latents: the same tokens as the checkpoint it was exported from."""
    place = decoupled("unequal ranks")
    (place / "LICENSE").write_text("A licence.\n")
    words = [*small(text, 600), "convert.format=deepseek_v3", "convert.latent_pad=512"]
    regear.convert(place, tmp_path / "strict", *words)
    served = serve(tmp_path / "strict", PROMPTS, TOKENS, **PLAIN_ROPE)
    assert served["backends"] == ["CPU_MLA"]
    assert set(served["kv_width"]) == {576}
    assert served["token_ids"] == greedy(place, PROMPTS, TOKENS, remote=True)
