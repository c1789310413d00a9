"""The drafters that `--draft` knows, and how its words are read: `none`, `ngram`, `suffix`, `suffix+model:DIR`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regear.core.errors import DataError, RecipeError
from regear.core.files import can_write
from regear.core.registry import Row, Table
from regear.engine.drafters.base import Drafter, Target

NONE = "none"

DRAFTERS = Table(
    "drafter",
    [
        Row(NONE, None, "", "one token a pass"),
        Row(
            "ngram", None, "regear.engine.drafters.ngram:open_ngram", "as the text went on after the same words before"
        ),
        Row("suffix", None, "regear.engine.drafters.history:open_suffix", "as past answers and its siblings went on"),
        Row(
            "model", None, "regear.engine.drafters.model:open_model", "a small model of the same vocabulary: model:DIR"
        ),
    ],
)


def parse(words: str) -> list[tuple[Row, str]]:
    """The rows that `--draft` names, in order, each with what stands after its colon; nothing for `none`.

    Raises:
        RecipeError: an unknown name, one twice, or `none` beside others.
    """
    names = "|".join(row.name for row in DRAFTERS)
    parts = [part.partition(":") for part in re.split(rf"\+(?=(?:{names})(?:[:+]|$))", words)]
    found = [(DRAFTERS[name], argument) for name, _, argument in parts]
    taken = [row.name for row, _ in found]
    if len(set(taken)) < len(taken) or (NONE in taken and len(taken) > 1):
        raise RecipeError(f"--draft {words}: wanted each drafter once, and none alone")
    return [] if taken == [NONE] else found


def check_draft(
    words: str, tokens: int, history: Sequence[str | Path] = (), save_history: str | Path | None = None
) -> None:
    """Refuse what cannot be meant, before any weight is read.

    Raises:
        RecipeError: words that are not understood, no tokens to guess, or past texts for a drafter that reads none.
        DataError: a file of past texts is missing, or none can be written where they are to be saved.
    """
    rows = parse(words)
    if (history or save_history is not None) and "suffix" not in [row.name for row, _ in rows]:
        raise RecipeError(f"--draft {words} reads and keeps no history; wanted --draft suffix")
    for path in map(Path, history):
        if not path.is_file():
            raise DataError(f"no file {path}; --history wants JSONL of past answers, or what --save-history wrote")
    if save_history is not None and not can_write(place := Path(save_history)):
        raise DataError(f"cannot write {place}; choose another place to save history in")
    if tokens < 1:
        raise RecipeError(f"draft tokens: found {tokens}; wanted >= 1, or --draft none")


def open_drafter(words: str, target: Target) -> Drafter | None:
    """The drafter of `--draft`, which guesses as far ahead as it pays; of several the first with a guess gives it.

    Raises:
        RecipeError: words that are not understood.
        IncompatibleModel: a drafter of another vocabulary.
        DataError: past texts that cannot be read.
    """
    from regear.engine.budget.policy import Budget
    from regear.engine.drafters.combine import Cascade
    from regear.engine.drafters.payoff import Payoff

    drafters: list[Any] = [row.load()(argument, target) for row, argument in parse(words)]
    if not drafters:
        return None
    if len(drafters) > 1:
        return Payoff(Cascade(drafters))
    return Budget(drafters[0]) if hasattr(drafters[0], "propose_weighed") else Payoff(drafters[0])
