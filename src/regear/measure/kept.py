"""Scores of many units, kept block by block in the cache, so that a run that was killed goes on where it was."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from regear.core.files import digest, home, read_json, write_json

BLOCK = 16
Unit = TypeVar("Unit")
Progress = Callable[[str, int, int], None]


def in_blocks(
    stage: str,
    identity: Any,
    units: Sequence[Unit],
    names: Sequence[Any],
    score: Callable[[Sequence[Unit]], list[dict[str, Any]]],
    *,
    block: int = BLOCK,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """What `score` says of every unit, one JSON object each; blocks that were scored before are read instead.

    Args:
        stage: what is scored, for the progress.
        identity: all that decides the scores beside the units, as a JSON value: models, settings, versions.
        units: in a fixed order; more of them later go on from these.
        names: what decides each unit's scores, as JSON values: its text, its options.
        score: is given one block of units at a time.
        block: how many units; a killed run loses at most so many.
        progress: told the stage, the units done and how many there are.
    """
    place = home() / "scores" / digest([stage, identity])[:32]
    rows: list[dict[str, Any]] = []
    for start in range(0, len(units), block):
        path = place / f"{digest(list(names[start : start + block]))[:32]}.json"
        if not path.exists():
            write_json(path, score(units[start : start + block]))
        rows += read_json(path)
        if progress is not None:
            progress(stage, len(rows), len(units))
    return rows
