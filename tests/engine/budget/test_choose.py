"""Against every prefix-closed set of small offers."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regear.engine.budget.choose import Offer, most_seconds_saved, most_tokens_a_second


@st.composite
def offers(draw):
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    texts = draw(st.integers(1, 4))
    chances = [np.cumprod(random.uniform(0.2, 1, random.integers(0, 4))) for _ in range(texts)]
    times = np.cumsum(random.uniform(0, 1, 20)) + random.uniform(0, 3)
    return chances, random.uniform(0, 3, texts), lambda tokens: times[np.asarray(tokens)]


def sets(chances):
    return product(*(range(len(found) + 1) for found in chances))


@settings(max_examples=60, deadline=None)
@given(offers())
def test_no_other_set_has_more_tokens_a_second(offer):
    chances, _, seconds = offer

    def rate(counts):
        tokens = len(chances) + sum(found[:count].sum() for found, count in zip(chances, counts, strict=True))
        return tokens / (seconds(len(chances) + sum(counts)) + 0.5)

    offered = Offer(chances, np.ones(len(chances)))
    found = offered.counts(most_tokens_a_second(offered, seconds, 0.5))
    assert rate(found) == pytest.approx(max(map(rate, sets(chances))))


@settings(max_examples=60, deadline=None)
@given(offers())
def test_no_other_set_saves_more_seconds(offer):
    chances, worth, seconds = offer

    def saved(counts):
        gain = sum(w * found[:count].sum() for w, found, count in zip(worth, chances, counts, strict=True))
        return gain - seconds(len(chances) + sum(counts))

    offered = Offer(chances, worth)
    found = offered.counts(most_seconds_saved(offered, seconds))
    assert saved(found) == pytest.approx(max(map(saved, sets(chances))))


def test_an_offer_of_nothing_is_left_alone():
    offered = Offer([[], []], [1, 1])
    assert offered.counts(most_tokens_a_second(offered, lambda tokens: np.asarray(tokens, float))).tolist() == [0, 0]
