"""Tiny random checkpoints of every supported family, with a byte-level tokenizer and no downloads."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from regear.models.store import Store

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
SHAPE = dict(
    vocab_size=260,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=4096,
    bos_token_id=None,
    eos_token_id=256,
    pad_token_id=256,
)
EXPERTS = dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True)
CONFIGS = {
    "llama": lambda: LlamaConfig(**SHAPE, head_dim=12),
    "llama-tied": lambda: LlamaConfig(**SHAPE, head_dim=12, tie_word_embeddings=True),
    "llama-bias": lambda: LlamaConfig(**SHAPE, head_dim=12, attention_bias=True, mlp_bias=True),
    "llama3-rope": lambda: LlamaConfig(**SHAPE, head_dim=12, rope_parameters=LLAMA3_ROPE),
    "mistral": lambda: MistralConfig(**SHAPE, head_dim=12, sliding_window=None),
    # Mistral Nemo's geometry: the heads together are narrower than the hidden state.
    "mistral-nemo": lambda: MistralConfig(**SHAPE, head_dim=8, sliding_window=None),
    "olmo2": lambda: Olmo2Config(**SHAPE),
    "qwen2": lambda: Qwen2Config(**SHAPE),
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=16),
    # Keys and values together are wider than the hidden state: the largest useful rank is the hidden width.
    "qwen3-wide": lambda: Qwen3Config(**(SHAPE | {"num_key_value_heads": 4}), head_dim=16),
    # A dense layer below two with experts.
    "qwen3-moe": lambda: Qwen3MoeConfig(**SHAPE, head_dim=16, mlp_only_layers=[0], **EXPERTS),
}
FAMILIES = list(CONFIGS)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and an end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(alphabet)} | {"<end>": 256}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")


@torch.no_grad()
def randomise(model: torch.nn.Module, scale: float = 1.5, keep: str | None = None) -> torch.nn.Module:
    """Give every parameter a value that matters (biases and norm gains included), but those with `keep` in their name.

    `scale` is that of a map's outputs over its inputs: above 1 heads attend to few tokens, and a wrong rotation shows.
    """
    for name, parameter in model.named_parameters():
        if keep and keep in name:
            continue
        if "norm" in name:
            parameter.uniform_(0.5, 1.5)
        elif name.endswith("bias"):
            parameter.normal_(0, 0.3)
        else:
            parameter.normal_(0, scale * parameter.shape[-1] ** -0.5)
    return model


def make_model(family: str, place: Path, seed: int = 0, **changes) -> Path:
    """Write a random model whose every parameter matters (biases and norm gains included)."""
    torch.manual_seed(seed)
    config = CONFIGS[family]()
    for key, value in changes.items():
        setattr(config, key, value)
    randomise(AutoModelForCausalLM.from_config(config).float()).save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    (place / "README.md").write_text("---\nlicense: mit\nbase_model: someone/tiny\n---\n")
    (place / "LICENSE").write_text("A licence.\n")
    return place


def make_text(bytes_: int = 3 * 2048 + 100, seed: int = 0) -> str:
    """Reproducible text with some structure."""
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "a",
        "lazy",
        "dog",
        "while",
        "seven",
        "wizards",
        "box",
        "quietly",
        "in",
        "rain",
    ]
    generator = random.Random(seed)
    text = ""
    while len(text) < bytes_:
        text += generator.choice(words) + generator.choice([" ", " ", " ", ", ", ".\n"])
    return text[:bytes_]


def small(text: Path, tokens: int = 4096) -> list[str]:
    """Recipe words for a quick conversion, calibrated on `text`, with other texts beside it for the other uses."""
    words = [f"calibration.text=[{text}]"]
    for seed, use in enumerate(("selection", "evaluation"), 100):
        other = text.with_name(f"{use}.txt")
        if not other.exists():
            other.write_text(make_text(seed=seed))
        words.append(f"{use}.text=[{other}]")
    return [*words, *(f"{use}.tokens={tokens}" for use in ("calibration", "selection", "evaluation"))]


def make_adapter(base: Path, place: Path, targets: Sequence[str], seed: int = 0, **settings) -> Path:
    """Write a random LoRA adapter of rank 4 and alpha 16 for every layer of a tiny model, as PEFT lays it out."""
    generator = torch.Generator().manual_seed(seed)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": 4,
        "lora_alpha": 16,
        "lora_dropout": 0.1,
        "bias": "none",
        "init_lora_weights": True,
        "target_modules": [name.rpartition(".")[2] for name in targets],
        **settings,
    }
    tensors = {}
    for name, shape in Store(base).shapes.items():
        module = name.removesuffix(".weight")
        if module.endswith(tuple(targets)):
            own = [rank for end, rank in config.get("rank_pattern", {}).items() if module.endswith(end)]
            rank = own[0] if own else config["r"]
            for side, size in {"A": (rank, shape[1]), "B": (shape[0], rank)}.items():
                tensors[f"base_model.model.{module}.lora_{side}.weight"] = 0.1 * torch.randn(size, generator=generator)
    place.mkdir()
    save_file(tensors, place / "adapter_model.safetensors", metadata={"format": "pt"})
    (place / "adapter_config.json").write_text(json.dumps(config))
    return place
