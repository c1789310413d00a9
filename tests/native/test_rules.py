"""What the index promises, one thing at a time."""

import math

import numpy as np
import pytest

from regear._native import Index
from regear.ops.noise import gumbel, keys
from tests.native import oracle
from tests.native.pair import Pair, ints, propose, start


def test_the_noise_is_that_of_the_engine():
    random = np.random.default_rng(1)
    for seed in (0, 7, *random.integers(0, 2**63, 60).tolist(), 2**64 - 1):
        length, width = int(random.integers(1, 40)), int(random.integers(2, 50))
        index = Index()
        for token in range(width):  # each comes next once
            start(index, 0, b"g", [500])
            index.append(0, token)
        start(index, 1, b"g", [499] * (length - 1) + [500], seed)
        noise = gumbel(keys([seed], [length]), width)[0]
        assert propose(index, 1, 1)[0] == [int(noise.argmax())]
        wanted = [oracle.gumbel(seed, length, token) for token in range(width)]
        np.testing.assert_allclose(noise, wanted, rtol=1e-3, atol=1e-5)


def test_without_a_seed_ties_go_to_the_smallest_token():
    index = Index()
    for token in (9, 3, 7):
        start(index, 0, b"g", [1, 2])
        index.append(0, token)
    start(index, 1, b"g", [1, 2])
    assert propose(index, 1, 1)[0] == [3]


@pytest.mark.parametrize("followers", [64, 65])
def test_contexts_that_too_much_follows_say_nothing(followers):
    pair = Pair(shared=True)
    for token in range(followers):
        pair.start(0, b"g", [1000, 1001], None)
        pair.extend(0, [token, 900])
    pair.start(0, b"g", [1002, 1001, 5, 6], None)
    for prompt in ([1001], [1000, 1001], [1002, 1001], [1000, 1001, 5]):
        pair.start(1, b"g", prompt, None)
        pair.propose([1], [3], [0.0])
    start(pair.index, 2, b"g", [1001])
    assert bool(propose(pair.index, 2)[0]) == (followers == 64)


def test_a_prompt_of_many_texts_is_stored_once_a_group_and_generation():
    index = Index()
    for number in range(20):
        start(index, number, b"g", range(100))
    assert index.tokens == 100
    start(index, 20, b"other", range(100))
    assert index.tokens == 200
    index.advance()
    for number in range(21, 30):
        start(index, number, b"g", range(100))
    assert index.tokens == 300


def test_guesses_are_made_after_thousands_of_epochs_without_a_text():
    index = Index()
    start(index, 0, b"g", [1, 2, 3, 4])
    for _ in range(20_000):
        index.advance()
    start(index, 1, b"g", [2, 3], 5)
    tokens, chances = propose(index, 1, 3)
    assert tokens == [4]
    assert 0 < chances[0] < 1


def test_texts_that_were_not_started_are_passed_over():
    index = Index()
    index.append(7, 1)
    index.extend(8, ints([1, 2]))
    index.observe(*(ints([9], np.int64) for _ in range(3)))
    index.finish(9)
    assert index.matched(7) == index.tokens == index.groups == 0
    assert propose(index, 7) == ([], [])


@pytest.mark.parametrize(
    "wrong",
    [
        dict(generations=0),
        dict(decay=0.0),
        dict(decay=1.1),
        dict(decay=math.nan),
        dict(cap_bytes=1000),
        dict(levels=0),
        dict(discount=1.0),
        dict(discount=-0.1),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="wanted generations from 1"):
        Index(**wrong)


def test_arrays_that_do_not_fit_are_refused():
    index = Index()
    one, two = ints([1], np.int64), ints([1, 2], np.int64)
    for call in (
        lambda: index.propose(two, one, np.zeros(2)),
        lambda: index.propose(two, two, np.zeros(1)),
        lambda: index.observe(two, one, two),
        lambda: index.extend_many(two, two, ints([1, 2])),
        lambda: index.extend_many(two, ints([0, 3, 2], np.int64), ints([1, 2])),
        lambda: index.extend_many(one, ints([0, 3], np.int64), ints([1, 2])),
        lambda: index.extend_many(one, ints([-1, 2], np.int64), ints([1, 2])),
    ):
        with pytest.raises(ValueError):
            call()
