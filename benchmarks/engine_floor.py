"""What a decoding step must cost at least on this machine, and where its time goes."""

import time
from typing import Any

import torch
from engine_common import Prompts
from engine_contenders import Ours
from torch import nn
from torch.profiler import ProfilerActivity, profile

from regear.measure.speed import cache_size
from regear.train.cost import matrix_rate

KINDS = {
    "matrix products": ("linear", "addmm", "::mm", "bmm", "matmul", "onednn", "mkldnn"),
    "attention": ("scaled_dot_product", "flash_attention"),
    "copies": ("copy_", "::cat", "scatter", "index", "fill_", "gather"),
}


def rates() -> dict[str, float]:
    """What this machine does now: bytes read a second, float32 operations a second in large matrix products."""
    x, best = torch.ones(1 << 27), float("inf")
    for _ in range(5):
        for read in (x.sum, lambda: x.dot(x)):
            began = time.perf_counter()
            read()
            best = min(best, time.perf_counter() - began)
    return {"bytes_per_second": x.nbytes / best, "operations_per_second": matrix_rate(torch.device("cpu"))}


def floor(model: Any, rows: int, context: int, width: int = 1) -> dict[str, float]:
    """Bytes that a float32 step must read and operations it must do: every matrix once, the cache once."""
    weights = sum({id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear)}.values())
    config = model.config
    heads = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    places = rows * width
    products = 2 * weights + 4 * (context + width) * heads * config.num_hidden_layers
    return {"bytes": 4 * weights + rows * context * cache_size(model)["bytes"], "operations": places * products}


def shares(way: Ours, prompts: Prompts, steps: int) -> dict[str, float]:
    """Where the time of decoding steps goes; what no operator accounts for is Python's."""
    engine = way.engine(prompts)
    for request in way.requests(prompts, steps + 4):
        engine.submit(request)
    while engine.scheduler.ready < len(prompts):
        engine.step()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        began = time.perf_counter()
        for _ in range(steps):
            engine.step()
        wall = 1e6 * (time.perf_counter() - began)
    spent = dict.fromkeys([*KINDS, "other operators"], 0.0)
    for event in found.key_averages():
        kind = next((k for k, words in KINDS.items() if any(w in event.key.lower() for w in words)), "other operators")
        spent[kind] += event.self_cpu_time_total
    spent["outside operators"] = max(0.0, wall - sum(spent.values()))
    return {kind: round(spent[kind] / sum(spent.values()), 3) for kind in spent}
