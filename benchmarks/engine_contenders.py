"""Ways to go on from prompts: the engine of this process, transformers' two, and ctranslate2 in another process."""

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from engine_common import Prompts, Run
from transformers import ContinuousBatchingConfig, GenerationConfig, StoppingCriteria

from regear.engine.drafters.base import Drafter
from regear.engine.local import CHUNK, Limits, LocalEngine
from regear.engine.types import Request
from regear.ops.noise import key

PAGE, BATCH = 256, 2048  # tokens of a block, and of a step, of transformers' continuous batching


class Ours:
    """The engine of this process. A fresh drafter each run: what one has seen would help the next.

    Args:
        chunk: prompt tokens read in a step; 0 reads all prompts at once, so that all texts decode from then on.
        sampling: of every request; text i draws with `key(seed, i)`.
    """

    def __init__(
        self,
        model: Any,
        drafter: Callable[[], Drafter] | None = None,
        *,
        rows: int = 128,
        chunk: int = CHUNK,
        seed: int = 0,
        **sampling: Any,
    ) -> None:
        self.model, self.drafter, self.rows, self.chunk = model, drafter, rows, chunk
        self.seed, self.sampling = seed, sampling

    def requests(self, prompts: Prompts, count: int) -> list[Request]:
        return [Request(prompt, count, seed=key(self.seed, i), **self.sampling) for i, prompt in enumerate(prompts)]

    def engine(self, prompts: Prompts) -> LocalEngine:
        chunk = self.chunk or max(map(len, prompts)) * len(prompts)
        drafter = self.drafter() if self.drafter else None
        return LocalEngine(self.model, drafter=drafter, limits=Limits(rows=self.rows, chunk=chunk))

    def __call__(self, prompts: Prompts, count: int) -> Run:
        engine, times = self.engine(prompts), [[] for _ in prompts]
        began = time.perf_counter()
        done = engine.generate(
            self.requests(prompts, count), lambda i, new: times[i].extend([time.perf_counter()] * len(new))
        )
        forwards = sum(len(one.token_ids) / one.acceptance_length for one in done if one.token_ids)
        return Run([one.token_ids for one in done], times, began, forwards)


class Clock(StoppingCriteria):
    """Notes when each step of `generate` was done; stops nothing."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def _settings(model: Any, stops: Sequence[int], temperature: float) -> dict[str, Any]:
    model.generation_config.eos_token_id = list(stops) or None  # what a call leaves unsaid is taken from here
    words: dict[str, Any] = {"do_sample": temperature > 0, "pad_token_id": 0}
    return words | ({"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {})


class Stock:
    """`generate` of transformers, texts of different lengths padded on the left."""

    def __init__(self, model: Any, *, stops: Sequence[int] = (), temperature: float = 0.0, seed: int = 0) -> None:
        self.model, self.stops, self.temperature, self.seed = model, stops, temperature, seed

    def __call__(self, prompts: Prompts, count: int) -> Run:
        width, clock = max(map(len, prompts)), Clock()
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        words = _settings(self.model, self.stops, self.temperature)
        torch.manual_seed(self.seed)
        began = time.perf_counter()
        found = self.model.generate(ids, attention_mask=mask, max_new_tokens=count, stopping_criteria=[clock], **words)[
            :, width:
        ].tolist()
        ends = [next((i + 1 for i, token in enumerate(row) if token in self.stops), len(row)) for row in found]
        tokens = [row[:end] for row, end in zip(found, ends, strict=True)]
        return Run(tokens, [clock.times[:end] for end in ends], began)


class Batched:
    """`generate_batch` of transformers: continuous batching. `more` tokens while others' prompts are still read."""

    def __init__(
        self, model: Any, *, stops: Sequence[int] = (), temperature: float = 0.0, seed: int = 0, more: bool = False
    ) -> None:
        self.model, self.stops, self.temperature, self.seed, self.more = model, stops, temperature, seed, more

    def __call__(self, prompts: Prompts, count: int) -> Run:
        if self.more:
            count += 2 * sum(map(len, prompts)) // BATCH + 1
        words = _settings(self.model, self.stops, self.temperature)
        words["eos_token_id"] = list(self.stops) or -1  # these settings replace the model's, which say when to stop
        blocks = sum(-(-(len(prompt) + count) // PAGE) + 1 for prompt in prompts)
        batching = ContinuousBatchingConfig(
            page_size=PAGE, num_blocks=blocks, max_batch_tokens=BATCH, auto_switch_to_flash=False, seed=self.seed
        )
        began = time.perf_counter()
        found = self.model.generate_batch(
            [list(prompt) for prompt in prompts],
            generation_config=GenerationConfig(max_new_tokens=count, **words),
            continuous_batching_config=batching,
            record_timestamps=True,
        )
        done = list(found.values())
        if len(done) < len(prompts) or any(one.error for one in done):
            raise RuntimeError(f"generate_batch lost requests: {[one.error for one in done if one.error][:1]}")
        return Run([one.generated_tokens for one in done], [one.timestamps for one in done], began)


class Child:
    """ctranslate2 behind `ctranslate2_child.py`, greedy."""

    def __init__(self, python: Path, model: Path, kind: str, threads: int) -> None:
        script = str(Path(__file__).with_name("ctranslate2_child.py"))
        command = [str(python), script, str(model), kind, str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, prompts: Prompts, count: int) -> Run:
        print(json.dumps({"prompts": [list(p) for p in prompts], "count": count}), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"ctranslate2 ended with {self.process.wait()}; what it said stands above")
        return Run(**json.loads(line))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
