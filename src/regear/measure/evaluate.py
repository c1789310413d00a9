"""`regear eval`: what a model costs and how well it predicts, alone or paired against another."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regear.core.errors import RecipeError
from regear.core.files import write_json
from regear.core.machine import describe, peak_rss_bytes
from regear.core.report import Plot, Report, Section
from regear.core.stats import Interval
from regear.measure.choice import score_choices
from regear.measure.long import long_context
from regear.measure.long import sections as long_sections
from regear.measure.perplexity import score, score_pair
from regear.measure.speed import cache_bytes, cache_size, throughput
from regear.models.builtin import resolve
from regear.models.kvcache import check_kind
from regear.models.load import load_tokenizer
from regear.models.precision import check_dtype, load_as
from regear.tasks.choice import load as load_task
from regear.tasks.text import BUILTIN, Window, digest_of, read_documents, spread, windows_of


def evaluate(
    model: str | Path,
    *,
    against: str | Path | None = None,
    dtype: str | None = None,
    against_dtype: str | None = None,
    kv: str | None = None,
    against_kv: str | None = None,
    text: Sequence[str | Path] = (BUILTIN,),
    tasks: Sequence[str] = (),
    windows: int | None = None,
    items: int | None = None,
    long: bool = False,
    context: int | None = None,
    speed: bool = True,
    report: Path | None = None,
    device: str = "auto",
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a model on fixed windows of text and on multiple-choice tasks; with `against`, paired.

    Args:
        model: directory, hub id or embedded name.
        against: the model to compare with; its windows and items are the same ones.
        dtype: `float32`, `bfloat16`, `float16`, or `int8` (weights, on a CPU); by default as `load_model` does.
        against_dtype: the same for the other model.
        kv: read every context through a cache that stores `bf16`, `int8` or `int4`.
        against_kv: the same for the other model.
        text: files, or `builtin` for the built-in evaluation texts.
        tasks: names of multiple-choice tasks.
        windows: at most so many windows, evenly spread (all by default).
        items: at most so many items of each task, evenly spread (all by default).
        long: also perplexity by position, and planted facts asked for over long texts.
        context: tokens of the long windows; by default the models' limit, or what the text holds.
        speed: also measure tokens per second.
        report: a directory for `report.json` and `report.html`.
        seed: of the bootstrap.

    Returns the JSON object that `regear eval --json` prints.
    """
    for name, value in (("windows", windows), ("items", items)):
        if value is not None and value < 1:
            raise RecipeError(f"found {name}={value}; wanted at least 1")
    for name, other in (("against_kv", against_kv), ("against_dtype", against_dtype)):
        if other is not None and against is None:
            raise RecipeError(f"found {name}={other} and no other model; name one with against")
    for kind in (dtype, against_dtype):
        check_dtype(kind, device)
    if context is not None and not long:
        raise RecipeError(f"found context={context} without long; it says how long the long windows are")
    kinds = (kv, against_kv)
    for kind in kinds:
        check_kind(kind)
    documents = read_documents(text, "evaluation")
    chosen = windows_of(documents)
    if windows is not None:
        chosen = spread(chosen, windows)
    questions = {name: load_task(name) for name in tasks}
    paths = [resolve(model)] + ([resolve(against)] if against is not None else [])
    sides = list(zip(paths, (dtype, against_dtype), strict=False))
    loaded = {side: load_as(side[0], device, side[1]) for side in dict.fromkeys(sides)}
    models = [loaded[side] for side in sides]
    tokenizers = [load_tokenizer(path) for path in paths]
    result: dict[str, Any] = {
        "model": str(model),
        "dtype": dtype,
        "windows": len(chosen),
        "text_sha256": digest_of(chosen),
    }
    result |= _score_text(models, tokenizers, chosen, kinds, str(against), seed)
    if questions:
        result["tasks"] = {
            name: _score_task(models, tokenizers, _few(found, items), kinds, seed) for name, found in questions.items()
        }
    if long:
        if against is not None and not same_tokens(tokenizers, chosen):
            raise RecipeError("the two models have different tokenizers; positions only compare with the same one")
        result["long"] = long_context(
            models,
            tokenizers[0],
            documents,
            kinds=kinds[: len(models)],
            context=context,
            windows=windows,
            items=items,
            seed=seed,
        )
    result |= _cache(models[0], kv)
    rates = throughput(models, kinds[: len(models)]) if speed else []
    if rates:
        result["tokens_per_second"] = rates[0]
    if against is not None:
        result["against"] |= {"dtype": against_dtype} | _cache(models[1], against_kv)
        if rates:
            result["against"]["tokens_per_second"] = rates[1]
    result["peak_rss_bytes"] = peak_rss_bytes()
    if report is not None:
        write_report(result, report)
    return result


