"""Sizes of models of any shape, from a config and tensor headers: the files hold no weight at all."""

import json
import math
import os

import pytest

import regear
from regear.models.families import describe
from regear.models.store import shard_names, write_index

LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5, "max_position_embeddings": 131072, "vocab_size": 128256}
SHAPES = {
    "8b": LLAMA
    | dict(
        num_hidden_layers=32,
        hidden_size=4096,
        intermediate_size=14336,
        num_attention_heads=32,
        num_key_value_heads=8,
    ),
    "30b-a3b": LLAMA
    | dict(
        model_type="qwen3_moe",
        num_hidden_layers=48,
        hidden_size=2048,
        intermediate_size=6144,
        moe_intermediate_size=768,
        num_experts=128,
        num_experts_per_tok=8,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        vocab_size=151936,
    ),
    "70b": LLAMA
    | dict(
        num_hidden_layers=80,
        hidden_size=8192,
        intermediate_size=28672,
        num_attention_heads=64,
        num_key_value_heads=8,
    ),
}


def headers_only(place, config):
    """A sharded bf16 checkpoint whose data is a hole in the file."""
    place.mkdir()
    (place / "config.json").write_text(json.dumps(config))
    shapes = describe(config).tensors()
    names = list(shapes)
    groups = [names[: len(names) // 2], names[len(names) // 2 :]]
    files = dict(zip(shard_names(2), groups, strict=True))
    for file, members in files.items():
        table, stop = {}, 0
        for name in members:
            start, stop = stop, stop + 2 * math.prod(shapes[name])
            table[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [start, stop]}
        raw = json.dumps(table).encode()
        (place / file).write_bytes(len(raw).to_bytes(8, "little") + raw)
        os.truncate(place / file, 8 + len(raw) + stop)
    write_index(place, files, 0)
    return place


@pytest.mark.parametrize(
    ("shape", "parameters", "floats", "memory"),
    [
        ("8b", 8.0e9, 65536, (2e9, 5e9)),
        ("30b-a3b", 30.5e9, 49152, (2.5e9, 5e9)),
        ("70b", 70.6e9, 163840, (6e9, 12e9)),
    ],
)
def test_the_size_of_a_large_model_is_known_without_its_weights(shape, parameters, floats, memory, tmp_path):
    model = headers_only(tmp_path / "model", SHAPES[shape])
    plan = regear.convert(model, None, to="mla", dry_run=True)
    assert plan["parameters_before"] == pytest.approx(parameters, rel=0.01)
    assert plan["kv_floats_per_token"] == {"before": floats, "after": floats // 2}
    assert memory[0] < plan["memory_bytes"] < memory[1]  # a layer and the windows, not the model
    assert plan["memory_bytes"] < plan["output_bytes"]
    layers = SHAPES[shape]["num_hidden_layers"]
    assert plan["cache_bytes"] == layers * 5 * 8 * (floats // layers) ** 2
    fewer = regear.convert(model, None, "calibration.tokens=5000", to="mla", dry_run=True)
    assert fewer["scratch_bytes"] < plan["scratch_bytes"] / 6
    assert fewer["memory_bytes"] < plan["memory_bytes"]
