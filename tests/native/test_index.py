"""The index answers as a search through all texts does, whatever was done with it before."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.native.pair import Pair

NUMBERS, GROUPS = range(4), (b"one", b"two")
SEEDS = (None, 5, 2**64 - 1)
SHARES = dict(
    start=6, append=8, extend=10, many=5, propose=12, observe=6, finish=2, advance=1, reload=0.3, learn=3, share=0.3
)

number, count = st.sampled_from(NUMBERS), st.integers(0, 6)
shapes = st.fixed_dictionaries(
    dict(
        generations=st.integers(1, 4),
        decay=st.sampled_from([1.0, 0.9, 0.5]),
        shared=st.booleans(),
        levels=st.integers(1, 4),
        discount=st.sampled_from([0.0, 0.5, 0.9]),
        tells=st.booleans(),
    )
)


def rows(*parts):
    """Arguments of a call for several texts: a list for each part."""
    return st.lists(st.tuples(number, *parts), min_size=1, max_size=3).map(
        lambda found: [*map(list, zip(*found, strict=True))]
    )


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
        learn=st.tuples(st.sampled_from(GROUPS), st.lists(token, max_size=3), tokens),
        share=st.tuples(),
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


class Calls:
    """Operations that write more than those above, so that contexts are long and counts high."""

    def __init__(self, random, symbols):
        self.random, self.symbols = random, symbols

    def __call__(self, length):
        shares = np.array([*SHARES.values()])
        for name in self.random.choice([*SHARES], length, p=shares / shares.sum()):
            some = self.random.permutation(NUMBERS)[: self.random.integers(1, 5)].tolist()
            yield name, getattr(self, name, lambda some: ())(some)

    def tokens(self, most):
        return self.random.integers(0, self.symbols, self.random.integers(0, most + 1)).tolist()

    def counts(self, low, high, some):
        return self.random.integers(low, high + 1, len(some)).tolist()

    def start(self, some):
        return some[0], GROUPS[self.random.integers(2)], self.tokens(2), SEEDS[self.random.integers(3)]

    def append(self, some):
        return some[0], int(self.random.integers(self.symbols))

    def extend(self, some):
        return some[0], self.tokens(20)

    def many(self, some):
        return some, [self.tokens(8) for _ in some]

    def propose(self, some):
        return some, self.counts(0, 8, some), self.random.choice([0, 0.01, 0.2], len(some)).tolist()

    def observe(self, some):
        return some, self.counts(0, 6, some), self.counts(-1, 6, some)

    def learn(self, some):
        return GROUPS[self.random.integers(2)], self.tokens(2), self.tokens(20)

    def finish(self, some):
        return (some[0],)


@pytest.mark.parametrize("seed", range(24))
def test_equals_a_search_through_longer_texts(seed):
    random = np.random.default_rng(seed)
    pair = Pair(
        generations=int(random.integers(1, 5)),
        decay=[1.0, 0.9, 0.5][seed % 3],
        shared=seed % 2 == 0,
        levels=int(random.integers(1, 5)),
        discount=[0.5, 0.0, 0.9][seed // 2 % 3],
        tells=seed % 4 > 1,
    )
    perform(pair, Calls(random, 2 + seed % 4)(90))
