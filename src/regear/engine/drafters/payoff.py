"""Guess only as far ahead as it pays, by the measured time of steps and the measured fate of guesses.

A step of N texts with w guesses each takes T(N, w) seconds, whoever needs the guesses, and brings a text 1 + e(w)
tokens: e(w) = a + a² + … + a^w, where a is how often a guess of it stood so far. The width is the one with the most
tokens a second. Where that is 0, nothing is guessed for a while, twice as long each time, and then tried again.
Guesses change no text, so neither do clocks.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Sequence
from math import log2
from statistics import median

import numpy as np

from regear.engine.drafters.base import NOTHING, Array, Drafter, Outcome, Text, Tokens

SAMPLES, ENOUGH = 9, 2  # step times of a kind that are remembered, for their median, and that are needed for one
GUESSED = 0.1  # what a guess a text adds to a step's time, until it is measured
FRESH = 64  # steps with guesses after which one without is timed again; steps without after which one is let through
DOUBT = 64  # steps after which all widths are timed again; then twice as many, and so on
TRIAL, NARROW = 2, 2  # steps of a trial, and guesses a text in them
PAUSE, LONGEST = 32, 256  # steps of the first pause, and of the longest
MEMORY, LONG_MEMORY = 0.95, 0.995  # weight of the past in the acceptance of one text and of all, at each new guess
PRIOR = 4.0  # guessed tokens that the acceptance of all texts counts for in that of one


class Acceptance:
    """How often guessed tokens stood, of late: of one text, leaning on that of all."""

    def __init__(self, memory: float = MEMORY) -> None:
        self.memory, self.stood, self.tried = memory, 0.0, 0.0

    def add(self, kept: int, guessed: int) -> None:
        """A guess of which `kept` tokens stood; of those behind the first that fell nothing is known."""
        self.stood = self.memory * self.stood + kept
        self.tried = self.memory * self.tried + min(kept + 1, guessed)

    def rate(self, prior: float) -> float:
        """Between 0 and 1."""
        return (self.stood + PRIOR * prior) / (self.tried + PRIOR)


class Payoff:
    """A drafter that is asked for as many tokens as pay, and not at all for a while where none does.

    Args:
        clock: seconds; the time from the end of `propose` to `observe` is that of a step.
    """

    def __init__(self, drafter: Drafter, clock: Callable[[], float] = time.monotonic) -> None:
        self.drafter, self.clock = drafter, clock
        self.times: dict[tuple[int, int], deque[float]] = defaultdict(lambda: deque(maxlen=SAMPLES))
        self.drafting: deque[float] = deque(maxlen=SAMPLES)  # seconds a width
        self.texts: dict[int, Acceptance] = {}
        self.all = Acceptance(LONG_MEMORY)
        self.since = self.cut = self.rest = self.trial = 0
        self.pause, self.trying = PAUSE, False
        self.steps, self.doubt = 0, DOUBT
        self.step = (0, 0)
        self.began: float | None = None

    def propose(self, texts: Sequence[Text], most: Array) -> list[Tokens]:
        """The drafter's guesses, cut to the width that pays."""
        crowd = _crowd(len(texts))
        rates = [self._rate(text.number) for text in texts]
        width = self._width(crowd, np.array(rates), most, self._cost_of_drafting())
        guesses = [NOTHING] * len(texts)
        if width:
            start = self.clock()
            guesses = self.drafter.propose(texts, np.minimum(most, width))
            self.drafting.append((self.clock() - start) / width)
            guesses = self._shortened(guesses, crowd, np.array(rates))
        self.step = crowd, max((len(guess) for guess in guesses), default=0)
        self.since = self.since + 1 if self.step[1] else 0
        self.began = self.clock()
        return guesses

    def _shortened(self, guesses: list[Tokens], crowd: int, rates_N: Array) -> list[Tokens]:
        """The guesses cut to what pays now that it is known which texts have one."""
        lengths = np.array([len(guess) for guess in guesses])
        best = self._best(crowd, rates_N, lengths, 0.0)
        self.cut = self.cut + 1 if best == 0 and lengths.any() else 0
        if self.trying or self.cut >= FRESH:
            self.cut = 0
            return guesses
        return [guess[:best] for guess in guesses]

    def _width(self, crowd: int, rates_N: Array, most_N: Array, drafting: float) -> int:
        """How many tokens to ask for: 0 while resting, and where a step without guesses is to be timed."""
        if self.rest:
            self.rest -= 1
            self.trial = 0 if self.rest else TRIAL
            return 0
        if len(self.times[crowd, 0]) < ENOUGH or self.since >= FRESH:
            return 0
        self.trying = self.trial > 0
        if self.trying:
            self.trial -= 1
            return min(NARROW, int(most_N.max(initial=0)))
        best = self._best(crowd, rates_N, most_N, drafting)
        if best:
            self.pause = PAUSE
        elif most_N.max(initial=0) > 0:
            self.rest, self.pause = self.pause, min(2 * self.pause, LONGEST)
        return best

    def _best(self, crowd: int, rates_N: Array, most_N: Array, drafting: float) -> int:
        """The width with the most tokens a second."""
        widths = range(int(most_N.max(initial=0)) + 1)
        return max(widths, key=lambda w: self._tokens(rates_N, most_N, w) / (self._seconds(crowd, w) + w * drafting))

    def _tokens(self, rates_N: Array, most_N: Array, width: int) -> float:
        steps = np.arange(1, width + 1)
        stand = rates_N[:, None] ** steps * (steps <= most_N[:, None])
        return float(len(rates_N) + stand.sum())

    def _seconds(self, crowd: int, width: int) -> float:
        """The usual time of such steps; where too few were timed, from that of the next narrower ones."""
        known = width
        while known and len(self.times[crowd, known]) < ENOUGH:
            known -= 1
        found = self.times[crowd, known]
        usual = median(found) if len(found) == SAMPLES else min(found)  # a step is held up, never hurried
        return usual * (1 + GUESSED * (width - known))

    def _look_again(self) -> None:
        """Let every width be timed once more: what held its steps up may be over, and a width that looks dear is
        never taken again."""
        self.doubt *= 2
        for found in self.times.values():
            while len(found) >= ENOUGH:
                found.popleft()

    def _cost_of_drafting(self) -> float:
        return median(self.drafting) if self.drafting else 0.0

    def _rate(self, number: int) -> float:
        return self.texts.setdefault(number, Acceptance()).rate(self.all.rate(0.5))

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """Learn from what became of the guesses, and from how long the step took."""
        if self.began is not None:
            self.times[self.step].append(self.clock() - self.began)
            self.began = None
            self.steps += 1
            if self.steps >= self.doubt:
                self._look_again()
        for outcome in outcomes:
            if outcome.guessed:
                for held in (self.all, self.texts.get(outcome.number)):
                    if held is not None:
                        held.add(outcome.kept, outcome.guessed)
        self.drafter.observe(outcomes)

    def finish(self, number: int, tokens: Tokens, prompt: int, group: Hashable) -> None:
        """Forget the text."""
        self.texts.pop(number, None)
        self.drafter.finish(number, tokens, prompt, group)


def _crowd(texts: int) -> int:
    """Numbers of texts whose steps take much the same time: half octaves."""
    return round(2 * log2(max(texts, 1)))
