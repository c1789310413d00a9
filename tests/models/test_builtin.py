"""Models by name."""

import pytest
import torch

from regear.core.errors import CheckpointError, DataError
from regear.models import builtin


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smolm2-135m-instruct", "did you mean 'smollm2-135m-instruct'"),
        ("./nowhere/model", "no model directory ./nowhere/model"),
        ("/nowhere", "no model directory"),
        ("nobody/nothing", "the hub could not serve it"),
    ],
)
def test_unknown_models_are_one_line(name, message, cache):
    with pytest.raises(CheckpointError, match=message) as caught:
        builtin.resolve(name)
    assert "\n" not in str(caught.value)


def test_a_directory_is_itself(tiny):
    assert builtin.resolve(str(tiny("llama"))) == tiny("llama")


def test_half_split_undoes_the_interleaving():
    heads, width = 2, 6
    half_split = torch.arange(heads * width, dtype=torch.float32).view(heads, width)
    interleaved = half_split.view(heads, 2, width // 2).transpose(1, 2).reshape(-1, 1)
    assert torch.equal(builtin._half_split(interleaved, heads).view(heads, width), half_split)


def test_names_map():
    assert builtin._name("blk.3.attn_q.weight") == "model.layers.3.self_attn.q_proj.weight"
    assert builtin._name("token_embd.weight") == "model.embed_tokens.weight"


def test_another_file_is_refused(tmp_path, monkeypatch):
    entry = builtin.EMBEDDED["smollm2-135m-instruct"]
    (tmp_path / entry.file).write_bytes(b"not it")
    monkeypatch.setattr(builtin, "installed", lambda package: tmp_path)
    with pytest.raises(DataError, match="found SHA-256"):
        builtin._gguf(entry)
