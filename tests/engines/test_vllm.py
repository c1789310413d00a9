"""vLLM, in a process of its own, gives transformers' greedy tokens from strict exports, and knows what is MLA.

Run by `make engines`. The real model is SmolLM2, converted here. The others are random and small, with weights spread
widely enough that every head attends to few tokens: on weights of the usual spread attention is flat, and a wrong
rotation goes unseen.
"""

import pytest

import regear
from tests.engines.engine import call, greedy, serve
from tests.engines.smollm2 import assert_same_tokens, questions
from tests.engines.stock import dense_deepseek
from tests.tiny import make_model, small

pytestmark = pytest.mark.engines
PROMPTS = [[10, 20, 30, 40, 50, 60, 70], [5], [i * 7 % 250 for i in range(70)]]
TOKENS = 24
# vLLM's fused RoPE for CPUs misreads queries that come as [tokens, heads, width], as its DeepSeek layers give them.
PLAIN_ROPE = {"compilation_config": {"custom_ops": ["-rotary_embedding"]}}


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """A random `deepseek_v3` checkpoint 576 floats wide, which regear had no part in."""
    return dense_deepseek(tmp_path_factory.mktemp("stock") / "model")


@pytest.fixture(scope="module")
def exact_export(tmp_path_factory, text):
    """A `regear_mla` checkpoint with exact RoPE and unequal ranks, converted for real; heads as wide as vLLM's."""
    place = tmp_path_factory.mktemp("exact")
    source = make_model("llama", place / "source", head_dim=32, hidden_size=64)
    regear.convert(str(source), place / "out", *small(text), to="mla")
    return place / "out"


def test_native_deepseek_serves_smollm2(smollm2_strict):
    prompts = questions(smollm2_strict)
    served = serve(smollm2_strict, prompts, TOKENS, **PLAIN_ROPE)
    assert served["backends"] == ["CPU_MLA"]
    assert served["kv_width"] == [576] * 30
    wanted = greedy(smollm2_strict, prompts, TOKENS)
    assert_same_tokens(smollm2_strict, prompts, served["token_ids"], wanted, remote=False)


def test_the_transformers_backend_serves_smollm2_from_latents(smollm2_own):
    prompts = questions(smollm2_own)
    served = serve(smollm2_own, prompts, TOKENS, trust_remote_code=True)
    assert served["backends"] == ["CPU_MLA"]
    assert served["kv_width"] == [576] * 30
    wanted = greedy(smollm2_own, prompts, TOKENS, remote=True)
    assert_same_tokens(smollm2_own, prompts, served["token_ids"], wanted, remote=True)


def test_native_deepseek_serves_the_stock_model(stock):
    """Where this one fails, the engine is at fault and not the export."""
    served = serve(stock, PROMPTS, TOKENS, **PLAIN_ROPE)
    assert served["backends"] == ["CPU_MLA"]
    assert set(served["kv_width"]) == {576}
    assert served["token_ids"] == greedy(stock, PROMPTS, TOKENS)


@pytest.mark.parametrize(("mla", "backend", "width"), [(True, "CPU_MLA", 576), (False, "CPU_ATTN", 2 * 4 * 128)])
def test_the_transformers_backend_serves_the_stock_model(stock, mla, backend, width):
    served = serve(stock, PROMPTS, TOKENS, mla=mla, model_impl="transformers")
    assert served["backends"] == [backend]
    assert set(served["kv_width"]) == {width}
    assert served["token_ids"] == greedy(stock, PROMPTS, TOKENS)


def test_exact_rope_is_served_with_full_attention(exact_export):
    """Its keys are rebuilt from latents before they are rotated, so no kernel can attend to the latents.

    One request alone: its decoding steps show the layer one token and no cache, which is not a sequence of one token.
    """
    served = serve(exact_export, PROMPTS[:1], TOKENS, mla=False, trust_remote_code=True)
    assert served["backends"] == ["CPU_ATTN"]
    assert set(served["kv_width"]) == {2 * 2 * 32}
    assert served["token_ids"] == greedy(exact_export, PROMPTS[:1], TOKENS, remote=True)


def test_the_fuser_takes_mla_and_leaves_exact_rope_alone(stock, smollm2_own, exact_export):
    *latent, exact = call("vllm_fuser.py", stock, smollm2_own, exact_export)["models"]
    for found, layers in zip(latent, (3, 30), strict=True):
        assert found["uses_mla"]
        assert found["head_size"] == 576
        assert [layer["mla"] for layer in found["layers"]] == [True] * layers, found
    assert not exact["uses_mla"]
    assert [layer["mla"] for layer in exact["layers"]] == [False] * 3
    assert {layer["reason"] for layer in exact["layers"]} == {"match: no MLA pattern in the traced forward"}
    assert all(layer["dispatches"] for layer in exact["layers"])
