"""What the card tells a server, by width and format."""

import pytest

from regear.conversion.formats.facts import server_facts
from tests.canonical import MIXTURE, canonical_config


def facts(**changes):
    section = server_facts({**canonical_config(**changes).to_dict(), "model_type": changes.pop("format", "regear_mla")})
    return dict(section.rows)


def strict(rank, rope, **changes):
    widths = {"kv_lora_rank": rank, "qk_rope_head_dim": rope, "qk_nope_head_dim": 64, "num_attention_heads": 32}
    config = {"model_type": "deepseek_v3", "num_hidden_layers": 2, "rope_parameters": {"rope_type": "default"}}
    return dict(server_facts(config | widths | changes).rows)


def kernels(rows):
    return [value for name, value in rows.items() if "MLA" in name]


def test_bytes_count_latents_and_shared_keys_of_every_layer():
    assert facts(latent_ranks=[[10] * 3, [6] * 3, [8] * 3])["cache a token, 16-bit"] == f"{2 * (24 + 12)} bytes"
    assert strict(512, 64)["cache a token, 8-bit"] == "1,152 bytes"


def test_a_config_read_back_from_a_strict_export_says_the_same():
    config = canonical_config().to_dict() | {"model_type": "regear_mla"}
    plain = {key: value for key, value in config.items() if not key.startswith("qk_")}
    assert server_facts(plain).rows == server_facts(config).rows


def test_the_fast_width_is_taken_by_every_kernel_and_others_say_how_to_get_there():
    assert kernels(strict(512, 64)) == ["yes"] * 5
    assert kernels(strict(512, 64, num_attention_heads=256)).count("yes") == 4
    narrow = kernels(strict(200, 32))
    assert set(narrow) == {"no: here 200 + 32; `convert.latent_pad=544` makes it 576"}
    assert kernels(strict(256, 64))[0] == "yes"
    assert "latent_pad" not in kernels(strict(600, 64))[0]


def test_scaled_rope_is_served_by_transformers_only():
    rows = strict(512, 64, rope_parameters={"rope_type": "llama3"})
    assert rows["vLLM, its own deepseek_v3"].startswith("no: it computes this RoPE scaling as YaRN")
    assert rows["vLLM, `--model-impl transformers`"] == "yes"


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({}, "yes, from latents"),
        ({"latent_ranks": [[10] * 3, [6] * 3, [8] * 3]}, "one width for all layers"),
        (MIXTURE, "not tried"),
    ],
)
def test_own_format_in_vllm(changes, answer):
    assert answer in facts(**changes)["vLLM, `--model-impl transformers` `--trust-remote-code`"]


def test_a_query_norm_keeps_to_one_device():
    assert "one rank" in facts(qk_norm=True)["tensor parallelism"]
    assert "one rank" not in facts()["tensor parallelism"]
