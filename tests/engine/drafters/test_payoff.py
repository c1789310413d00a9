"""On synthetic step times: guessing goes on where it pays, stops where it does not, and starts again when it does."""

import numpy as np
import pytest

from regear.engine.drafters.base import Outcome, Text
from regear.engine.drafters.payoff import Payoff
from regear.engine.types import Request


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Guesses:
    """Four tokens for a share of the texts, at a price."""

    def __init__(self, clock, random, share=1.0, price=0.0):
        self.clock, self.random, self.share, self.price, self.heard = clock, random, share, price, 0

    def propose(self, texts, most):
        self.clock.now += self.price * most.max()
        return [np.zeros(count if self.random.random() < self.share else 0, np.int32) for count in most]

    def observe(self, outcomes):
        self.heard += len(outcomes)

    def finish(self, number, tokens, prompt, group):
        pass


def seconds_a_token(
    rate, steps=1500, texts=4, step=lambda width: 1.0 + 0.1 * width, noise=0.02, seed=0, slow=(), **guesses
):
    """Simulated decoding: relative to no drafter, and the widths of the steps. `rate(step)` is the acceptance; the steps
    in `slow` take four times as long."""
    clock, random = Clock(), np.random.default_rng(seed)
    payoff = Payoff(Guesses(clock, random, **guesses), clock)
    batch = [Text(i, np.zeros(1, np.int32), 1, Request([1])) for i in range(texts)]
    emitted, widths = 0, []
    for number in range(steps):
        found = payoff.propose(batch, np.full(texts, 4))
        widths.append(max(map(len, found)))
        clock.now += step(widths[-1]) * random.lognormal(0, noise) * (4 if number in slow else 1)
        outcomes = []
        for text, guess in zip(batch, found, strict=True):
            fallen = random.random(len(guess)) >= rate(number)
            kept = int(fallen.argmax()) if fallen.any() else len(guess)
            emitted += kept + 1
            outcomes.append(Outcome(text.number, len(guess), kept, guess[:1]))
        payoff.observe(outcomes)
    assert payoff.drafter.heard == steps * texts
    return clock.now / emitted * texts, widths


@pytest.mark.parametrize("texts", [1, 4, 16])
@pytest.mark.parametrize("share", [0.1, 1.0])
@pytest.mark.parametrize("steps", [128, 500])
def test_useless_guesses_cost_less_than_one_part_in_twenty(texts, share, steps):
    for seed in range(3):
        found, _ = seconds_a_token(lambda _: 0.02, steps, texts, lambda width: 1 + 0.15 * width, share=share, seed=seed)
        assert found < 1 / 0.95


def test_good_guesses_are_all_but_fully_used():
    found, widths = seconds_a_token(lambda _: 0.8)
    best = 1.4 / sum(0.8**i for i in range(5))
    assert found < 1.05 * best
    assert np.mean(np.array(widths) == 4) > 0.9


def test_the_width_is_the_one_that_pays():
    _, widths = seconds_a_token(lambda _: 0.6, step=lambda width: 1.0 + (0.0 if width < 3 else 1.0))
    assert np.mean(np.array(widths) == 2) > 0.85


def test_a_dear_drafter_is_not_asked():
    found, widths = seconds_a_token(lambda _: 0.5, price=0.8)
    assert found < 1.05
    assert np.mean(np.array(widths) > 0) < 0.1


def test_it_starts_again_where_guesses_become_good():
    _, widths = seconds_a_token(lambda step: 0.0 if step < 500 else 0.9)
    assert np.mean(np.array(widths[100:500]) > 0) < 0.1
    assert np.mean(np.array(widths[-600:]) == 4) > 0.9


@pytest.mark.parametrize("begin", [2, 10, 30])
def test_a_neighbour_who_takes_the_processor_once_is_forgotten(begin):
    _, widths = seconds_a_token(lambda _: 0.95, step=lambda width: 1.0, slow=range(begin, begin + 10))
    assert np.mean(np.array(widths[500:]) == 4) > 0.9


def test_it_forgets_texts():
    payoff = Payoff(Guesses(Clock(), np.random.default_rng(0)), Clock())
    payoff.propose([Text(3, np.zeros(1, np.int32), 1, Request([1]))], np.array([4]))
    payoff.finish(3, np.zeros(1, np.int32), 1, None)
    assert not payoff.texts
