"""What a budget asks of a drafter."""

from collections.abc import Sequence
from typing import Protocol

from regear.engine.budget.choose import Array, Counts
from regear.engine.drafters.base import Drafter, Text, Tokens


class Weighed(Drafter, Protocol):
    """A drafter that knows how likely its guesses are to stand."""

    def propose_weighed(self, texts: Sequence[Text], most: Counts, least: Array) -> tuple[list[Tokens], list[Array]]:
        """A guess for each text, and for each of its tokens the chance to stand with all before it, never rising.

        A guess has at most `most[i]` tokens and ends before the first with a chance below `least[i]`.
        """
        ...
