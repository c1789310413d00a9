"""When a drafter is asked at all: not where what it saved, by the clock, does not pay for asking and for its guesses.

Then it rests, twice as long each time, and is tried again. A step without guesses is let through now and then, to be
timed.
"""

from collections import deque
from math import log2
from statistics import mean, stdev
from typing import Literal

FRESH = 64  # steps with guesses after which one without is timed again
FIRST = 2  # steps without guesses before the first with
PAUSE, LONGEST = 32, 512  # steps of the first pause, and of the longest
DOUBT = 1.0  # standard errors that a loss must be above
WINDOW, TRIAL = 16, 4  # steps that are judged together, and those of a trial
EVIDENCE = 256  # texts of all steps that are judged together; with a crowd a few steps say as much

Kind = Literal["guess", "try", "time", "rest"]


class Guard:
    """Which kind the next step is, by what the last ones saved."""

    def __init__(self) -> None:
        self.saved: deque[float] = deque(maxlen=WINDOW)
        self.pause, self.trial = PAUSE, False
        self.rest = self.since = self.timed = self.texts = 0
        self.crowd = 0.0

    def next(self, texts: int) -> Kind:
        """`guess`; `try`, with a few guesses more than seem to pay, to learn from; `time` or `rest` without any.

        A rest ends where twice as many texts, or half as many, are in flight as at its begin.
        """
        self.texts = texts
        if not self.rest:
            self.crowd = log2(texts)
        elif abs(log2(texts) - self.crowd) >= 1:
            self.rest, self.pause = 0, PAUSE
        if self.rest:
            self.rest -= 1
            return "rest"
        self.since += 1
        if self.timed < FIRST or self.since > FRESH:
            self.timed += 1
            self.since = 0
            return "time"
        return "try" if self.trial else "guess"

    def judge(self, saved: float) -> None:
        """What a step saved in which the drafter was asked, in steps without guesses; negative where it cost."""
        self.saved.append(saved)
        if len(self.saved) < (TRIAL if self.trial else min(WINDOW, max(TRIAL, EVIDENCE // self.texts))):
            return
        if mean(self.saved) + DOUBT * stdev(self.saved) / len(self.saved) ** 0.5 > 0:
            self.trial = False
            if len(self.saved) == WINDOW:
                self.pause = PAUSE
            return
        self.rest, self.pause, self.trial = self.pause, min(2 * self.pause, LONGEST), True
        self.saved.clear()
