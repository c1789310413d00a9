"""On synthetic step times and guesses of known chances: guesses are taken where they pay, dropped where they do not, and
the texts that end last get them; a recorded run can be repeated."""

import json

import numpy as np
import pytest

from regear.core.errors import RecipeError
from regear.engine.budget.policy import Budget
from regear.engine.budget.record import Replay
from regear.engine.drafters.base import Outcome, Text
from regear.engine.types import Request


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Guesses:
    """Tokens that stand with a chance each, `said` or else true, at a price in seconds a call."""

    def __init__(self, clock, chance, said=None, price=0.0):
        self.clock, self.chance, self.said, self.price = clock, chance, said or chance, price
        self.calls, self.heard, self.gone = 0, 0, []

    def propose_weighed(self, texts, most, least):
        self.clock.now += self.price
        self.calls += 1
        chances = [self.said ** np.arange(1, count + 1) for count in most]
        chances = [found[found >= floor] for found, floor in zip(chances, least, strict=True)]
        return [np.arange(len(found), dtype=np.int32) for found in chances], chances

    def propose(self, texts, most):
        return self.propose_weighed(texts, most, np.zeros(len(texts)))[0]

    def observe(self, outcomes):
        self.heard += len(outcomes)

    def finish(self, number, tokens, prompt, group):
        self.gone.append(number)


def text(number, written=0, group=None, cap=100_000, stop=()):
    return Text(number, np.zeros(1 + written, np.int32), 1, Request([1], cap, group=group, stop_tokens=stop))


def line(base, token):
    return lambda tokens: base + token * tokens


def fate(random, chance, guessed):
    """How many of so many guesses stand."""
    fallen = random.random(guessed) >= chance
    return int(fallen.argmax()) if fallen.any() else guessed


def decode(chance, step, steps=600, texts=4, widest=8, seed=0, mode="throughput", record=None, **guesses):
    """Seconds a token relative to no guesses, the guesses of each step, and the budget."""
    clock, random = Clock(), np.random.default_rng(seed)
    held_up = np.random.default_rng(seed + 1).lognormal(0, 0.02, steps)
    held_up[random.random(steps) < 0.02] *= 3
    budget = Budget(Guesses(clock, chance, **guesses), mode, clock, record)
    batch, emitted, guessed = [text(i) for i in range(texts)], 0, []
    for late in held_up:
        found = budget.propose(batch, np.full(texts, widest))
        guessed.append(sum(map(len, found)))
        clock.now += step(texts + guessed[-1]) * late
        outcomes = []
        for one, guess in zip(batch, found, strict=True):
            kept = fate(random, chance, len(guess))
            emitted += kept + 1
            outcomes.append(Outcome(one.number, len(guess), kept, guess[:1]))
        budget.observe(outcomes)
    assert budget.drafter.heard == steps * texts
    return clock.now / emitted / (held_up.mean() * step(texts) / texts), np.array(guessed), budget


def test_as_many_guesses_are_taken_as_pay():
    step = line(1.0, 0.05)
    found, _, _ = decode(0.8, step, steps=1500)
    kept = np.cumsum(0.8 ** np.arange(9)) * 4
    best = min(step(4 + 4 * width) / kept[width] for width in range(9)) * 4 / step(4)
    assert found < 1.05 * best
    free, guessed, _ = decode(0.8, line(1.0, 1e-6), steps=1500)
    assert np.mean(guessed == 32) > 0.9
    assert free < 1.05 / kept[-1] * 4


@pytest.mark.parametrize("mode", ["throughput", "makespan"])
def test_where_a_token_costs_a_step_nothing_is_lost(mode):
    found, guessed, _ = decode(0.6, line(0.01, 0.25), mode=mode)
    assert found < 1.01
    assert np.mean(guessed > 0) < 0.05


def test_a_crowd_whose_tokens_all_cost_loses_next_to_nothing():
    found, _, _ = decode(0.6, line(0.0, 0.003), texts=128, steps=300)
    assert found < 1.01


def test_a_step_is_not_much_larger_than_any_that_was_timed():
    clock = Clock()
    budget = Budget(Guesses(clock, 0.9), "throughput", clock)
    for _ in range(3):  # a pass of one token reads the weights: by that alone more of them seem free
        budget.propose([text(0)], np.array([8]))
        clock.now += 1.0
        budget.observe([])
    sizes = []
    for count in (16, 100, 100):
        sizes.append(count + sum(map(len, budget.propose([text(i) for i in range(count)], np.full(count, 8)))))
        clock.now += 1.0
        budget.observe([])
    assert sizes[0] == 16 + 8
    assert sizes[1] == 100 + 8
    assert 100 < sizes[2] <= 1.25 * sizes[1]


@pytest.mark.parametrize(("chance", "said"), [(0.02, 0.8), (0.3, 0.9)])
def test_a_drafter_that_promises_too_much_is_not_believed_for_long(chance, said):
    found, guessed, _ = decode(chance, line(1.0, 0.15), steps=1000, said=said)
    assert found < 1.03
    assert np.mean(guessed) < 1.5


