"""What the budget is compared with: fixed policies around the same drafter."""

from collections import defaultdict

import numpy as np

from regear.engine.budget import curve
from regear.engine.budget.classes import GUESSES, Classes
from regear.engine.drafters.base import NOTHING
from regear.ops.draft_budget import (
    best_forwards,
    best_forwards_as_printed,
    draft_tokens,
    draft_tokens_as_printed,
)

SURE_ENOUGH = 0.1  # the least chance of a guess without a budget, as in SuffixDecoding


class Fixed:
    """Guesses up to a number that `width` says for each text."""

    def __init__(self, oracle) -> None:
        self.oracle = oracle
        self.starts, self.proposed, self.kept = {}, defaultdict(int), defaultdict(int)
        self.history: list[tuple[int, int, int, int]] = []  # group, proposed, kept, length
        self.tokens = []

    def width(self, text) -> float:
        return np.inf

    def propose(self, texts, most):
        widths = np.array([min(self.width(text), m) for text, m in zip(texts, most.tolist(), strict=True)], np.int64)
        asked = np.flatnonzero(widths > 0)
        guesses = [NOTHING] * len(texts)
        if len(asked):
            least = np.full(len(asked), SURE_ENOUGH)
            found, _ = self.oracle.propose_weighed([texts[i] for i in asked], widths[asked], least)
            for i, guess in zip(asked, found, strict=True):
                guesses[i] = guess
        return guesses

    def observe(self, outcomes):
        for one in outcomes:
            self.proposed[one.number] += one.guessed
            self.kept[one.number] += one.kept

    def finish(self, number, tokens, prompt, group):
        self.history.append((group, self.proposed.pop(number), self.kept.pop(number), len(tokens) - prompt))
        self.oracle.finish(number, tokens, prompt, group)

    def advance(self):
        pass


class ByClass(Fixed):
    """DAS's length classes."""

    def __init__(self, oracle) -> None:
        super().__init__(oracle)
        self.classes = Classes()

    def width(self, text):
        start = self.starts.setdefault(text.number, self.classes.start(text.request.group))
        return GUESSES[self.classes.now(start, len(text.tokens) - text.prompt)]

    def finish(self, number, tokens, prompt, group):
        start = self.starts.pop(number, 1)
        super().finish(number, tokens, prompt, group)
        self.classes.add(group, start, len(tokens) - prompt)

    def advance(self):
        self.classes.refresh()


class ByEquation(Fixed):
    """DAS's budget, printed or corrected: p guesses for a text that is as long as its group was on average, spread
    evenly over the passes; α and k by what guesses became before."""

    def __init__(self, oracle, base: float, token: float, printed: bool) -> None:
        super().__init__(oracle)
        self.base, self.token, self.printed = base, token, printed
        self.shares, self.owed = {}, defaultdict(float)

    def advance(self):
        rows = np.array(self.history[-128:], float)
        alpha, k = curve.fit(rows[:, 1], rows[:, 2], rows[:, 3])
        lengths = {g: rows[rows[:, 0] == g, 3].mean() for g in np.unique(rows[:, 0])}
        every = np.array([lengths[g] for g in rows[:, 0]])
        law = every, np.full(len(every), alpha), np.full(len(every), k)
        forwards = (best_forwards_as_printed if self.printed else best_forwards)(*law, self.base, self.token)
        budget = (draft_tokens_as_printed if self.printed else draft_tokens)(*law, forwards)
        budget = np.minimum(budget, GUESSES[-1] * forwards)
        self.shares = {
            int(g): p / min(forwards, length) for g, p, length in zip(rows[:, 0], budget, every, strict=True)
        }

    def width(self, text):
        if text.request.group not in self.shares:
            return np.inf
        self.owed[text.number] += self.shares[text.request.group]
        whole = int(self.owed[text.number])
        self.owed[text.number] -= whole
        return whole