def _few(items: list[Any], count: int | None) -> list[Any]:
    return items if count is None or count >= len(items) else items[:: max(1, len(items) // count)][:count]


def _cache(model: Any, kv: str | None) -> dict[str, Any]:
    """What one token costs: read off a real cache, or, in few bits, what it adds once its block is packed."""
    size, kinds = cache_size(model), cache_bytes(model)
    return {
        "kv": kv,
        "kv_floats_per_token": size["floats"],
        "kv_bytes_per_token": kinds[kv] if kv else size["bytes"],
        "kv_bytes_by_kind": kinds,
    }


def same_tokens(tokenizers: Sequence[Any], windows: Sequence[Window]) -> bool:
    """Whether two tokenizers agree on vocabulary and on the first window."""
    first = [t(windows[0].text)["input_ids"] for t in tokenizers]
    return first[0] == first[1] and tokenizers[0].get_vocab() == tokenizers[1].get_vocab()


def _score_text(
    models: Sequence[Any],
    tokenizers: Sequence[Any],
    windows: Sequence[Window],
    kinds: tuple[str | None, str | None],
    against: str,
    seed: int,
) -> dict[str, Any]:
    other = None
    ratio: Interval | None = None
    if len(models) == 1:
        scores = score(models[0], tokenizers[0], windows, kinds[0])
    elif same_tokens(tokenizers, windows):
        scores, other = score_pair(models[0], models[1], tokenizers[0], windows, kinds)
        ratio = scores.ratio_to(other, seed=seed)
    else:  # across tokenizers only bits per byte compare
        scores, other = (score(m, t, windows, k) for m, t, k in zip(models, tokenizers, kinds, strict=True))
    result: dict[str, Any] = {
        "tokens": sum(scores.tokens),
        "bytes": sum(scores.bytes),
        "perplexity": scores.perplexity,
        "bits_per_byte": scores.bits_per_byte,
    }
    if other is not None:
        result["against"] = {
            "model": against,
            "perplexity": other.perplexity,
            "bits_per_byte": other.bits_per_byte,
            "ratio": ratio.value if ratio else None,
            "ratio_ci": [ratio.low, ratio.high] if ratio else None,
            "kl": scores.mean_kl if ratio else None,
        }
    return result


def _score_task(
    models: Sequence[Any],
    tokenizers: Sequence[Any],
    items: Sequence[Any],
    kinds: tuple[str | None, str | None],
    seed: int,
) -> dict[str, Any]:
    scores = [score_choices(m, t, items, k) for m, t, k in zip(models, tokenizers, kinds, strict=False)]
    result: dict[str, Any] = dict(scores[0].summary())
    if len(scores) == 2:
        change = scores[0].change_from(scores[1], seed=seed)
        result["against"] = scores[1].summary()
        result["change"] = {name: [x.value, x.low, x.high] for name, x in change.items()}
    return result


def write_report(result: dict[str, Any], directory: Path) -> None:
    """`report.json` and a self-contained `report.html` of an evaluation."""
    write_json(directory / "report.json", {**result, **describe()})
    other = result.get("against")
    header = ["", "this model", *(["against"] if other else [])]
    names = ("dtype", "perplexity", "bits_per_byte", "kv", "kv_floats_per_token", "kv_bytes_per_token")
    rows = [[name, result[name], *([other[name]] if other else [])] for name in names]
    sections = [Section("Text", header, rows)]
    plots = []
    if other:
        plots = [Plot.bars("Perplexity", ["this model", "against"], [result["perplexity"], other["perplexity"]])]
        if other["ratio"] is not None:
            low, high = other["ratio_ci"]
            note = (
                f"Perplexity ratio {other['ratio']:.4f} (95 % interval {low:.4f} to {high:.4f}), KL {other['kl']:.4f}"
            )
            sections[0] = Section("Text", header, rows, note=note)
    for name, task in result.get("tasks", {}).items():
        keys = ("items", "chance", "accuracy", "accuracy_per_byte", "gold_logprob")
        base = task.get("against")
        sections.append(Section(name, header, [[k, task[k], *([base[k]] if base else [])] for k in keys]))
    if "long" in result:
        tables, curves = long_sections(result["long"], header[1:])
        sections, plots = sections + tables, plots + curves
    Report(f"Evaluation of {result['model']}", sections, plots).write(directory / "report.html")
