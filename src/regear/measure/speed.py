"""Tokens per second, and the cache as it really is: read off a cache that a forward pass filled."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache


@torch.no_grad()
def filled_cache(model: Any, length: int, batch: int = 1) -> DynamicCache:
    """A cache holding `length` tokens of a fixed pattern."""
    cache = DynamicCache(config=model.config)
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


@torch.no_grad()
def decode_seconds(model: Any, cache: DynamicCache, steps: int = 8) -> float:
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
def prefill_seconds(model: Any, length: int) -> float:
    """Seconds of one forward pass over `length` tokens."""
    tokens = torch.arange(length, device=model.device).remainder(model.config.vocab_size).unsqueeze(0)
    start = time.perf_counter()
    model(input_ids=tokens, use_cache=False, logits_to_keep=1)
    _wait(model)
    return time.perf_counter() - start


def _wait(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def throughput(models: Sequence[Any], *, length: int = 256, repeats: int = 3) -> list[dict[str, float]]:
    """Prefill and decode tokens per second of each model at this context, interleaved, median of `repeats`."""
    caches = [filled_cache(model, length) for model in models]
    prefill: list[list[float]] = [[] for _ in models]
    decode: list[list[float]] = [[] for _ in models]
    for _ in range(repeats):
        for i, model in enumerate(models):
            prefill[i].append(prefill_seconds(model, length))
            decode[i].append(decode_seconds(model, caches[i]))
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
