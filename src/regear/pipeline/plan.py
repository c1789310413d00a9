"""`regear plan`: what a long verb would take, before it reads a weight."""

from pathlib import Path
from typing import Any

from regear.healing.heal import heal


def plan(
    model: str | Path, teacher: str | Path, output: str | Path | None = None, *changes: str, **options: Any
) -> dict[str, Any]:
    """The plan of `regear.heal` with the same arguments: the JSON object of `regear heal --dry-run`.

    Raises:
        RecipeError, IncompatibleModel, CheckpointError, DataError: what `heal` would refuse before it trains.
    """
    return heal(model, teacher, output, *changes, **options, dry_run=True)
