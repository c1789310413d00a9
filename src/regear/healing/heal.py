"""`regear heal`: train a converted model back to what it was made from, and measure what that won.

The original is measured on the same windows, so that a gain of the domain is not sold as a repair.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from regear.core.errors import RecipeError
from regear.core.recipe import apply_changes, read_yaml, set_key, validate
from regear.core.run import Progress, is_done, silent
from regear.healing.board import Board
from regear.healing.job import Healing
from regear.healing.plan import make_plan
from regear.healing.recipes import HealRecipe
from regear.train.parallel import own_device, processes, rank, world


def build_recipe(
    config: str | Path | None, changes: Sequence[str], text: Sequence[str | Path], size: int = 1
) -> HealRecipe:
    """The checked recipe for `size` processes: defaults, then the file, `key=value` words, the training texts.

    Raises:
        RecipeError: anything unknown, out of range or contradictory.
    """
    values = read_yaml(Path(config)) if config is not None else {}
    apply_changes(values, changes)
    if text:
        set_key(values, "data.text", [str(name) for name in text])
    recipe = validate(HealRecipe, values)
    for stage in recipe.parts():
        stage.rows(size)
    return recipe


def heal(
    model: str | Path,
    teacher: str | Path,
    output: str | Path | None = None,
    *changes: str,
    text: Sequence[str | Path] = (),
    config: str | Path | None = None,
    tasks: Sequence[str] = (),
    force: bool = False,
    dry_run: bool = False,
    tensorboard: str | Path | None = None,
    seed: int | None = None,
    device: str = "auto",
    progress: Progress = silent,
    announce: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train a converted model on its original (or on text alone), and write it in the form it came in.

    Args:
        model: the directory to heal.
        teacher: the original: directory, hub id or embedded name. Every figure is a ratio to it.
        output: the directory to make; it appears whole, by one rename.
        changes: `key=value` words over the recipe.
        text: training files (text, JSONL or parquet) in the place of the built-in texts.
        config: a recipe file.
        tasks: multiple-choice tasks to score before and after.
        force: replace an output of another recipe, text or model.
        dry_run: only say what it would take and refuse what cannot be done; no weight is read. Needs no output. Of
            several processes the first one says it.
        tensorboard: a folder that shows the run's metrics to TensorBoard.
        seed: over the recipe's.
        device: `auto` is the GPU where there is one.
        progress: told a stage, the step done, and how many there are.
        announce: told the plan before training begins.

    Returns the JSON object that `regear heal --json` prints.

    Raises:
        RecipeError, IncompatibleModel, CheckpointError, DataError: before anything appears at the output.
    """
    words = (*changes, *([] if seed is None else [f"seed={seed}"]))
    if dry_run:
        if rank():
            return {"dry_run": True, "rank": rank()}
        own_device(device)
        healing = Healing.open(model, teacher, build_recipe(config, words, text, processes()), list(tasks), device)
        if output is not None:
            is_done(healing.apart(output), healing.fingerprint, force=force)
        return make_plan(healing)
    with world(own_device(device)) as here:
        recipe = build_recipe(config, words, text, here.size)
        if output is None:
            raise RecipeError("no output given; name one with -o DIR, or pass --dry-run")
        healing = Healing.open(model, teacher, recipe, list(tasks), device)
        out = healing.apart(output)
        if not here.leads:
            return healing.follow(out, here)
        if is_done(out, healing.fingerprint, force=force):
            return healing.already(out, here)
        board = None if tensorboard is None else Board(Path(tensorboard))
        if announce is not None:
            announce(make_plan(healing))
        return healing.run(out, here, progress, board, force=force)
