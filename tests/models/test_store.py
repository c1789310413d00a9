"""Shards: planned by size, written atomically, read strictly."""

import torch
from safetensors.torch import load_file

from regear.models.store import Store, plan_shards, shard_names, write_index, write_shard


def test_shards_keep_order_and_limit():
    sizes = {"a": 5, "b": 6, "c": 20, "d": 1, "e": 9}
    assert plan_shards(sizes, 11) == [["a", "b"], ["c"], ["d", "e"]]
    assert shard_names(1) == ["model.safetensors"]
    assert shard_names(3)[2] == "model-00003-of-00003.safetensors"


def test_a_sharded_directory_reads_back(tmp_path, tiny):
    tensors = {"x": torch.randn(3, 2), "y": torch.randn(4).bfloat16()}
    names = shard_names(2)
    for file, key in zip(names, tensors, strict=True):
        write_shard(tmp_path / file, {key: tensors[key]})
    write_index(tmp_path, {names[0]: ["x"], names[1]: ["y"]}, 32)
    (tmp_path / "config.json").write_text("{}")
    store = Store(tmp_path)
    assert store.shapes == {"x": (3, 2), "y": (4,)}
    assert torch.equal(store.read("y"), tensors["y"])
    assert store.bytes_of(["x", "y"]) == 32
    assert oct((tmp_path / names[0]).stat().st_mode & 0o777) == "0o644"


def test_same_tensors_same_bytes(tmp_path):
    tensors = {"b": torch.ones(2), "a": torch.zeros(3, 3)}
    write_shard(tmp_path / "1", tensors)
    write_shard(tmp_path / "2", dict(reversed(tensors.items())))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    assert set(load_file(tmp_path / "1")) == {"a", "b"}


def test_a_tied_checkpoint_may_carry_its_head(tiny, tmp_path):
    from safetensors.torch import save_file

    from regear.models.families import describe

    store = Store(tiny("llama-tied"))
    tensors = {name: store.read(name) for name in store.shapes}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(6)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((tiny("llama-tied") / "config.json").read_text())
    Store(tmp_path).require(describe(store.config).tensors())
