"""vLLM, in a process of its own, gives transformers' greedy tokens from a strict export, and knows what is MLA.

Run by `make engines`. The checkpoints are random and small, with weights spread widely enough that every head attends
to few tokens: on weights of the usual spread attention is flat, and a wrong rotation goes unseen.
"""

import pytest

import regear
from tests.engines.engine import call, greedy, serve
from tests.engines.stock import dense_deepseek
from tests.tiny import make_model, small

pytestmark = pytest.mark.engines
PROMPTS = [[10, 20, 30, 40, 50, 60, 70], [5], [i * 7 % 250 for i in range(70)]]
TOKENS = 24
# vLLM's fused RoPE for CPUs misreads queries that come as [tokens, heads, width], as its DeepSeek layers give them.
PLAIN_ROPE = {"compilation_config": {"custom_ops": ["-rotary_embedding"]}}


@pytest.fixture(scope="module")
def strict_export(tmp_path_factory):
    """A `deepseek_v3` checkpoint 576 floats wide."""
    return dense_deepseek(tmp_path_factory.mktemp("strict") / "model")


@pytest.fixture(scope="module")
def exact_export(tmp_path_factory, text):
    """A `regear_mla` checkpoint with exact RoPE and unequal ranks, converted for real; heads as wide as vLLM's."""
    place = tmp_path_factory.mktemp("exact")
    source = make_model("llama", place / "source", head_dim=32, hidden_size=64)
    regear.convert(str(source), place / "out", *small(text), to="mla")
    return place / "out"


def test_native_deepseek_serves_a_strict_export(strict_export):
    served = serve(strict_export, PROMPTS, TOKENS, **PLAIN_ROPE)
    assert served["backends"] == ["CPU_MLA"]
    assert set(served["kv_width"]) == {576}
    assert served["token_ids"] == greedy(strict_export, PROMPTS, TOKENS)


@pytest.mark.parametrize(("mla", "backend", "width"), [(True, "CPU_MLA", 576), (False, "CPU_ATTN", 2 * 4 * 128)])
def test_the_transformers_backend_serves_a_strict_export(strict_export, mla, backend, width):
    served = serve(strict_export, PROMPTS, TOKENS, mla=mla, model_impl="transformers")
    assert served["backends"] == [backend]
    assert set(served["kv_width"]) == {width}
    assert served["token_ids"] == greedy(strict_export, PROMPTS, TOKENS)


def test_exact_rope_is_served_with_full_attention(exact_export):
    """Its keys are rebuilt from latents before they are rotated, so no kernel can attend to the latents.

    One request alone: its decoding steps show the layer one token and no cache, which is not a sequence of one token.
    """
    served = serve(exact_export, PROMPTS[:1], TOKENS, mla=False, trust_remote_code=True)
    assert served["backends"] == ["CPU_ATTN"]
    assert set(served["kv_width"]) == {2 * 2 * 32}
    assert served["token_ids"] == greedy(exact_export, PROMPTS[:1], TOKENS, remote=True)


def test_the_fuser_takes_stock_mla_and_leaves_exact_rope_alone(strict_export, exact_export):
    stock, exact = call("vllm_fuser.py", strict_export, exact_export)["models"]
    assert stock["uses_mla"]
    assert [layer["mla"] for layer in stock["layers"]] == [True] * 3
    assert not exact["uses_mla"]
    assert [layer["mla"] for layer in exact["layers"]] == [False] * 3
    assert {layer["reason"] for layer in exact["layers"]} == {"match: no MLA pattern in the traced forward"}
    assert all(layer["dispatches"] for layer in exact["layers"])
