"""The index answers as a search through all texts does, whatever was done with it before."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regear._suffix import Index
from regear.ops.noise import gumbel, keys
from tests.native import oracle
from tests.native.pair import Pair, ints, propose, start

NUMBERS, GROUPS = range(4), (b"one", b"two")
SEEDS = (None, 5, 2**64 - 1)

number, count = st.sampled_from(NUMBERS), st.integers(0, 6)
shapes = st.fixed_dictionaries(
    dict(
        generations=st.integers(1, 4),
        decay=st.sampled_from([1.0, 0.9, 0.5]),
        shared=st.booleans(),
        levels=st.integers(1, 4),
        discount=st.sampled_from([0.0, 0.5, 0.9]),
    )
)


def rows(*parts):
    """Arguments of a call for several texts: a list for each part."""
    return st.lists(st.tuples(number, *parts), min_size=1, max_size=3).map(lambda found: [*map(list, zip(*found))])


def operations(symbols):
    token = st.integers(0, symbols - 1)
    tokens = st.lists(token, max_size=12)
    calls = dict(
        start=st.tuples(number, st.sampled_from(GROUPS), st.lists(token, max_size=3), st.sampled_from(SEEDS)),
        append=st.tuples(number, token),
        extend=st.tuples(number, tokens),
        many=rows(tokens),
        propose=rows(count, st.sampled_from([0.0, 0.123, 0.456])),
        observe=rows(count, st.integers(-1, 6)),
        finish=st.tuples(number),
        advance=st.tuples(),
        reload=st.tuples(),
    )
    return st.lists(st.one_of(st.tuples(st.just(name), arguments) for name, arguments in calls.items()), max_size=40)


def perform(pair, calls):
    for name, arguments in calls:
        getattr(pair, name)(*arguments)
        pair.check(NUMBERS)


@settings(max_examples=250)
@given(shapes, st.integers(1, 5).flatmap(operations))
def test_equals_a_search_through_all_texts(shape, calls):
    perform(Pair(**shape), calls)


def random_calls(random, symbols, length):
    """Operations that write more than those above, so that contexts are long and counts high."""
    names = ["start", "append", "extend", "many", "propose", "observe", "finish", "advance", "reload"]
    chances = np.array([6, 8, 10, 5, 12, 6, 2, 1, 0.3])
    for name in random.choice(names, length, p=chances / chances.sum()):
        some = random.permutation(NUMBERS)[: random.integers(1, 5)].tolist()

        def tokens(most):
            return random.integers(0, symbols, random.integers(0, most + 1)).tolist()

        def counts(low, high, some=some):
            return random.integers(low, high + 1, len(some)).tolist()

        yield (
            name,
            {
                "start": lambda: (some[0], GROUPS[random.integers(2)], tokens(2), SEEDS[random.integers(3)]),
                "append": lambda: (some[0], int(random.integers(symbols))),
                "extend": lambda: (some[0], tokens(20)),
                "many": lambda: (some, [tokens(8) for _ in some]),
                "propose": lambda: (some, counts(0, 8), random.choice([0, 0.01, 0.2], len(some)).tolist()),
                "observe": lambda: (some, counts(0, 6), counts(-1, 6)),
                "finish": lambda: (some[0],),
            }.get(name, tuple)(),
        )


@pytest.mark.parametrize("seed", range(24))
def test_equals_a_search_through_longer_texts(seed):
    random = np.random.default_rng(seed)
    pair = Pair(
        generations=int(random.integers(1, 5)),
        decay=[1.0, 0.9, 0.5][seed % 3],
        shared=seed % 2 == 0,
        levels=int(random.integers(1, 5)),
        discount=[0.5, 0.0, 0.9][seed // 2 % 3],
    )
    perform(pair, random_calls(random, 2 + seed % 4, 90))