@pytest.mark.parametrize("mode", ["throughput", "makespan"])
def test_a_crowd_whose_first_guesses_fell_is_tried_again(mode):
    """After one bad step the guesses seem too unlikely to ask for, so that nothing could ever change that."""
    clock, random = Clock(), np.random.default_rng(0)
    guesses = Guesses(clock, chance=0.97, said=0.9)
    budget = Budget(guesses, mode, clock)
    batch, emitted, began = [text(i) for i in range(128)], 0, 0.0
    for step in range(700):
        found = budget.propose(batch, np.full(128, 4))
        clock.now += (0.02 + 0.0005 * (128 + sum(map(len, found)))) * random.lognormal(0, 0.02)
        kept = [fate(random, 0.1 if step < 8 else 0.97, len(guess)) for guess in found]
        budget.observe([Outcome(one.number, len(g), k, g[:1]) for one, g, k in zip(batch, found, kept, strict=True)])
        emitted += 128 + sum(kept)
        if step == 350:
            emitted, began = 0, clock.now
    assert guesses.calls > 100
    assert emitted / (clock.now - began) > 1.1 * 128 / (0.02 + 0.0005 * 128)


def test_a_dear_drafter_is_not_asked():
    found, _, budget = decode(0.6, line(1.0, 0.05), steps=1000, price=1.5)
    assert found < 1.1
    assert budget.drafter.calls < 80


def test_a_modest_drafter_is_believed_more_in_time():
    modest, _, _ = decode(0.9, line(1.0, 0.1), steps=1000, said=0.75)
    candid, _, _ = decode(0.9, line(1.0, 0.1), steps=1000)
    assert modest < 1.25 * candid


def tail(counts, steps=200, cap=1000, mode="makespan", token=0.03, base=1.0, chance=0.5):
    """Guesses that texts with so many tokens written got, once others have left; all lengths are near the cap."""
    clock, random = Clock(), np.random.default_rng(0)
    budget = Budget(Guesses(clock, chance), mode, clock)
    batch = [text(i, written, cap=cap) for i, written in enumerate(counts)]
    for _ in range(60):
        budget.lengths.add(None, cap - 1)
    gone = text(99, 5, cap=cap)
    got = np.zeros(len(batch))
    for step in range(steps):
        now = [*batch, gone] if step < 40 else batch
        if step == 40:
            budget.finish(99, gone.tokens, 1, None)
        found = budget.propose(now, np.full(len(now), 8))
        clock.now += base + token * (len(now) + sum(map(len, found)))
        budget.observe(
            [
                Outcome(one.number, len(guess), fate(random, chance, len(guess)), guess[:1])
                for one, guess in zip(now, found, strict=True)
            ]
        )
        if step > 60:
            got += [len(guess) for guess in found[: len(batch)]]
    return got


def test_the_text_that_ends_last_gets_the_guesses():
    first, *others = tail([100, 700, 800, 900], token=0.06)
    assert first > 100
    assert sum(others) == 0
    assert min(tail([100, 700, 800, 900], token=0.06, mode="throughput")[1:]) > 100


def test_texts_that_end_alike_are_served_alike():
    got = tail([500, 500, 500, 500])
    assert got.min() > 0.8 * got.max() > 0


def test_a_resting_drafter_is_not_called():
    _, _, budget = decode(0.02, line(0.0, 1.0), steps=300)
    before = budget.drafter.calls
    while budget.guard.next(4) != "rest":
        budget.guard.judge(-1.0)
    budget.propose([text(i) for i in range(4)], np.full(4, 8))
    assert budget.drafter.calls == before


def test_lengths_are_learned_and_cut_texts_known():
    budget = Budget(Guesses(Clock(), 0.5), "makespan", Clock())
    for number, last in ((1, 7), (2, 0)):
        budget.propose([text(number, group="a", stop=[7])], np.array([4]))
        budget.finish(number, np.array([0] * 10 + [last], np.int32), 1, "a")
    assert budget.lengths.all() == [(10, True), (10, False)]
    assert budget.drafter.gone == [1, 2]
    assert not budget.requests


def test_a_recorded_run_is_repeated_without_clocks():
    rows = []
    _, guessed, _ = decode(0.7, line(1.0, 0.1), record=rows.append, steps=100)
    rows = json.loads(json.dumps(rows))
    assert [row["tokens"] - 4 for row in rows] == guessed.tolist()
    assert all(row["seconds"] > 0 for row in rows)
    replay = Replay(rows, Guesses(Clock(), 0.7))
    batch = [text(i) for i in range(4)]
    for row in rows:
        found = replay.propose(batch, np.full(4, 8))
        assert [len(guess) for guess in found] == row["counts"]
        assert all((guess == np.arange(len(guess))).all() for guess in found)
    assert not any(map(len, replay.propose(batch, np.full(4, 8))))


def test_a_record_of_other_texts_is_refused():
    rows = []
    decode(0.7, line(1.0, 0.1), record=rows.append, steps=3)
    with pytest.raises(RecipeError, match="replay the requests"):
        Replay(rows, Guesses(Clock(), 0.7)).propose([text(9)], np.array([8]))


def test_an_unknown_mode_is_refused():
    with pytest.raises(RecipeError, match="throughput or makespan"):
        Budget(Guesses(Clock(), 0.5), "fast")
