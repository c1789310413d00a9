"""What the engine's benchmarks share: prompts, what a run is, and where two runs part."""

import statistics
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import parser
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from regear.core.errors import RegearError
from regear.engine.sampler import Places, noisy
from regear.models.precision import load_as
from regear.ops.noise import key

Prompts = Sequence[Sequence[int]]
TIE = 1e-4  # scores this close may fall either way


@dataclass(frozen=True)
class Run:
    """New tokens of each text, when each was there, and when the work began; seconds of one clock."""

    tokens: list[list[int]]
    times: list[list[float]]
    began: float
    forwards: float = 0.0

    def rate(self, *, whole: bool = False) -> float:
        """Tokens a second from when every text has its first one until the first text ends; `whole`: until all have."""
        start = max(one[0] for one in self.times)
        end = (max if whole else min)(one[-1] for one in self.times)
        return sum(start < at <= end for one in self.times for at in one) / max(end - start, 1e-9)

    def count(self) -> int:
        return sum(map(len, self.tokens))

    def seconds(self) -> float:
        return max(one[-1] for one in self.times if one) - self.began


Contender = Callable[[Prompts, int], Run]


@dataclass(frozen=True)
class Parting:
    """Where two runs of a text differ first, and how far below the best score the worse of the two tokens lies."""

    text: int
    position: int
    gap: float


def engine_parser(description: str, rounds: int = 3) -> ArgumentParser:
    options = parser(description)
    options.add_argument("--model", default="smollm2-135m-instruct")
    options.add_argument("--text", default="builtin", help="a text file that prompts are cut from")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--rounds", type=int, default=rounds)
    return options


def numbers(words: str) -> list[int]:
    return [int(word) for word in words.split(",")]


def load_stock(path: Path) -> Any:
    """The model as a user of transformers has it."""
    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def load_int8(path: Path) -> tuple[Any, str]:
    """The model with int8 weights; or None, and why there is none."""
    try:
        return load_as(path, "cpu", "int8"), ""
    except RegearError as error:
        return None, f"int8 is left out: {error}"


@torch.no_grad()
def partings(
    model: Any, prompts: Prompts, one: Run, other: Run, *, temperature: float = 0.0, seed: int = 0
) -> list[Parting]:
    """Every text whose tokens or lengths differ; scores are the model's own with noise, one text at a time."""
    found = []
    for i, (prompt, left, right) in enumerate(zip(prompts, one.tokens, other.tokens, strict=True)):
        same = next((p for p, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), None)
        if same is None:
            if len(left) != len(right):
                found.append(Parting(i, min(len(left), len(right)), float("inf")))
            continue
        ids = torch.tensor([[*prompt, *left[:same]]], device=model.device)
        scores = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, 0]
        if temperature:
            plain = np.ones(1)
            place = Places(np.array([key(seed, i)], np.uint64), np.array([ids.shape[1]]), plain * temperature, plain,
                           np.zeros(1, np.int64), np.zeros(1))  # fmt: skip
            scores = noisy(scores, place)
        gap = scores.max() - scores[0, [left[same], right[same]]].min()
        found.append(Parting(i, same, float(gap)))
    return found


def verdict(found: list[Parting], texts: int) -> dict[str, Any]:
    """How many texts were compared and parted, where, and whether each stood at a near-tie."""
    rows = [asdict(parting) for parting in found]
    return {"texts": texts, "parted": rows, "near_ties_only": all(parting.gap < TIE for parting in found)}


def interleaved(cases: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each case measures, a round of all cases at a time."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, measure in cases.items():
            found[name].append(measure())
    return found


def medians(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in found.items()}
