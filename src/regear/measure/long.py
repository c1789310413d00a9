"""`regear eval --long`: perplexity by position and planted facts, alone or paired against another model."""

from collections.abc import Sequence
from typing import Any

from regear.core.errors import RecipeError
from regear.core.report import Plot, Section, Series
from regear.measure.needle import NeedleScores, score_needles
from regear.measure.position import long_rows, score_positions
from regear.tasks.needle import needles
from regear.tasks.text import Document, spread

SHORTEST = 256
WINDOWS = 4  # without a given context, the text should hold so many windows, or no interval means much
ITEMS = 10


def limit_of(models: Sequence[Any]) -> int:
    """The longest context that every model was made for."""
    return min(int(model.config.get_text_config().max_position_embeddings) for model in models)


def long_context(
    models: Sequence[Any],
    tokenizer: Any,
    documents: Sequence[Document],
    *,
    kinds: Sequence[str | None],
    context: int | None = None,
    windows: int | None = None,
    items: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Score one or two models that share a tokenizer on long texts.

    Args:
        models: the model, and the one to compare it with.
        tokenizer: of both.
        documents: what windows and filler are cut from.
        kinds: cache kinds of the models.
        context: tokens of a window and of the longest needle; by default the models' limit, halved until the texts
            hold 4 windows.
        windows: at most so many windows.
        items: needles of each length.
        seed: of the needles and the bootstrap.

    Returns `context`, `limit`, `windows`, `positions` (one row a bin) and `needle` (one row a length and depth; those
    with a null depth are over all depths, with two models `against` and the paired `change`).

    Raises:
        RecipeError: a context beyond the models' limit or below 256.
        DataError: a text too short for one window.
    """
    limit = limit_of(models)
    if context is not None and not SHORTEST <= context <= limit:
        raise RecipeError(f"found context={context}; wanted {SHORTEST} to {limit}, the models' own limit")
    chosen = context or _fitting(documents, tokenizer, limit)
    rows = long_rows(documents, tokenizer, chosen)
    rows = spread(rows, windows) if windows else rows
    lengths = [n for n in (chosen // 8, chosen // 4, chosen // 2, chosen) if n >= SHORTEST]
    questions = [q for n in lengths for q in needles(documents, tokenizer, n, items=items or ITEMS, seed=seed)]
    found = [score_needles(model, questions, kind) for model, kind in zip(models, kinds, strict=True)]
    return {
        "context": chosen,
        "limit": limit,
        "windows": len(rows),
        "positions": score_positions(models, rows, kinds).rows(seed),
        "needle": needle_rows(found, seed),
    }


def _fitting(documents: Sequence[Document], tokenizer: Any, limit: int) -> int:
    total = sum(len(tokenizer(document.text)["input_ids"]) for document in documents)
    while limit * WINDOWS > total and limit // 2 >= SHORTEST:
        limit //= 2
    return limit


def needle_rows(found: Sequence[NeedleScores], seed: int) -> list[dict[str, Any]]:
    """One row a length and depth of one model, or of a model beside the other, with the paired change by length."""
    rows = found[0].rows()
    if len(found) == 2:
        for row, other in zip(rows, found[1].rows(), strict=True):
            row["against"] = {key: other[key] for key in ("accuracy", "exact")}
            if row["depth"] is None:
                change = found[0].change_from(found[1], row["length"], seed=seed)
                row["change"] = {name: [x.value, x.low, x.high] for name, x in change.items()}
    return rows


def sections(result: dict[str, Any], labels: Sequence[str]) -> tuple[list[Section], list[Plot]]:
    """Tables and plots of a report; `labels` name the model and the other, if there is one."""
    bins, facts = result["positions"], result["needle"]
    pair = len(labels) == 2
    names = [labels[0], *([labels[1], "ratio", "95 % interval", "KL"] if pair else [])]
    rows = [[f"{b['from']:,} to {b['to'] - 1:,}", *_bin(b, pair)] for b in bins]
    note = f"{result['windows']} windows of {result['context']:,} tokens; the model's limit is {result['limit']:,}."
    tables = [Section("Perplexity by position", ["position", *names], rows, note)]
    plots = [_position_plot(bins, pair)]
    header = ["length", "depth", "items", *(f"{kind}, {label}" for label in labels for kind in ("accuracy", "exact"))]
    body = [[r["length"], "all" if r["depth"] is None else r["depth"], r["items"], *_fact(r, pair)] for r in facts]
    note = f"Chance is {facts[0]['chance']:.2f} in accuracy and nil in exact retrieval."
    tables.append(Section("Planted facts", header, body, note))
    return tables, [*plots, _needle_plot(facts, labels)]


def _bin(row: dict[str, Any], pair: bool) -> list[Any]:
    if not pair:
        return [row["perplexity"]]
    low, high = row["ratio_ci"]
    return [row["perplexity"], row["against"], row["ratio"], f"{low:.4f} to {high:.4f}", row["kl"]]


def _fact(row: dict[str, Any], pair: bool) -> list[Any]:
    sides = [row, row["against"]] if pair else [row]
    return [side[kind] for side in sides for kind in ("accuracy", "exact")]


def _position_plot(bins: Sequence[dict[str, Any]], pair: bool) -> Plot:
    x = [b["to"] for b in bins]
    if not pair:
        return Plot(
            "Perplexity by position", [Series("", x, [b["perplexity"] for b in bins])], "position", "perplexity"
        )
    low, high = ([b["ratio_ci"][i] for b in bins] for i in (0, 1))
    line = Series("", x, [b["ratio"] for b in bins], low, high)
    return Plot("Perplexity ratio by position", [line], "position", "perplexity / against")


def _needle_plot(facts: Sequence[dict[str, Any]], labels: Sequence[str]) -> Plot:
    rows = [row for row in facts if row["depth"] is None]
    lines = []
    for side, label in enumerate(labels):
        figures = [row["against"] if side else row for row in rows]
        lines += [
            Series(f"{label}: {kind}", [r["length"] for r in rows], [f[kind] for f in figures])
            for kind in ("accuracy", "exact")
        ]
    return Plot("Planted facts found", lines, "length (tokens)", "share")
