"""What a conversion changed, measured on the reloaded checkpoint beside the original."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regear.core.report import Plot, Section, Series
from regear.measure.choice import score_choices
from regear.measure.perplexity import Scores, score_pair
from regear.measure.speed import cache_size, decode_curve
from regear.models.load import load_model, load_tokenizer
from regear.tasks.choice import load as load_task
from regear.tasks.text import Window

DECODE_CONTEXTS = (128, 512, 2048)


def compare(
    original: Path, converted: Path, windows: Sequence[Window], tasks: Sequence[str], seed: int, device: str
) -> tuple[dict[str, Any], list[list[float]]]:
    """Reload the converted checkpoint and pair it with the original.

    Returns what a checkpoint records (the same for every run with the same inputs), and the seconds of a decode step
    at each of `DECODE_CONTEXTS` as [context][original, converted].
    """
    before_model, after_model = load_model(original, device), load_model(converted, device)
    tokenizer = load_tokenizer(original)
    after, before = score_pair(after_model, before_model, tokenizer, windows)
    sizes = [cache_size(model) for model in (before_model, after_model)]
    record: dict[str, Any] = {
        "windows": len(windows),
        "tokens": sum(after.tokens),
        "perplexity": _pair(before, after, seed),
        "kl": after.mean_kl,
        "by_kind": _by_kind(windows, before, after, seed),
        "kv_floats_per_token": {"before": sizes[0]["floats"], "after": sizes[1]["floats"]},
        "kv_bytes_per_token": {"before": sizes[0]["bytes"], "after": sizes[1]["bytes"]},
        "tasks": {},
    }
    for name in tasks:
        items = load_task(name)
        scores = [score_choices(model, tokenizer, items) for model in (before_model, after_model)]
        change = scores[1].change_from(scores[0], seed=seed)
        record["tasks"][name] = {
            "before": scores[0].summary(),
            "after": scores[1].summary(),
            "change": {key: [x.value, x.low, x.high] for key, x in change.items()},
        }
    limit = getattr(before_model.config, "max_position_embeddings", 0) or max(DECODE_CONTEXTS)
    contexts = [length for length in DECODE_CONTEXTS if length < limit]
    return record, decode_curve([before_model, after_model], contexts)


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
        parts = [
            Scores([s.nll[i] for i in places], [s.tokens[i] for i in places], [s.bytes[i] for i in places])
            for s in (before, after)
        ]
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
    for name, task in record["tasks"].items():
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


def decode_section(seconds: Sequence[Sequence[float]]) -> tuple[Section, Plot]:
    """Measured decode time against context, for the report of the run (it depends on the machine)."""
    contexts = list(DECODE_CONTEXTS[: len(seconds)])
    rows = [[str(c), 1e3 * b, 1e3 * a, a / b] for c, (b, a) in zip(contexts, seconds, strict=True)]
    section = Section("Decode step, measured on this machine", ["context", "before (ms)", "after (ms)", "ratio"], rows)
    lines = [Series(name, contexts, [1e3 * row[i] for row in seconds]) for i, name in enumerate(("before", "after"))]
    return section, Plot("Decode step against context", lines, "context (tokens)", "ms a token")


def _interval(bounds: Sequence[float]) -> str:
    return f"{bounds[0]:.3f} to {bounds[1]:.3f}"
