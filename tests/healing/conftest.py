"""A tiny model, its conversion, texts, and the words of a short healing."""

from types import SimpleNamespace

import pytest

import regear
from tests.tiny import make_text, small

STAGES = "stages=[{objective: {kind: align}, tokens: 512}, {tokens: 384, lora: {rank: 2}, train: '*.o_proj.*'}]"


@pytest.fixture(scope="session")
def patient(tmp_path_factory, tiny, text):
    """What to heal (`mla`), its original (`source`), a training text, and recipe words for a few seconds."""
    place = tmp_path_factory.mktemp("patient")
    regear.convert(tiny("llama-tied"), place / "mla", *small(text), "convert.kv_ratio=0.25", to="mla")
    training = place / "training.txt"
    training.write_text(make_text(9000, seed=1))
    words = ["train.tokens=768", "train.batch=2", "train.sequence=64", "train.warmup=1", "train.lr=3e-4"]
    for seed, use in ((2, "evaluation"), (3, "elsewhere")):
        (place / f"{use}.txt").write_text(make_text(2500, seed=seed))
        words += [f"{use}.text={place / use}.txt", f"{use}.tokens=300"]
    return SimpleNamespace(source=tiny("llama-tied"), mla=place / "mla", training=training, words=words)
