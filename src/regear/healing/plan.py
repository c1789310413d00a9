"""What a healing will take, told before any weight is read: operations, hours, memory, epochs of text, refusals."""

from typing import Any

import torch

from regear.core.errors import DataError
from regear.core.machine import available_memory_bytes
from regear.healing.recipes import HealRecipe
from regear.models.load import load_config, skeleton
from regear.train.cost import EFFICIENCY, Operations, Sizes, inference, matrix_rate, memory, operations
from regear.train.cost import trained_parameters as trained
from regear.train.optim import select
from regear.train.pack import Example, PackedRow, Packer
from regear.train.parallel import processes
from regear.train.recipes import StageRecipe
from regear.train.stages import check_names
from regear.train.stream import NOTHING_TO_LEARN, Stream

EPOCHS = 4  # up to here, text read again is worth nearly as much as new (arXiv 2305.16264)
COUNTED_TOKENS = 200_000
WINDOW = 512  # tokens of a window that is scored, about
GIB = 2**30
SLOWER = "this processor multiplies bfloat16 more slowly than float32; leave train.precision out"


def make_plan(healing: Any, rate: float | None = None) -> dict[str, Any]:
    """The plan of an open `Healing`, as JSON.

    Args:
        rate: operations a second of matrix products; measured here when not given.

    Raises:
        RecipeError, IncompatibleModel: names, layers or adapters that do not fit; predictions of another teacher.
        DataError: training files that are missing, or whose rows do not serve.
    """
    device = torch.device(healing.inputs["device"])
    parts, plain = healing.recipe.parts(), device.type != "cpu"
    rates = {half: rate or matrix_rate(device, half=half) for half in {plain, *(p.half(device.type) for p in parts)}}
    speeds = {half: value * processes() * EFFICIENCY[device.type] for half, value in rates.items()}
    student, original = skeleton(healing.start.config()), skeleton(load_config(healing.teacher))
    healing.check_caches()
    check_names(student, original, parts)
    teacher = Sizes.of(original)
    texts: dict[tuple[int, bool], tuple[int, int]] = {}
    stages = []
    for stage in parts:
        select(student, stage.train, stage.freeze)
        key = (stage.sequence, stage.objective.pairs)
        if key not in texts:
            texts[key] = epoch_of(healing.stream(stage, 2))
        speed = speeds[stage.half(device.type)]
        stages.append(_stage(healing, stage, Sizes.of(student), teacher, speed, speeds[plain], texts[key], device.type))
    # Before and after, and now and then while it trains, each beside the teacher, on the leading process alone.
    recipe: HealRecipe = healing.recipe
    scored = 2 * sum(getattr(recipe, use).tokens for use in ("evaluation", "elsewhere"))
    if recipe.held_out_every and processes() == 1:
        looks = sum(-(-stage["steps"] // recipe.held_out_every) for stage in stages)
        scored += looks * recipe.held_out_windows * WINDOW
    scoring = scored * (inference(teacher, WINDOW) + inference(Sizes.of(student), WINDOW))
    measuring = scoring / speeds[plain] * processes()
    found = {
        "dry_run": True,
        "format": healing.start.format,
        "processes": processes(),
        "device": device.type,
        "matrix_rate": rates[plain] * processes(),
        "efficiency": EFFICIENCY[device.type],
        "parameters": {"student": Sizes.of(student).parameters, "teacher": teacher.parameters},
        "stages": stages,
        "tokens": sum(stage["tokens"] for stage in stages),
        "hours": round(sum(stage["hours"] for stage in stages) + measuring / 3600, 4),
        "measuring_hours": round(measuring / 3600, 4),
        "memory_bytes": max(stage["memory_bytes"]["total"] for stage in stages),
        "available_memory_bytes": available_memory_bytes(),
    }
    slower = not plain and True in rates and rates[True] < rates[False]
    return {**found, "warnings": _warnings(found) + [SLOWER] * slower}


def _stage(
    healing: Any,
    stage: StageRecipe,
    student: Sizes,
    teacher: Sizes,
    speed: float,
    writing_speed: float,
    held: tuple[int, int],
    device: str,
) -> dict[str, Any]:
    recipe: HealRecipe = healing.recipe
    taught = teacher if stage.objective.teacher != "none" else None
    cached = recipe.teacher.serves(stage)
    costs = operations(student, taught, stage, cached=cached)
    tokens = _tokens(stage, costs, speed)
    writing = tokens * inference(teacher, stage.sequence) / writing_speed if cached else 0.0
    bytes_each = 4 if device == "cpu" else 2
    found = {
        "objective": stage.objective.kind,
        "precision": "bfloat16" if stage.half(device) else "float32",
        "tokens": tokens,
        "steps": tokens // (stage.batch * stage.sequence),
        "trained_parameters": trained(student, stage),
        "operations_per_token": {
            "forward": costs.forward,
            "backward": costs.backward,
            "head": costs.head,
            "teacher": costs.teacher,
            "total": costs.total,
        },
        "tokens_per_second": round(speed / costs.total, 1),
        "hours": round((tokens * costs.total / speed + writing) / 3600, 4),
        "teacher_cache": None,
        "text_tokens": held[0],
        "epochs": round(tokens / held[1], 3),
        # The leading process keeps the whole teacher to measure with.
        "memory_bytes": memory(student, bytes_each * teacher.parameters, stage, processes=processes(), device=device),
    }
    if cached:
        kept = min(recipe.teacher.cache or 0, teacher.vocabulary)
        width = 2 if recipe.teacher.dtype == "float16" else 4
        ids = 2 if teacher.vocabulary <= 1 << 16 else 4
        found["teacher_cache"] = {
            "kept": kept,
            "bytes": tokens * (kept * (width + ids) + width),
            "hours": round(writing / 3600, 4),
        }
    return found


def _tokens(stage: StageRecipe, costs: Operations, speed: float) -> int:
    """As many as are asked for or as the time allows, in whole steps."""
    step = stage.batch * stage.sequence
    timed = [] if stage.minutes is None else [max(1, int(60 * stage.minutes * speed / costs.total / step))]
    given = stage.steps()
    return step * min(timed + ([] if given is None else [given]))


def _warnings(found: dict[str, Any]) -> list[str]:
    warnings = [
        f"stage {number}: the text holds about {stage['text_tokens']:,} tokens, read {stage['epochs']:.1f} times; "
        "give more text, or fewer train.tokens"
        for number, stage in enumerate(found["stages"], 1)
        if stage["epochs"] > EPOCHS
    ]
    left = found["available_memory_bytes"]
    if found["device"] == "cpu" and left is not None and found["memory_bytes"] > left:
        warnings.append(
            f"about {found['memory_bytes'] / GIB:.1f} GiB are needed a process, and {left / GIB:.1f} GiB are free; "
            "lower train.micro_batch, or set train.gradient_checkpointing=true"
        )
    return warnings


def epoch_of(stream: Stream) -> tuple[int, int]:
    """The tokens of one epoch, and the places in rows that they take, padding too (what a stage's tokens count).

    Counted where files are small, else from the share of each that was counted.

    Raises:
        DataError: a row that cannot be trained on.
    """
    budget = max(2_000, COUNTED_TOKENS // len(stream.sources))
    tokens = places = 0.0
    for source, layout in zip(stream.sources, stream.layouts, strict=True):
        counted = taken = 0.0
        packer = Packer(stream.sequence, stream.packer.packing)
        for position, row in source.rows():
            if counted >= budget:
                counted, taken = (value / source.share(position) for value in (counted, taken))
                break
            whole = len(row["text"]) if layout == "text" and isinstance(row["text"], str) else 0
            read = min(whole, 8 * budget)
            try:
                made = list(stream.examples.of({**row, "text": row["text"][:read]} if whole else row, layout))
            except ValueError as error:
                raise DataError(f"{source.where(position)}: {error}") from None
            if not all(any(example.targets[1:]) for example in made):
                continue  # as when it is trained on
            weight = whole / read if whole else 1
            counted += sum(len(example.ids) for example in made) * weight
            taken += _laid(packer, made) * weight
        tokens, places = tokens + counted, places + taken
    if not tokens:
        raise DataError(NOTHING_TO_LEARN.format(stream.sequence))
    return max(1, round(tokens)), max(1, round(places))


def _laid(packer: Packer, examples: list[Example]) -> int:
    """The places in rows that these examples take: of rows that are done all, of open ones what is filled."""
    before = sum(map(_length, packer.open))
    for example in examples:
        packer.add(example)
    done, packer.ready = len(packer.ready) * packer.sequence, []
    return done + sum(map(_length, packer.open)) - before


def _length(row: PackedRow) -> int:
    return sum(map(len, row))


def describe(plan: dict[str, Any]) -> str:
    """The plan in a few lines, for people."""
    lines = [
        f"plan: {plan['tokens']:,} tokens in about {_time(plan['hours'])}, of which measuring "
        f"{_time(plan['measuring_hours'])}; about {plan['memory_bytes'] / GIB:.1f} GiB a process, "
        f"{plan['processes']} process{'es' * (plan['processes'] > 1)} on {plan['device']} "
        f"({plan['matrix_rate'] / 1e9:,.0f} Gflop/s measured, {plan['efficiency']:.0%} of it expected)"
    ]
    for number, stage in enumerate(plan["stages"], 1):
        cache = stage["teacher_cache"]
        lines.append(
            f"  stage {number} ({stage['objective']}): {stage['steps']:,} steps, {stage['trained_parameters']:,} "
            f"parameters trained, {stage['operations_per_token']['total'] / 1e9:.2f} Gflop and "
            f"{stage['epochs']:.2g} epochs, {stage['tokens_per_second']:,.0f} tokens/s in {stage['precision']}, "
            + _time(stage["hours"])
            + (f", {cache['bytes'] / GIB:.2f} GiB of written predictions" if cache else "")
        )
    return "\n".join([*lines, *(f"  warning: {text}" for text in plan["warnings"])])


def _time(hours: float) -> str:
    seconds = 3600 * hours
    return f"{seconds:.0f} s" if seconds < 120 else f"{hours * 60:.0f} min" if hours < 2 else f"{hours:.1f} h"
