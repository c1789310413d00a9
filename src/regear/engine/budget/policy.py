"""How many of a drafter's guesses each text gets: as many as pay, by the time of steps and the chances of the guesses.

`throughput` takes the guesses with the most tokens a second: for texts that keep coming. `makespan` ends the last text
soonest: a guess pays where its chance times its text's price, the seconds that a kept token of it spares the whole
batch, is above the time it adds to this step. Until texts leave without others in their place there is no last text in
sight, and it does as `throughput` does.

Guesses change no text, so neither do clocks; `record` hears of every decision, and `record.Replay` takes the same ones
again.
"""

import time
from collections.abc import Callable, Hashable, Sequence
from typing import Literal

import numpy as np

from regear.core.errors import RecipeError
from regear.engine.budget.choose import Array, Counts, Offer, most_seconds_saved, most_tokens_a_second
from regear.engine.budget.cost import StepCost
from regear.engine.budget.guard import Guard
from regear.engine.budget.lengths import Lengths
from regear.engine.budget.record import Record, Step
from regear.engine.budget.weighed import Weighed
from regear.engine.budget.worlds import Worlds
from regear.engine.drafters.base import NOTHING, Outcome, Text, Tokens
from regear.engine.types import Request

Mode = Literal["throughput", "makespan"]

SLACK = 0.5  # of the chance that pays: what a drafter is asked for, so that it can be learned what stands
LEAST, CERTAIN = 0.02, 0.98  # bounds of that; a text whose guesses would have to be surer is not asked for
EXTRA = 0.1  # of a step's time: what guesses may add to a step of a trial
MEMORY, PRIOR = 0.98, 4.0  # weight of the past in how far chances came true; tokens that count as having done so
STRETCH, FEW = 1.25, 8  # times the largest step so far: what a step may have at most; and guesses it always may
HELD_UP = 1.5  # times what a step should take; one that takes longer was held up by something else
WIDEST = 32  # guesses a text whose fate is averaged for the time of a round


