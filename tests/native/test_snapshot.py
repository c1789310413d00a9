"""A saved index comes back as it was; damaged ones, and well-formed ones of nonsense, are refused."""

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regear._native import Index
from tests.native import snapshot
from tests.native.pair import ints, packed, propose, start, thoughts


def learnt(symbols=3, texts=4, length=25, seed=0, **settings):
    """Two groups and several generations; contexts with more followers than are listed without a table."""
    random, index = np.random.default_rng(seed), Index(**settings)
    for number in range(texts):
        for group in (b"one", b"two"):
            start(index, 0, group, random.integers(0, symbols, 4))
            told = packed(thoughts(random, length)) if number else None
            index.extend(0, ints(random.integers(0, symbols, length)), told)
            propose(index, 0)
            index.observe(*(ints([n], np.int64) for n in (0, 4, number)))
            index.finish(0)
        if number % 2:
            index.advance()
    return index


@given(st.integers(1, 40), st.integers(0, 6), st.integers(0, 60), st.booleans(), st.integers(1, 3))
def test_what_was_saved_comes_back(symbols, texts, length, shared, generations):
    index = learnt(symbols, texts, length, shared=shared, generations=generations, decay=0.7, levels=2, discount=0.3)
    saved = index.save()
    loaded = Index.load(saved)
    assert loaded.save() == saved
    assert (loaded.tokens, loaded.groups) == (index.tokens, index.groups)
    for one in (index, loaded):
        one.advance()
        start(one, 5, b"one", [0, 1], 3)
        one.extend(5, ints([1, 0, 1, 0]))
    assert propose(loaded, 5) == propose(index, 5)
    assert loaded.save() == index.save()


def test_texts_in_flight_stay_behind():
    index = learnt()
    start(index, 3, b"new", [1, 2])
    loaded = Index.load(index.save())
    assert loaded.matched(3) == 0
    assert propose(loaded, 3) == ([], [])
    assert loaded.tokens == index.tokens


def refused(body):
    with pytest.raises(ValueError, match="the snapshot is damaged, or is none"):
        Index.load(bytes(body))


def test_every_truncation_is_refused():
    saved = learnt(texts=2).save()
    for size in range(len(saved)):
        refused(saved[:size])
    refused(saved + b"\0")
    refused(snapshot.signed(saved[:-8] + b"more"))


def test_every_flipped_bit_is_refused():
    saved = bytearray(learnt(texts=2).save())
    for at in range(len(saved)):
        saved[at] ^= 1 << at % 8
        refused(saved)
        saved[at] ^= 1 << at % 8


SAVED = snapshot.read(learnt(symbols=14, length=60, generations=3).save())


def test_the_parts_are_understood():
    assert snapshot.write(SAVED) == snapshot.write(snapshot.read(snapshot.write(SAVED)))
    Index.load(snapshot.write(SAVED))
    one = SAVED.groups[0][1][0]
    assert (one.states["more"] >> 31).any()  # a table


def of_head(name, value):
    def change(found):
        found.head[name] = value

    return change


def of_state(name, value, which=lambda one: 5):
    """One number of one state; `value` is a function of what it was and of the generation."""

    def change(found):
        one = found.groups[0][1][0]
        at = which(one)
        one.states[name][at] = value(int(one.states[name][at]), one) & 0xFFFFFFFF

    return change


def of_edge(name, value):
    def change(found):
        one = found.groups[0][1][0]
        one.edges[name][7] = value(int(one.edges[name][7]), one) & 0xFFFFFFFF

    return change


def part(change):
    """A change to the first generation as a whole."""
    return lambda found: change(found.groups[0][1][0])


def swap_links(one):
    """Two states that are each other's link."""
    one.states["link"][[5, 6]] = 6, 5


def cyclic_list(one):
    at = next(i for i, edge in enumerate(one.edges) if edge["next"])
    one.edges["next"][one.edges["next"][at] - 1] = at + 1


def twice_listed(one):
    """Two states with one list."""
    first, second = np.flatnonzero(one.states["more"])[:2]
    one.states["more"][first] = one.states["more"][second]


def unlisted(one):
    one.states["more"][np.flatnonzero(one.states["more"])[0]] = 0


def leaf(one):
    return int(np.flatnonzero(one.states["to"] == 0)[0])


def lister(one):
    return int(np.flatnonzero((one.states["more"] > 0) & (one.states["more"] < 2**31))[-1])


def of_place(name, value):
    return part(lambda one: one.places[name].__setitem__(3, value))


def older(one):
    """A state whose link was told of an earlier place only."""
    at = next(i for i in range(1, len(one.states)) if one.latest[i] and one.states["link"][i])
    one.latest[one.states["link"][at]] = 0


