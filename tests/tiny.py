"""Tiny random checkpoints of every supported family, with a byte-level tokenizer and no downloads."""

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

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
CONFIGS = {
    "llama": lambda: LlamaConfig(**SHAPE, head_dim=12),
    "llama-tied": lambda: LlamaConfig(**SHAPE, head_dim=12, tie_word_embeddings=True),
    "llama-bias": lambda: LlamaConfig(**SHAPE, head_dim=12, attention_bias=True, mlp_bias=True),
    "llama3-rope": lambda: LlamaConfig(**SHAPE, head_dim=12, rope_parameters=LLAMA3_ROPE),
    "mistral": lambda: MistralConfig(**SHAPE, head_dim=12, sliding_window=None),
    "qwen2": lambda: Qwen2Config(**SHAPE),
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=16),
    # Keys and values together are wider than the hidden state: the largest useful rank is the hidden width.
    "qwen3-wide": lambda: Qwen3Config(**(SHAPE | {"num_key_value_heads": 4}), head_dim=16),
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


def make_model(family: str, place: Path, seed: int = 0, **changes) -> Path:
    """Write a random model whose every parameter matters (biases and norm gains included)."""
    torch.manual_seed(seed)
    config = CONFIGS[family]()
    for key, value in changes.items():
        setattr(config, key, value)
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.3)
            else:
                parameter.normal_(0, 1.5 * parameter.shape[-1] ** -0.5)
    model.save_pretrained(place)
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
