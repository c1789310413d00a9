"""Tokens per second, and the cache as it really is: read off a cache that a forward pass filled."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import Cache

from regear.engine.local import CHUNK
from regear.engine.runners import runner_for
from regear.models.kvcache import KINDS, StoredLayer, is_latent, kv_bytes_per_token, kv_cache


@torch.no_grad()
def filled_cache(model: Any, length: int, batch: int = 1, kv: str | None = None) -> Cache:
    """A cache of kind `kv` (transformers' own for None) holding `length` tokens of a fixed pattern."""
    cache = kv_cache(model.config, kv)
    tokens = torch.arange(length, device=model.device).remainder(model.config.vocab_size).expand(batch, -1)
    for part in tokens.split(512, dim=1):
        model(input_ids=part, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def cache_size(model: Any, length: int = 8) -> dict[str, int]:
    """Floats and bytes of one token's cache entries, summed over layers, from the tensors of a real cache."""
    layers: Any = filled_cache(model, length).layers
    tensors = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
    return {
        "floats": sum(t.numel() for t in tensors) // length,
        "bytes": sum(t.numel() * t.element_size() for t in tensors) // length,
    }


def cache_bytes(model: Any) -> dict[str, float]:
    """Bytes of one token's cache entries by cache kind, summed over layers, by formula from a real cache's widths.

    In an integer cache this is what one more token costs; the first 4 tokens and the unfilled block (up to 64) stay
    in 16 bits beside it, whatever the length.
    """
    layers: Any = filled_cache(model, 1).layers
    shapes = [
        ((layer.keys.shape[1], layer.keys.shape[3]), (layer.values.shape[1], layer.values.shape[3])) for layer in layers
    ]
    return {kind: kv_bytes_per_token(shapes, kind, latent=is_latent(model.config)) for kind in KINDS}


def stored_bytes(cache: Cache) -> int:
    """Bytes of the tensors of a filled cache, of whatever kind."""
    layers: Any = cache.layers
    return sum(
        layer.stored_bytes()
        if isinstance(layer, StoredLayer)
        else sum(t.numel() * t.element_size() for t in (layer.keys, layer.values))
        for layer in layers
    )


@torch.no_grad()
def decode_seconds(model: Any, cache: Cache, steps: int = 8) -> float:
    """Median seconds of one single-token step on this cache, which is put back as it was."""
    token = torch.zeros((1, 1), dtype=torch.long, device=model.device)
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        model(input_ids=token, past_key_values=cache, use_cache=True)
        _wait(model)
        times.append(time.perf_counter() - start)
        cache.crop(-1)
    return statistics.median(times)


@torch.no_grad()
def prefill_seconds(model: Any, length: int, kv: str | None = None) -> float:
    """Seconds of one forward pass over `length` tokens, filling a cache of kind `kv` if one is given."""
    cache = kv_cache(model.config, kv) if kv else None
    tokens = torch.arange(length, device=model.device).remainder(model.config.vocab_size).unsqueeze(0)
    start = time.perf_counter()
    model(input_ids=tokens, past_key_values=cache, use_cache=cache is not None, logits_to_keep=1)
    _wait(model)
    return time.perf_counter() - start


def _wait(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()


class CacheTimes:
    """Seconds of passes through a cache of kind `kv`."""

    def __init__(self, model: Any, length: int, kv: str | None) -> None:
        self.model, self.length, self.kv = model, length, kv
        self.cache = filled_cache(model, length, kv=kv)

    def prefill(self) -> float:
        """Of reading `length` tokens."""
        return prefill_seconds(self.model, self.length, self.kv)

    def decode(self) -> float:
        """Of one token after them."""
        return decode_seconds(self.model, self.cache)


class EngineTimes:
    """Seconds of the engine's passes over one text."""

    def __init__(self, model: Any, length: int, steps: int = 8) -> None:
        self.model, self.steps, self.runner = model, steps, runner_for(model)
        self.tokens = (np.arange(length) % model.config.get_text_config().vocab_size)[None]
        self.runner.reserve(1, length + steps, 0)

    def prefill(self) -> float:
        """Of reading `length` tokens."""
        started = time.perf_counter()
        for start in range(0, self.tokens.shape[1], CHUNK):
            self._read(self.tokens[:, start : start + CHUNK], start)
        return time.perf_counter() - started

    def decode(self) -> float:
        """Median of one token after another."""
        times = []
        for step in range(self.steps):
            started = time.perf_counter()
            self._read(self.tokens[:, :1], self.tokens.shape[1] + step)
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    def _read(self, tokens: npt.NDArray[np.int64], start: int) -> None:
        wanted = np.arange(tokens.shape[1])[None] == tokens.shape[1] - 1
        self.runner.read(0, tokens, np.array([tokens.shape[1]]), np.array([start]), wanted)
        _wait(self.model)


def throughput(
    models: Sequence[Any], kv: Sequence[str | None] | None = None, *, length: int = 256, repeats: int = 3
) -> list[dict[str, float]]:
    """Prefill and decode tokens per second of each model at this context, interleaved, median of `repeats`.

    `kv` are their cache kinds: without one the engine's passes are timed, as `regear generate` runs them; with one
    transformers' own, whose few-bit cache is unpacked by plain torch here, which a server's kernels do faster.
    """
    kinds = kv or [None] * len(models)
    timed = [
        EngineTimes(model, length) if kind is None else CacheTimes(model, length, kind)
        for model, kind in zip(models, kinds, strict=True)
    ]
    prefill: list[list[float]] = [[] for _ in models]
    decode: list[list[float]] = [[] for _ in models]
    for _ in range(repeats):
        for i, one in enumerate(timed):
            prefill[i].append(one.prefill())
            decode[i].append(one.decode())
    return [
        {"prefill": length / statistics.median(p), "decode": 1 / statistics.median(d)}
        for p, d in zip(prefill, decode, strict=True)
    ]


def decode_curve(models: Sequence[Any], contexts: Sequence[int], *, repeats: int = 3) -> list[list[float]]:
    """Median seconds of a decode step of each model at each context length, [context][model], interleaved."""
    rows = []
    for length in contexts:
        caches = [filled_cache(model, length) for model in models]
        times = [[decode_seconds(m, c, 4) for m, c in zip(models, caches, strict=True)] for _ in range(repeats)]
        rows.append([statistics.median(column) for column in zip(*times, strict=True)])
    return rows
