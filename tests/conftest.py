"""Shared fixtures: tiny models of every family, made here, with a byte tokenizer; the embedded model, fetched once."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from pathlib import Path

import pytest
import torch
from hypothesis import settings
from transformers.utils import logging

torch.set_num_threads(1)
# The same examples on every run; `--hypothesis-profile=default` looks for new ones.
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")
logging.disable_progress_bar()

from tests.tiny import FAMILIES, make_model, make_text


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A maker of tiny checkpoints: `tiny("qwen3")` → its directory, made once."""
    made = {}

    def make(family: str = "llama") -> Path:
        if family not in made:
            made[family] = make_model(family, tmp_path_factory.mktemp(family) / family)
        return made[family]

    return make


@pytest.fixture(scope="session", autouse=True)
def _short_comparisons():
    """Conversions read every kind of cache and time a step as ever, but on one window and at one length: 150 tests
    convert, and hardly one reads those figures."""
    from regear.conversion import verify

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(verify, "CACHE_WINDOWS", 1)
        patched.setattr(verify, "DECODE_CONTEXTS", (128,))
        yield


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """A text file of three windows."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(make_text())
    return path


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The embedded model's directory; fetched into the cache once."""
    from regear.models.builtin import resolve

    return resolve("smollm2-135m-instruct")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of this test's own."""
    monkeypatch.setenv("REGEAR_HOME", str(tmp_path / "home"))
    return tmp_path / "home"
