"""Tiny models in float64, requests of every sort, and what they become without guesses."""

import numpy as np
import pytest
import torch

from regear.engine.local import LocalEngine
from regear.engine.types import Request
from regear.models.load import load_model


@pytest.fixture(scope="session")
def model(tiny):
    return load_model(tiny("llama"), "cpu", dtype=torch.float64)


@pytest.fixture(scope="session")
def small(tiny):
    """A model that mostly agrees with the other one."""
    found = load_model(tiny("llama"), "cpu", dtype=torch.float64)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.03 * parameter.std() * torch.randn_like(parameter))
    return found


@pytest.fixture(scope="session")
def requests():
    random = np.random.default_rng(0)
    found = []
    for i in range(24):
        prompt = random.integers(0, 250, random.integers(1, 30)).tolist() * (1 + i % 2)
        found.append(
            Request(
                prompt, int(random.integers(1, 24)), temperature=[0.0, 0.7, 1.0][i % 3], seed=i,
                top_p=[1.0, 0.9][i % 2], repetition_penalty=[1.0, 1.3][i % 5 == 0],
            )
        )  # fmt: skip
    return found


@pytest.fixture(scope="session")
def plain(model, requests):
    return [found.token_ids for found in LocalEngine(model).generate(requests)]