class Budget:
    """A weighed drafter whose guesses are cut to what pays.

    Args:
        clock: seconds; the time from the end of `propose` to `observe` is that of a step.
        record: called with each step's decision, a dictionary that fits into JSON, once the step is over.
    """

    def __init__(
        self,
        drafter: Weighed,
        mode: Mode = "throughput",
        clock: Callable[[], float] = time.monotonic,
        record: Callable[[Record], None] | None = None,
    ) -> None:
        if mode not in ("throughput", "makespan"):
            raise RecipeError(f"draft budget: found {mode}; wanted throughput or makespan")
        self.drafter, self.mode, self.clock, self.record = drafter, mode, clock, record
        self.cost, self.lengths, self.guard, self.worlds = StepCost(), Lengths(), Guard(), Worlds()
        self.requests: dict[int, Request] = {}
        self.stood = self.hoped = 0.0
        self.kept = np.zeros(1 + WIDEST)  # of so many guesses a text, on average
        self.peak = 0
        self.steps = 0
        self.step: Step | None = None

    def propose(self, texts: Sequence[Text], most: Counts) -> list[Tokens]:
        """The drafter's guesses, cut to those that pay."""
        self._meet(texts)
        kind = self.guard.next(len(texts)) if self.cost.known and most.any() else "time"
        step = Step(kind, [text.number for text in texts], np.zeros(len(texts)), np.zeros(len(texts), np.int64))
        guesses = [NOTHING] * len(texts)
        if kind in ("guess", "try"):
            step.worth = self._worth(texts)
            guesses = self._ask(step, texts, most)
        self.step = step
        step.began = self.clock()
        return guesses

    def _meet(self, texts: Sequence[Text]) -> None:
        """Hear of new texts; while they come there is no last one in sight."""
        new = [text for text in texts if text.number not in self.requests]
        for text in new:
            self.requests[text.number] = text.request
        self.peak = len(texts) if new else max(self.peak, len(texts))
        if new:
            self.worlds.stale()

    def _worth(self, texts: Sequence[Text]) -> Array:
        """Seconds that a kept token of each text is worth; without a price a token is worth its share of a step."""
        count = len(texts)
        if self.mode == "throughput" or count >= self.peak:
            return np.full(count, float(self.cost.seconds(count)) / count)
        return self.worlds.prices(texts, self.lengths, self.cost, self.kept)

    def _ask(self, step: Step, texts: Sequence[Text], most: Counts) -> list[Tokens]:
        """Guesses for the texts for which any could pay."""
        count, faith = len(texts), self._faith()
        added = self.cost.marginal(count, max(1, count // 8))
        step.least = np.clip(SLACK * added / np.maximum(step.worth * faith, 1e-12), LEAST, 1.0)
        if step.kind == "try":
            step.least = np.minimum(step.least, 0.5)
        asked = np.flatnonzero((most > 0) & (step.least <= CERTAIN))
        if not len(asked):
            return [NOTHING] * count
        start = self.clock()
        found, chances = self.drafter.propose_weighed(
            [texts[i] for i in asked.tolist()], most[asked], step.least[asked]
        )
        step.drafting = self.clock() - start
        step.asked = asked.tolist()
        guesses, believed = [NOTHING] * count, [np.empty(0)] * count
        for i, guess, chance in zip(asked.tolist(), found, chances, strict=True):
            guesses[i], believed[i] = guess, np.minimum(1.0, np.asarray(chance) * faith)
        self._average([believed[i] for i in asked])
        step.counts = self._choose(step, believed)
        step.hoped = sum(float(found[:n].sum()) for found, n in zip(believed, step.counts, strict=True)) / faith
        return [guess[:n] for guess, n in zip(guesses, step.counts, strict=True)]

    def _choose(self, step: Step, chances: list[Array]) -> Counts:
        """How many tokens each text gets."""
        count = len(chances)
        if self.mode == "throughput" or count >= self.peak:
            offer = Offer(chances, np.ones(count))
            taken = most_tokens_a_second(offer, self.cost.seconds, step.drafting)
        else:
            offer = Offer(chances, step.worth)
            taken = most_seconds_saved(offer, self.cost.seconds)
        if step.kind == "try":
            times = self.cost.seconds(count + np.arange(1, len(offer.order) + 1))
            affordable = int((times <= (1 + EXTRA) * self.cost.seconds(count)).sum())
            taken = max(taken, min(len(offer.order), max(1, affordable)))
        unknown = int(STRETCH * self.cost.widest) - count  # the time of more is a guess, and a crowd's would cost much
        taken = min(taken, max(FEW, unknown))
        return offer.counts(taken)

    def _faith(self) -> float:
        """How many of the tokens that were expected to stand did, of late."""
        return float(np.clip((self.stood + PRIOR) / (self.hoped + PRIOR), 0.1, 1.5))

    def _average(self, chances: list[Array]) -> None:
        """Of how many guesses how many stand on average, of late, for the time of a round."""
        found = np.zeros(1 + WIDEST)
        for one in chances:
            found[1 : 1 + len(one)] += one[:WIDEST]
        self.kept += 0.1 * (np.cumsum(found) / len(chances) - self.kept)

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """Learn from what became of the guesses, and from how long the step took."""
        step, self.step = self.step, None
        if step is not None:
            self._learn(step, self.clock() - step.began, {one.number: one.kept for one in outcomes})
        self.drafter.observe(outcomes)

    def _learn(self, step: Step, seconds: float, kept: dict[int, int]) -> None:
        count, guessed = len(step.numbers), int(step.counts.sum())
        self.cost.observe(count + guessed, seconds)
        if step.asked:
            stood = np.array([kept.get(number, 0) for number in step.numbers])
            usual = float(self.cost.seconds(count))
            took = min(seconds, HELD_UP * float(self.cost.seconds(count + guessed))) if guessed else usual
            self.guard.judge((float(stood @ step.worth) - (took - usual) - step.drafting) / usual)
            self.stood = MEMORY * self.stood + float(stood.sum())
            self.hoped = MEMORY * self.hoped + step.hoped
        elif step.kind in ("guess", "try"):
            self.guard.judge(0.0)  # it is believed too little to be asked: only the trial after a rest can change that
        self.steps += 1
        if self.record is not None:
            self.record(step.row(self.steps, seconds))

    def finish(self, number: int, tokens: Tokens, prompt: int, group: Hashable) -> None:
        """Learn the text's length and forget it."""
        request = self.requests.pop(number, None)
        written = len(tokens) - prompt
        if written > 0:
            self.lengths.add(group, written, request is None or _ended(request, tokens, written))
        self.worlds.stale()
        self.drafter.finish(number, tokens, prompt, group)

    def advance(self) -> None:
        """An epoch ends: lengths of the oldest one are forgotten, and the drafter hears of it where it has epochs."""
        self.lengths.advance()
        advance = getattr(self.drafter, "advance", None)
        if advance is not None:
            advance()


def _ended(request: Request, tokens: Tokens, written: int) -> bool:
    """Whether a text ended by itself; otherwise it was cut or cancelled."""
    if int(tokens[-1]) in request.stop_tokens:
        return True
    return bool(request.stop) and written < request.max_tokens
