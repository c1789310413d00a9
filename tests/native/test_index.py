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

    SHARES = dict(start=6, append=8, extend=10, many=5, propose=12, observe=6, finish=2, advance=1, reload=0.3)

    def __init__(self, random, symbols):
        self.random, self.symbols = random, symbols

    def __call__(self, length):
        shares = np.array([*self.SHARES.values()])
        for name in self.random.choice([*self.SHARES], length, p=shares / shares.sum()):
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
    )
    perform(pair, Calls(random, 2 + seed % 4)(90))


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


@pytest.mark.parametrize("followers", [64, 65, 300])
def test_contexts_that_too_much_follows_say_nothing(followers):
    pair = Pair(shared=True)
    for token in range(followers):
        pair.start(0, b"g", [1000, 1001 + token % 2], None)
        pair.extend(0, [token, 7, 8])
    pair.start(1, b"g", [1001], None)
    pair.propose([1], [3], [0.0])
    pair.start(1, b"g", [1000, 1001, 5], None)
    pair.propose([1], [3], [0.0])


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


@given(st.lists(st.integers(0, 3), max_size=60), st.lists(st.integers(1, 7)))
def test_texts_may_come_in_pieces(tokens, steps):
    one, many = Index(shared=True), Index(shared=True)
    for index in (one, many):
        start(index, 0, b"g", [1, 2])
    for token in tokens:
        one.append(0, token)
    at = 0
    for step in [*steps, len(tokens)]:
        many.extend(0, ints(tokens[at : at + step]))
        at += step
    assert one.save() == many.save()


texts = st.lists(
    st.tuples(st.lists(st.integers(0, 2), max_size=3), st.lists(st.integers(0, 2), max_size=20)), max_size=6
)


def learn(index, group, found):
    for prompt, tokens in found:
        start(index, 0, group, prompt)
        index.extend(0, ints(tokens))
        index.finish(0)


@given(texts, texts, st.integers(1, 3), st.booleans())
def test_what_was_dropped_leaves_no_trace(old, new, generations, shared):
    used, fresh = (Index(generations=generations, shared=shared) for _ in range(2))
    learn(used, b"g", old)
    for _ in range(generations):
        for index in (used, fresh):
            index.advance()
            learn(index, b"g", [([5], [6]), *new])
    assert used.save() == fresh.save()


@given(texts, st.randoms(use_true_random=False), st.lists(st.integers(0, 2), max_size=8))
def test_the_order_of_texts_does_not_matter(found, random, probe):
    """Nor whether they come one after the other or side by side."""
    one, other = Index(), Index()
    learn(one, b"g", found)
    order = list(enumerate(found))
    random.shuffle(order)
    for number, (prompt, _) in order:
        start(other, number, b"g", prompt)
    left = [number for number, (_, tokens) in order for _ in tokens]
    random.shuffle(left)
    places = [iter(tokens) for _, tokens in found]
    for number in left:
        other.append(number, next(places[number]))
    for index in (one, other):
        index.advance()
        start(index, 99, b"g", probe)
    assert one.tokens == other.tokens
    assert one.matched(99) == other.matched(99)
    assert propose(one, 99, 9) == propose(other, 99, 9)


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
