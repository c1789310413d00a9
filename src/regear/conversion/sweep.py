"""Quality against cache size: many settings of the MLA conversion scored in one pass, from one calibration."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regear.conversion.base import Texts
from regear.conversion.convert import calibration_place, open_source, read_texts, warn
from regear.conversion.factors import FACTORS
from regear.conversion.mla import MlaConversion
from regear.conversion.recipes import MlaConvertRecipe
from regear.conversion.stream import batches, losses
from regear.core.errors import CheckpointError, RecipeError
from regear.core.files import write_json
from regear.core.machine import describe
from regear.core.recipe import apply_changes, read_yaml, set_key, validate
from regear.core.report import Plot, Report, Section, Series
from regear.core.run import Progress, silent
from regear.core.stats import Interval, knee, paired_bootstrap, perplexity_ratio
from regear.measure.perplexity import Scores
from regear.models.adapter import source_digest
from regear.models.carry import source_name
from regear.tasks.text import digest_of

RATIOS = ("3/4", "2/3", "1/2", "2/5", "1/3", "1/4", "1/6")
# Named settings to draw; without a preset the recipe is drawn as it stands.
AS_GIVEN = "recipe"
REPORTS = ("report.json", "report.html")


def sweep(
    model: str | Path,
    output: str | Path | None = None,
    *changes: str,
    to: str | None = "mla",
    config: str | Path | None = None,
    ratios: Sequence[float | str] = RATIOS,
    presets: Sequence[str] = (),
    seed: int | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Score a conversion at several cache ratios; with `presets`, several settings beside each other.

    Args:
        model: directory, hub id or embedded name.
        output: a directory for `report.json` and `report.html`.
        changes: `key=value` words over the recipe.
        to: the conversion; only `mla` has a cache ratio to sweep.
        config: a recipe file.
        ratios: of the cache, each a number or a fraction.
        presets: settings to compare; by default the recipe as it is.
        seed: over the recipe's.
        device: where layers run.

    Returns the JSON object that `regear convert --sweep --json` prints: `original`, `points`, and `knee` by setting.
    """
    if to not in (None, "mla"):
        raise RecipeError(f"found --to {to}; only mla has a cache ratio to sweep")
    if output is not None:
        _check_free(Path(output))
    words = changes if seed is None else (*changes, f"seed={seed}")
    recipes = {(name, str(r)): _recipe(config, words, name, r) for name in presets or (AS_GIVEN,) for r in ratios}
    first = next(iter(recipes.values()))
    for recipe in recipes.values():
        directory, conversion = open_source(model, recipe, "mla", device)
        conversion.plan()
    texts = read_texts(first, directory, conversion.spec.vocabulary)
    conversion.check_texts(texts, warn)
    place = calibration_place(conversion, source_digest(directory), texts)
    scores, floats = _score(model, recipes, texts, place, device, progress)
    original = scores[None]
    points = []
    for name, ratio in recipes:
        points.append({"setting": name, "kv_ratio": ratio, "kv_floats_per_token": floats[name, ratio]})
        points[-1] |= _point(scores[name, ratio], original, first.seed)
    result = {
        "model": source_name(model, directory),
        "original": {
            "perplexity": math.exp(original.log_perplexity),
            "windows": len(original.nll),
            "tokens": sum(original.tokens),
            "kv_floats_per_token": conversion.spec.kv_floats_per_token,
        },
        "texts": {use: digest_of(windows) for use, windows in texts.windows.items()},
        "points": points,
        "knee": {name: _knee([p for p in points if p["setting"] == name]) for name, _ in recipes},
    }
    if output is not None:
        write_json(Path(output) / "report.json", {**result, **describe()})
        page = Report(f"Quality against cache: {result['model']}", [table(result)], plots(result))
        page.write(Path(output) / "report.html")
    return result


def _check_free(output: Path) -> None:
    """A sweep's directory holds its two reports and nothing else."""
    if output.is_symlink() or output.exists():
        others = {path.name for path in output.iterdir()} - set(REPORTS) if output.is_dir() else {output.name}
        if others:
            raise CheckpointError(f"{output} already holds {sorted(others)[0]}; choose another directory for the sweep")


def _recipe(config: str | Path | None, words: Sequence[str], preset: str, ratio: float | str) -> MlaConvertRecipe:
    values = read_yaml(Path(config)) if config is not None else {}
    apply_changes(values, words)
    set_key(values, "convert.kv_ratio", ratio)
    if preset != AS_GIVEN:
        set_key(values, "convert.preset", preset)
    return validate(MlaConvertRecipe, values)


