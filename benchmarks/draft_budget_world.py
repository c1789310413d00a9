"""A simulated rollout: texts of given lengths, guesses that stand by known chances, steps by a measured cost curve.

Whether a guess stands is fixed for each place of a text, so that every policy meets the same luck.
"""

from dataclasses import dataclass

import numpy as np

from regear.engine.drafters.base import NOTHING, Outcome, Text
from regear.engine.types import Request

STOP = 1  # the token that ends a text
SURE, UNSURE = (0.75, 0.98), (0.02, 0.45)  # chances of one guessed token in stretches seen before, and elsewhere
SEEN, STRETCH = 0.5, 24  # share of the tokens in such stretches, and tokens of one on average
CALL, ROW = 40e-6, 5e-6  # seconds that a call of the drafter takes, and each text of it
CURVES = {
    "cpu": ([1, 4, 8, 16, 32, 64, 128], [0.028, 0.033, 0.045, 0.062, 0.107, 0.190, 0.400]),
    "gpu": ([1, 256, 512, 4096], [0.020, 0.020, 0.040, 0.320]),
}


def curve(name: str):
    """Seconds of a step by its tokens: as measured on one core of a CPU, and flat up to 256 tokens; then linear."""
    tokens, seconds = CURVES[name]
    slope = (seconds[-1] - seconds[-2]) / (tokens[-1] - tokens[-2])
    return lambda n: float(np.interp(n, tokens, seconds)) + max(0, n - tokens[-1]) * slope


@dataclass
class Sample:
    """A text: its length, whether it ends by itself, and by place the chance of a guess there and whether it stands."""

    group: int
    length: int
    ended: bool
    chance: np.ndarray
    stands: np.ndarray


def samples(groups: int, each: int, median: float, cap: int, seed: int, epoch: int) -> list[Sample]:
    """Log-normal lengths of which a tenth reach the cap; half of their variance is between groups."""
    deviation = np.log(cap / median) / 1.2816 / np.sqrt(2)
    levels = np.random.default_rng(seed).normal(0, deviation, groups)
    random = np.random.default_rng([seed, epoch + 1])
    found = []
    for group in np.repeat(np.arange(groups), each):
        whole = int(median * np.exp(levels[group] + random.normal(0, deviation))) + 1
        length = min(whole, cap)
        turns = random.random(length) < 1 / STRETCH
        seen = (random.random(length) < SEEN)[np.maximum.accumulate(np.where(turns, np.arange(length), 0))]
        chance = np.where(seen, random.uniform(*SURE, length), random.uniform(*UNSURE, length))
        found.append(Sample(int(group), length, whole <= cap, chance, random.random(length) < chance))
    return found


class Clock:
    """Seconds that the simulation has come to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Oracle:
    """A weighed drafter that knows every chance, and takes time; the truth of the chances is raised by `bias`."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.texts, self.calls = clock, {}, 0

    def propose_weighed(self, texts, most, least):
        self.clock.now += CALL + ROW * len(texts)
        self.calls += 1
        guesses, chances = [], []
        for text, width, floor in zip(texts, most.tolist(), least.tolist(), strict=True):
            sample, place = self.texts[text.number], len(text.tokens) - text.prompt
            found = np.cumprod(sample.chance[place : place + width])
            found = found[: int((found >= floor).sum())]
            chances.append(found)
            guesses.append(np.zeros(len(found), np.int32))
        return guesses, chances

    def propose(self, texts, most):
        return self.propose_weighed(texts, most, np.zeros(len(texts)))[0]

    def observe(self, outcomes):
        pass

    def finish(self, number, tokens, prompt, group):
        self.texts.pop(number)


@dataclass
class Run:
    """Seconds until the last text ended, forward passes, and tokens written, guessed and kept."""

    seconds: float
    steps: int
    written: int
    guessed: int
    kept: int

    def row(self) -> dict:
        return {**vars(self), "tokens_per_second": self.written / self.seconds, "per_step": self.written / self.steps}


def rollout(
    policy, oracle: Oracle, batch: list[Sample], slots: int, cost, cap: int, widest: int, seed: int, first: int = 0
) -> Run:
    """Write a batch with so many slots; texts are admitted in their order, numbered from `first`."""
    clock, random = oracle.clock, np.random.default_rng([seed, 99])
    start, buffer = clock.now, np.zeros(cap + 1, np.int32)
    waiting, flight, done = list(range(len(batch)))[::-1], [], np.zeros(len(batch), np.int64)
    requests = [Request([5], cap, stop_tokens=[STOP], group=sample.group) for sample in batch]
    steps = guessed = stood = 0
    while waiting or flight:
        while waiting and len(flight) < slots:
            flight.append(waiting.pop())
            oracle.texts[first + flight[-1]] = batch[flight[-1]]
        texts = [Text(first + i, buffer[: 1 + done[i]], 1, requests[i]) for i in flight]
        room = np.array([min(widest, cap - done[i] - 1) for i in flight])
        guesses = policy.propose(texts, room) if policy else [NOTHING] * len(flight)
        counts = [len(guess) for guess in guesses]
        clock.now += cost(len(flight) + sum(counts)) * random.lognormal(0, 0.03) * (3 if random.random() < 0.01 else 1)
        outcomes, ended = [], []
        for i, count in zip(flight, counts, strict=True):
            truth = batch[i].stands[done[i] : done[i] + count]
            kept = len(truth) if truth.all() else int(truth.argmin())
            new = min(kept + 1, batch[i].length - int(done[i]))
            done[i] += new
            outcomes.append(Outcome(first + i, count, kept, buffer[:new]))
            guessed, stood = guessed + count, stood + min(kept, new)
            if done[i] == batch[i].length:
                ended.append(i)
        steps += 1
        if policy:
            policy.observe(outcomes)
        for i in ended:
            flight.remove(i)
            tokens = np.zeros(1 + batch[i].length, np.int32)
            tokens[-1] = STOP if batch[i].ended else 0
            (policy or oracle).finish(first + i, tokens, 1, batch[i].group)
    return Run(clock.now - start, steps, int(done.sum()), guessed, stood)
