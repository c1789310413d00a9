"""What a conversion changed, measured on the reloaded checkpoint beside the original, both layer by layer.

Only what needs whole models (the time of a decode step, multiple choice, caches of fewer bits) loads them whole, and
only where both fit: their weights in float32 may take three quarters of the memory at hand.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from regear.conversion.layers import Layers, pad
from regear.conversion.stream import Batch, predicting, scores
from regear.core.machine import available_memory_bytes
from regear.core.report import Plot, Section, Series
from regear.measure.choice import score_choices
from regear.measure.perplexity import Scores, score
from regear.measure.speed import cache_bytes, decode_curve
from regear.models.kvcache import KINDS
from regear.models.load import load_model, load_tokenizer
from regear.models.store import Store
from regear.tasks.choice import load as load_task
from regear.tasks.text import Window, spread

# Windows on which caches of fewer bits are measured.
CACHE_WINDOWS = 4
DECODE_CONTEXTS = (128, 512, 2048)
NOT_MEASURED = "not measured: both models whole take more memory than there is"


def compare(
    original: Store,
    directory: Path,
    converted: Path,
    windows: Sequence[Window],
    tasks: Sequence[str],
    seed: int,
    device: str,
    limit: int | None = None,
) -> tuple[dict[str, Any], list[list[float]]]:
    """Read the converted checkpoint back and pair it with the original.

    Args:
        original: the tensors that were converted; `directory` is the model's.
        limit: memory that may be used, in bytes; by default what the machine has left.

    Returns what a checkpoint records (the same for every run with the same inputs), and the seconds of a decode step
    at each of `DECODE_CONTEXTS` as [context][original, converted]; none where the models do not fit.
    """
    ids = [load_tokenizer(directory)(window.text)["input_ids"] for window in windows]
    stores = (original, Store(converted))
    models = [Layers(store, device) for store in stores]
    models[1].require()
    before, after = _score(models, ids)
    sizes = [model.cache_size() for model in models]
    record: dict[str, Any] = {
        "windows": len(windows),
        "tokens": sum(after.tokens),
        "perplexity": _pair(before, after, seed),
        "kl": after.mean_kl,
        "by_kind": _by_kind(windows, before, after, seed),
        "kv_floats_per_token": {"before": sizes[0]["floats"], "after": sizes[1]["floats"]},
        "kv_bytes_per_token": {"before": sizes[0]["bytes"], "after": sizes[1]["bytes"]},
        "caches": [],
        "tasks": dict.fromkeys(tasks, NOT_MEASURED),
    }
    if not fits(stores, limit):
        return record, []
    loaded = [load_model(path, device) for path in (directory, converted)]
    record["caches"] = _caches(loaded, directory, spread(windows, CACHE_WINDOWS), seed)
    record["tasks"] = {name: _task(loaded, directory, name, seed) for name in tasks}
    longest = getattr(loaded[0].config, "max_position_embeddings", 0) or max(DECODE_CONTEXTS)
    return record, decode_curve(loaded, [length for length in DECODE_CONTEXTS if length < longest])


def fits(stores: Sequence[Store], limit: int | None) -> bool:
    """Whether all models together, in float32, take at most three quarters of the memory at hand."""
    wanted = sum(4 * math.prod(shape) for store in stores for shape in store.shapes.values())
    found = [size for size in (limit, available_memory_bytes()) if size is not None]
    return not found or wanted <= min(found) * 3 // 4


def _score(models: Sequence[Layers], ids: Sequence[Sequence[int]]) -> list[Scores]:
    """Both models on the same windows; KL from the first."""
    table = pad(ids)
    real = torch.arange(table.shape[1]) < torch.tensor([len(row) for row in ids]).unsqueeze(1)
    data = [Batch(table, real, real.float())]
    states = [model.final(table)[predicting(real).to(model.device)] for model in models]
    return scores([model.head() for model in models], states, data)


def _caches(models: Sequence[Any], directory: Path, windows: Sequence[Window], seed: int) -> list[dict[str, Any]]:
    """Both models with their caches in 16, 8 and 4 bits, by falling size: the alternative to a smaller architecture."""
    tokenizer = load_tokenizer(directory)
    plain = score(models[0], tokenizer, windows)
    rows = []
    for name, model in zip(("original", "converted"), models, strict=True):
        sizes = cache_bytes(model)
        for kind in KINDS:
            ratio = score(model, tokenizer, windows, kind).ratio_to(plain, seed=seed)
            interval = [ratio.low, ratio.high]
            rows.append({"model": name, "kv": kind, "bytes": sizes[kind], "ratio": ratio.value, "ratio_ci": interval})
    return sorted(rows, key=lambda row: -row["bytes"])


def _task(models: Sequence[Any], directory: Path, name: str, seed: int) -> dict[str, Any]:
    """One multiple-choice task on both models, paired by item."""
    tokenizer, items = load_tokenizer(directory), load_task(name)
    found = [score_choices(model, tokenizer, items) for model in models]
    change = found[1].change_from(found[0], seed=seed)
    return {
        "before": found[0].summary(),
        "after": found[1].summary(),
        "change": {key: [x.value, x.low, x.high] for key, x in change.items()},
    }


def _pair(before: Scores, after: Scores, seed: int) -> dict[str, Any]:
    ratio = after.ratio_to(before, seed=seed)
    return {
        "before": before.perplexity,
        "after": after.perplexity,
        "ratio": ratio.value,
        "ratio_ci": [ratio.low, ratio.high],
    }


def _by_kind(windows: Sequence[Window], before: Scores, after: Scores, seed: int) -> dict[str, Any]:
    """The same pair for each kind of text."""
    found = {}
    for kind in sorted({window.kind for window in windows}):
        places = [i for i, window in enumerate(windows) if window.kind == kind]
        parts = [Scores([s.nll[i] for i in places], [s.tokens[i] for i in places]) for s in (before, after)]
        found[kind] = _pair(parts[0], parts[1], seed)
    return found


def quality_sections(record: dict[str, Any]) -> list[Section]:
    """The record as tables, for the card and the report."""
    whole = record["perplexity"]
    rows = [["all", whole["before"], whole["after"], whole["ratio"], _interval(whole["ratio_ci"])]]
    for kind, pair in record["by_kind"].items():
        rows.append([kind, pair["before"], pair["after"], pair["ratio"], _interval(pair["ratio_ci"])])
    seen = record["evaluation_windows_seen_before"]
    used = (
        f"of which {seen} windows were also calibration or selection text" if seen else "of text used for nothing else"
    )
    note = (
        f"KL from the original {record['kl']:.4f} nats a token; {record['windows']} windows, {record['tokens']:,} "
        f"scored tokens {used}; intervals are paired bootstraps over windows."
    )
    sections = [Section("Perplexity", ["text", "before", "after", "ratio", "95 % interval"], rows, note)]
    cache = [
        [name, record[key]["before"], record[key]["after"]]
        for name, key in (
            ("KV floats a token", "kv_floats_per_token"),
            ("KV bytes a token", "kv_bytes_per_token"),
        )
    ]
    sections.append(Section("Cache", ["read off a real cache", "before", "after"], cache))
    if record["caches"]:
        sections.append(_cache_section(record["caches"]))
    for name, task in record["tasks"].items():
        if task == NOT_MEASURED:
            sections.append(Section(name, [], [], NOT_MEASURED.capitalize() + "."))
            continue
        keys = ("items", "chance", "accuracy", "accuracy_per_byte", "gold_logprob")
        change, low, high = task["change"]["accuracy"]
        sections.append(
            Section(
                name,
                ["", "before", "after"],
                [[key, task["before"][key], task["after"][key]] for key in keys],
                f"Accuracy changed by {change:+.3f} (95 % {low:+.3f} to {high:+.3f}), paired by item.",
            )
        )
    return sections


def _cache_section(caches: Sequence[dict[str, Any]]) -> Section:
    """Bytes against quality, whatever the bytes are made of."""
    rows = [[row["model"], row["kv"], row["bytes"], row["ratio"], _interval(row["ratio_ci"])] for row in caches]
    note = (
        f"Perplexity over the original's in full precision, on {CACHE_WINDOWS} windows read through each cache. A user "
        "chooses between bytes: compare rows of about equal size. `regear eval --kv` measures on more text."
    )
    return Section("Fewer bits instead", ["model", "cache", "KV bytes a token", "ratio", "95 % interval"], rows, note)


def decode_section(seconds: Sequence[Sequence[float]]) -> tuple[Section, list[Plot]]:
    """Measured decode time against context, for the report of the run (it depends on the machine)."""
    if not seconds:
        return Section("Decode step", [], [], NOT_MEASURED.capitalize() + "."), []
    contexts = list(DECODE_CONTEXTS[: len(seconds)])
    rows = [[str(c), 1e3 * b, 1e3 * a, a / b] for c, (b, a) in zip(contexts, seconds, strict=True)]
    section = Section("Decode step, measured on this machine", ["context", "before (ms)", "after (ms)", "ratio"], rows)
    lines = [Series(name, contexts, [1e3 * row[i] for row in seconds]) for i, name in enumerate(("before", "after"))]
    return section, [Plot("Decode step against context", lines, "context (tokens)", "ms a token")]


def _interval(bounds: Sequence[float]) -> str:
    return f"{bounds[0]:.3f} to {bounds[1]:.3f}"