NONSENSE = {
    "magic": of_head("magic", b"regearS1"),
    "no generations": of_head("generations", 0),
    "fewer generations than held": of_head("generations", 1),
    "too many generations": of_head("generations", 5000),
    "decay of zero": of_head("decay", 0.0),
    "decay of nan": of_head("decay", np.nan),
    "tiny cap": of_head("cap_bytes", 5),
    "endless cap": of_head("cap_bytes", 2**63),
    "no levels": of_head("levels", 0),
    "discount of one": of_head("discount", 1.0),
    "discount of nan": of_head("discount", np.nan),
    "epoch before the texts": of_head("epoch", 0),
    "calibration of nan": of_head("tried", np.nan),
    "calibration below zero": of_head("stood", -1.0),
    "endless calibration": of_head("tried", np.inf),
    "more stood than were tried": of_head("stood", 999_999.0),
    "group twice": lambda found: found.groups.append(found.groups[0]),
    "group of nothing": lambda found: found.groups.append([b"gempty", []]),
    "epoch to come": part(lambda one: setattr(one, "epoch", 99)),
    "prompt out of range": part(lambda one: one.prompts["state"].fill(len(one.states))),
    "other tokens": part(lambda one: setattr(one, "tokens", one.tokens + 1)),
    "endless tokens": part(lambda one: setattr(one, "tokens", 2**63)),
    "no states": part(lambda one: setattr(one, "states", one.states[:0])),
    "a state less": part(lambda one: setattr(one, "states", one.states[:-1])),
    "an edge less": part(lambda one: setattr(one, "edges", one.edges[:-1])),
    "an edge more": part(lambda one: setattr(one, "edges", np.append(one.edges, one.edges[-1:]))),
    "no edges": part(lambda one: setattr(one, "edges", one.edges[:0])),
    "root of a length": of_state("length", lambda x, one: 1, lambda one: 0),
    "root with a link": of_state("link", lambda x, one: 0, lambda one: 0),
    "link out of range": of_state("link", lambda x, one: len(one.states)),
    "link to none": of_state("link", lambda x, one: 0xFFFFFFFF),
    "link to itself": of_state("link", lambda x, one: 5),
    "links in a circle": part(swap_links),
    "link past the next": of_state("link", lambda x, one: 0, lambda one: int(np.flatnonzero(one.states["link"])[0])),
    "longer": of_state("length", lambda x, one: x + 1),
    "shorter": of_state("length", lambda x, one: x - 1),
    "endless length": of_state("length", lambda x, one: 0xFFFFFFFF),
    "no length": of_state("length", lambda x, one: 0),
    "no count": of_state("count", lambda x, one: 0),
    "higher count": of_state("count", lambda x, one: x + 1, lambda one: int(np.argmax(one.states["length"]))),
    "endless count": of_state("count", lambda x, one: 0xFFFFFFFF),
    "edge out of range": of_state("to", lambda x, one: len(one.states)),
    "edge to the root": of_state("to", lambda x, one: 0, lister),
    "edge elsewhere": of_state("to", lambda x, one: x + 1),
    "edge to itself": of_state("to", lambda x, one: 5),
    "edge of another token": of_state("token", lambda x, one: x + 1),
    "edge from a text's end": of_state("to", lambda x, one: 1, leaf),
    "list out of range": of_state("more", lambda x, one: len(one.edges) + 1),
    "list of nothing": of_state("more", lambda x, one: 2**31),
    "list for two": part(twice_listed),
    "list in a circle": part(cyclic_list),
    "list that nobody has": part(unlisted),
    "listed edge out of range": of_edge("to", lambda x, one: len(one.states)),
    "listed edge to the root": of_edge("to", lambda x, one: 0),
    "listed edge elsewhere": of_edge("to", lambda x, one: x - 1),
    "listed edge of another token": of_edge("token", lambda x, one: x + 1),
    "thought of no place": part(lambda one: one.latest.__setitem__(5, len(one.places) + 1)),
    "thought at the root": part(lambda one: one.latest.__setitem__(0, 1)),
    "a place older than those of longer ends": part(older),
    "thoughts of too few states": part(lambda one: setattr(one, "latest", one.latest[:-1])),
    "thoughts of no states": part(lambda one: setattr(one, "latest", one.latest[:0])),
    "no places": part(lambda one: setattr(one, "places", one.places[:0])),
    "a place like one to come": of_place("alike", 9),
    "a place after one that is not there": of_place("before", 9),
    "a place without a thought": part(lambda one: one.places["likely"].__setitem__((3, 0), 0xFFFFFFFF)),
    "a place with more to it": of_place("unused", 1),
    "listed edge with a next out of range": of_edge("next", lambda x, one: len(one.edges) + 5),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_with_a_right_sum_is_refused(name):
    changed = copy.deepcopy(SAVED)
    NONSENSE[name](changed)
    refused(snapshot.write(changed))


def test_lengths_of_parts_that_are_not_there_are_refused():
    """Every word of a small snapshot as a count of 2**63, 2**32 or one more, under a right sum: refused, or harmless."""
    body = learnt(texts=1, length=3).save()[:-8]
    loaded = 0
    for at in range(len(body) - 7):
        for value in (2**63, 2**32, int.from_bytes(body[at : at + 8], "little") + 1 & snapshot.MASK):
            changed = body[:at] + value.to_bytes(8, "little") + body[at + 8 :]
            try:
                index = Index.load(snapshot.signed(changed))
            except ValueError:
                continue
            loaded += 1
            works(index)
    assert loaded  # as the names of prompts may be anything


def works(index):
    for number, group in enumerate((b"one", b"two")):
        start(index, number, group, [1, 2])
        for _ in range(4):
            index.extend(number, ints([0, 1, 2, 1]))
            _, chances = propose(index, number)
            assert all(0 <= chance <= 1 for chance in chances)
            assert chances == sorted(chances, reverse=True)
    index.save()


@pytest.mark.parametrize("seed", range(4))
def test_random_numbers_under_a_right_sum_are_refused_or_harmless(seed):
    random = np.random.default_rng(seed)
    base = snapshot.read(learnt(symbols=2 + 5 * (seed % 2), texts=2, length=20, seed=seed).save())
    loaded = 0
    for _ in range(400):
        changed = copy.deepcopy(base)
        one = changed.groups[random.integers(len(changed.groups))][1][0]
        table = [one.states, one.edges][random.integers(2)]
        for _ in range(random.integers(1, 4)):
            column = table[str(random.choice(table.dtype.names))]
            column[random.integers(len(table))] = random.choice(column)
        try:
            index = Index.load(snapshot.write(changed))
        except ValueError:
            continue
        loaded += 1
        works(index)
    assert loaded < 300
