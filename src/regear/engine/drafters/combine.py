"""Drafters together: the first one that has a guess for a text gives it."""

from collections.abc import Hashable, Sequence
from dataclasses import replace

from regear.engine.drafters.base import NOTHING, Array, Drafter, Outcome, Text, Tokens


class Cascade:
    """Asks each drafter for the texts that those before it had no guess for; cheap ones belong first."""

    def __init__(self, drafters: Sequence[Drafter]) -> None:
        self.drafters = list(drafters)
        self.source: dict[int, Drafter] = {}  # whose guess each text last had

    def propose(self, texts: Sequence[Text], most: Array) -> list[Tokens]:
        """The first guess there is."""
        guesses = [NOTHING] * len(texts)
        open_ = [i for i, count in enumerate(most.tolist()) if count > 0]
        for drafter in self.drafters:
            if not open_:
                break
            found = drafter.propose([texts[i] for i in open_], most[open_])
            for i, guess in zip(open_, found, strict=True):
                guesses[i] = guess
                if len(guess):
                    self.source[texts[i].number] = drafter
            open_ = [i for i in open_ if not len(guesses[i])]
        return guesses

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """Every drafter hears of all texts, but only of its own guesses."""
        for drafter in self.drafters:
            drafter.observe([self._for(drafter, outcome) for outcome in outcomes])

    def _for(self, drafter: Drafter, outcome: Outcome) -> Outcome:
        if not outcome.guessed or self.source.get(outcome.number) is drafter:
            return outcome
        return replace(outcome, guessed=0, kept=0)

    def finish(self, number: int, tokens: Tokens, prompt: int, group: Hashable) -> None:
        """Every drafter forgets the text."""
        self.source.pop(number, None)
        for drafter in self.drafters:
            drafter.finish(number, tokens, prompt, group)
