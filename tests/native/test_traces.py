"""How texts came leaves no trace: in pieces or at once, side by side or one after the other, before others or alone."""

from hypothesis import given
from hypothesis import strategies as st

from regear._native import Index
from tests.native.pair import ints, propose, start


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