def _score(
    model: str | Path,
    recipes: dict[tuple[str, str], MlaConvertRecipe],
    texts: Texts,
    place: Path,
    device: str,
    progress: Progress,
) -> tuple[dict[Any, Scores], dict[Any, int]]:
    """Scores of the original (key None) and of every setting on the evaluation windows, in one pass; and the cached
    floats per token of every setting."""
    prepared: dict[str, MlaConversion] = {}
    # Whoever needs most of the calibration goes first; the others find theirs in the cache.
    for (name, _), recipe in sorted(recipes.items(), key=lambda row: -len(FACTORS[row[1].convert.factor].collectors)):
        if name not in prepared:
            conversion: MlaConversion = open_source(model, recipe, "mla", device)[1]  # type: ignore[assignment]
            conversion.prepare(texts, place, progress)
            prepared[name] = conversion
    variants: dict[Any, Any] = {None: None}
    floats: dict[Any, int] = {}
    for name, ratio in recipes:
        variants[name, ratio] = prepared[name].at_ratio(ratio)
        floats[name, ratio] = prepared[name].kv_floats
    progress("score", 0, 1)
    ids = texts.ids["evaluation"]
    last = prepared[next(reversed(prepared))]
    found = losses(last.source, batches(ids, [1.0] * len(ids)), list(variants.values()))
    progress("score", 1, 1)
    return dict(zip(variants, found, strict=True)), floats


def _point(result: Scores, original: Scores, seed: int) -> dict[str, Any]:
    ratio = perplexity_ratio(result.nll, original.nll, original.tokens, seed=seed)
    return {
        "perplexity": math.exp(min(result.log_perplexity, 700)),
        "ratio": ratio.value,
        "ratio_ci": [ratio.low, ratio.high],
        "excess": result.log_perplexity - original.log_perplexity,
        "kl": result.mean_kl,
        "excess_by_window": [a - b for a, b in zip(result.nll, original.nll, strict=True)],
    }


def _knee(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found = points[knee([p["kv_floats_per_token"] for p in points], [p["excess"] for p in points])]
    return {key: found[key] for key in ("kv_ratio", "kv_floats_per_token", "ratio")}


def excess_quotient(points: Sequence[dict[str, Any]], setting: str, base: str, ratio: str, seed: int = 0) -> Interval:
    """Excess log-perplexity of one setting over another's at the same ratio, with its paired interval."""
    rows = {p["setting"]: p["excess_by_window"] for p in points if p["kv_ratio"] == ratio}
    return paired_bootstrap(rows[setting], rows[base], seed=seed)


def table(result: dict[str, Any]) -> Section:
    """The points as a table."""
    rows = []
    for p in result["points"]:
        low, high = p["ratio_ci"]
        interval = f"{low:.3f} to {high:.3f}"
        rows.append(
            [p["setting"], p["kv_ratio"], p["kv_floats_per_token"], p["perplexity"], p["ratio"], interval, p["kl"]]
        )
    original = result["original"]
    knees = "; ".join(f"{name}: {k['kv_ratio']}" for name, k in result["knee"].items())
    note = (
        f"Original perplexity {original['perplexity']:.3f} on {original['windows']} windows ({original['tokens']:,} "
        f"tokens). Knee (the point farthest from the chord): {knees}."
    )
    header = ["setting", "KV ratio", "KV floats a token", "perplexity", "ratio", "95 % interval", "KL"]
    return Section("Quality against cache", header, rows, note)


def plots(result: dict[str, Any]) -> list[Plot]:
    """Perplexity ratio against KV floats, a line a setting, the last one's knee marked."""
    lines: list[Series] = []
    marks: list[tuple[float, float, str]] = []
    for name, found in result["knee"].items():
        rows = sorted((p for p in result["points"] if p["setting"] == name), key=lambda p: p["kv_floats_per_token"])
        low, high = ([p["ratio_ci"][i] for p in rows] for i in (0, 1))
        lines.append(Series(name, [p["kv_floats_per_token"] for p in rows], [p["ratio"] for p in rows], low, high))
        marks = [
            (found["kv_floats_per_token"], found["ratio"], "knee")
        ]  # of the last setting, which the others lead to
    return [
        Plot("Perplexity ratio against KV floats", lines, "KV floats a token", "perplexity / original", True, marks)
    ]
