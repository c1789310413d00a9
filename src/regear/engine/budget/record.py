"""What was decided about a step, as a record, and a run repeated from its records."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from regear.core.errors import RecipeError
from regear.engine.budget.choose import Array, Counts
from regear.engine.budget.guard import Kind
from regear.engine.budget.weighed import Weighed
from regear.engine.drafters.base import NOTHING, Outcome, Text, Tokens

Record = dict[str, Any]


class Step:
    """A step and what was decided about it."""

    def __init__(self, kind: Kind, numbers: list[int], worth: Array, counts: Counts) -> None:
        self.kind, self.numbers, self.worth, self.counts = kind, numbers, worth, counts
        self.least: Array = np.ones(len(numbers))
        self.began = self.drafting = self.hoped = 0.0
        self.asked: list[int] = []  # texts that the drafter was asked for, by their place

    def row(self, number: int, seconds: float) -> Record:
        """The decision for JSON."""
        return {
            "step": number,
            "kind": self.kind,
            "rows": self.numbers,
            "tokens": len(self.numbers) + int(self.counts.sum()),
            "asked": self.asked,
            "thresholds": self.least.tolist(),
            "counts": self.counts.tolist(),
            "drafting": self.drafting,
            "seconds": seconds,
        }


class Replay:
    """A weighed drafter that is asked as in a recorded run, and its guesses cut as there, without clocks.

    Args:
        rows: what `Budget` recorded, in order; after the last one nothing is guessed.
    """

    def __init__(self, rows: Sequence[Record], drafter: Weighed) -> None:
        self.rows, self.drafter, self.step = list(rows), drafter, 0

    def propose(self, texts: Sequence[Text], most: Counts) -> list[Tokens]:
        """The guesses of the recorded step.

        Raises:
            RecipeError: other texts are in flight than in the recorded step.
        """
        if self.step >= len(self.rows):
            return [NOTHING] * len(texts)
        row = self.rows[self.step]
        self.step += 1
        numbers = [text.number for text in texts]
        if numbers != row["rows"]:
            raise RecipeError(
                f"step {row['step']} of the record has texts {row['rows']}, found {numbers}; "
                "replay the requests that were recorded, in their order"
            )
        asked = row["asked"]
        guesses = [NOTHING] * len(texts)
        if asked:
            least = np.array(row["thresholds"])[asked]
            found, _ = self.drafter.propose_weighed([texts[i] for i in asked], most[asked], least)
            for i, guess in zip(asked, found, strict=True):
                guesses[i] = guess[: row["counts"][i]]
        return guesses

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """Pass on what became of the guesses."""
        self.drafter.observe(outcomes)

    def finish(self, number: int, tokens: Tokens, prompt: int, group: Hashable) -> None:
        """Pass on that a text has ended."""
        self.drafter.finish(number, tokens, prompt, group)
