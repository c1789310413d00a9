"""Compiled layers against numpy: values, rows of all lengths, every instruction set here, and what stands beside a row."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from regear import _native

KINDS = {np.float32: (_native.Layers32, 2e-5), np.float64: (_native.Layers64, 1e-12)}
EPS = 1e-5


def at(x):
    assert x.flags.c_contiguous
    return x.__array_interface__["data"][0]


class Case:
    """Rows of one pass, and what a plain form finds for them."""

    def __init__(self, starts, counts, heads=(6, 2, 16), kind=np.float32, seed=0, slots=None, first=0):
        self.starts, self.counts = np.array(starts, np.int64), np.array(counts, np.int64)
        self.heads, self.kind, self.first = heads, kind, first
        query, key, width = heads
        generator = np.random.default_rng(seed)
        self.tokens = int(self.counts.sum())
        slots = slots or int((self.starts + self.counts).max()) + 3
        shape = (first + len(starts) + 1, key, slots, width)
        self.keys, self.values = (generator.normal(size=shape).astype(kind) for _ in range(2))
        for i, start in enumerate(self.starts):  # what lies behind a row's end must never be read
            self.keys[first + i, :, start:] = np.nan
            self.values[first + i, :, start:] = np.nan
        self.qkv = generator.normal(size=(self.tokens, (query + 2 * key) * width)).astype(kind)
        angle = generator.uniform(0, 6, size=(self.tokens, width // 2))
        self.cos, self.sin = (np.concatenate([f(angle)] * 2, 1).astype(kind) for f in (np.cos, np.sin))

    def layers(self, sets=2, threads=1):
        made = KINDS[self.kind][0](*self.heads, self.heads[2] ** -0.5, EPS, sets)
        made.begin(self.first, self.starts, self.counts, self.keys.shape[2], threads, at(self.cos), at(self.sin))
        return made

    def attended(self, sets=2, threads=1):
        qkv, self.after = self.qkv.copy(), (self.keys.copy(), self.values.copy())
        found = np.full((self.tokens, self.heads[0] * self.heads[2]), np.nan, self.kind)
        self.layers(sets, threads).attend(at(qkv), *map(at, self.after), at(found))
        return found

    def naive(self):
        query, key, width = self.heads
        parts = self.qkv.astype(np.float64).reshape(self.tokens, -1, width)
        cos, sin = (x.astype(np.float64)[:, None] for x in (self.cos, self.sin))
        half = width // 2
        swapped = np.concatenate([-parts[..., half:], parts[..., :half]], -1)
        turned = parts * cos + swapped * sin
        keys, values = self.keys.astype(np.float64), self.values.astype(np.float64)
        found, m = np.zeros((self.tokens, query, width)), 0
        for i, (start, count) in enumerate(zip(self.starts, self.counts, strict=True)):
            row = self.first + i
            keys[row, :, start : start + count] = turned[m : m + count, query : query + key].transpose(1, 0, 2)
            values[row, :, start : start + count] = parts[m : m + count, query + key :].transpose(1, 0, 2)
            for j, h in itertools.product(range(count), range(query)):
                g, end = h // (query // key), start + j + 1
                score = keys[row, g, :end] @ turned[m + j, h] * width**-0.5
                weight = np.exp(score - score.max())
                found[m + j, h] = weight @ values[row, g, :end] / weight.sum()
            m += count
        return found.reshape(self.tokens, -1), keys, values


RAGGED = [([0], [1]), ([0, 5, 17], [7, 1, 3]), ([3], [20]), ([40, 0, 2], [1, 2, 0]), ([63, 64, 65], [1, 1, 2])]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sets", [0, 1, 2])
@pytest.mark.parametrize("heads", [(6, 2, 16), (9, 3, 64), (4, 4, 6), (2, 1, 80), (5, 1, 20)])
@pytest.mark.parametrize(("starts", "counts"), RAGGED)
def test_attention_is_the_naive_one(starts, counts, heads, sets, kind):
    case = Case(starts, counts, heads, kind, first=1)
    found, (wanted, keys, values) = case.attended(sets), case.naive()
    bound = KINDS[kind][1]
    np.testing.assert_allclose(found, wanted, atol=bound, rtol=bound)
    np.testing.assert_allclose(case.after[0], keys, atol=bound, rtol=bound)  # NaN where nothing was written
    np.testing.assert_allclose(case.after[1], values, atol=bound, rtol=bound)


@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(st.tuples(st.integers(0, 70), st.integers(0, 6)), min_size=1, max_size=5),
    heads=st.sampled_from([(6, 2, 16), (3, 1, 64), (8, 2, 10), (4, 2, 12)]),
    sets=st.integers(0, 2),
    kind=st.sampled_from(list(KINDS)),
)
@example(rows=[(0, 6)], heads=(4, 2, 12), sets=2, kind=np.float32)
def test_a_row_finds_the_same_bits_alone_and_one_token_at_a_time(rows, heads, sets, kind):
    starts, counts = zip(*rows, strict=True)
    case = Case(starts, counts, heads, kind)
    whole, m = case.attended(sets), 0
    for i, count in enumerate(counts):
        for j in range(count):
            one = Case([starts[i] + j], [1], heads, kind, slots=case.keys.shape[2])
            one.qkv, one.cos, one.sin = (x[m : m + 1].copy() for x in (case.qkv, case.cos, case.sin))
            for target, source in ((one.keys, case.after[0]), (one.values, case.after[1])):
                target[0, :, : starts[i] + j] = source[i, :, : starts[i] + j]
            np.testing.assert_array_equal(one.attended(sets)[0], whole[m])
            m += 1


def test_threads_change_no_bit():
    case = Case([900, 1000, 4], [3, 40, 600], (9, 3, 64))
    np.testing.assert_array_equal(case.attended(threads=4), case.attended(threads=1))


def test_scores_far_apart_stay_finite():
    case = Case([10], [3])
    case.qkv *= 300
    wanted = case.naive()[0]
    np.testing.assert_allclose(case.attended(), wanted, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sets", [0, 1, 2])
@pytest.mark.parametrize("width", [4, 15, 16, 576])
def test_norms_sums_and_gates(width, sets, kind):
    case, bound = Case([0, 0], [2, 3], kind=kind), KINDS[kind][1]
    generator = np.random.default_rng(1)
    x, y = (generator.normal(size=(5, width)).astype(kind) for _ in range(2))
    weight, found = generator.normal(size=width).astype(kind), np.empty((5, width), kind)

    def normed(z):
        return z / np.sqrt((z.astype(np.float64) ** 2).mean(-1, keepdims=True) + EPS) * weight

    close = {"atol": bound, "rtol": bound}
    layers = case.layers(sets)
    layers.norm(at(x), at(weight), at(found), width)
    np.testing.assert_allclose(found, normed(x), **close)
    held = x.copy()
    layers.add_norm(at(held), at(y), at(weight), at(found), width)
    np.testing.assert_allclose(held, x + y, **close)
    np.testing.assert_allclose(found, normed(x + y), **close)
    held = x.copy()
    overwritten = y.copy()
    layers.norm_add(at(held), at(overwritten), at(weight), width)
    np.testing.assert_allclose(held, x + normed(y), **close)
    both = (30 * generator.normal(size=(5, 2 * width))).astype(kind)
    both[0, :2] = -200, 200
    layers.gate(at(both), at(found), width)
    gate, up = np.split(both.astype(np.float64), 2, axis=1)
    wanted = gate / (1 + np.exp(np.clip(-gate, None, 500))) * up
    np.testing.assert_allclose(found, wanted, rtol=bound, atol=bound)


@pytest.mark.parametrize("alone", [True, False])
def test_heads_are_normed_alone_or_together(alone):
    case = Case([0], [3])
    query, _, width = case.heads
    weight = np.random.default_rng(2).normal(size=width if alone else query * width).astype(np.float32)
    qkv = case.qkv.copy()
    case.layers().norm_heads(at(qkv), at(weight), 0, query, alone)
    part = case.qkv[:, : query * width].astype(np.float64)
    part = part.reshape(3, query, width) if alone else part
    wanted = part / np.sqrt((part**2).mean(-1, keepdims=True) + EPS) * weight
    np.testing.assert_allclose(qkv[:, : query * width], wanted.reshape(3, -1), atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(qkv[:, query * width :], case.qkv[:, query * width :])


def test_rows_without_room_and_odd_heads_are_refused():
    case = Case([5], [4])
    with pytest.raises(ValueError, match="without room"):
        case.layers().begin(0, case.starts, case.counts, 8, 1, at(case.cos), at(case.sin))
    with pytest.raises(ValueError, match="starts as counts"):
        case.layers().begin(0, case.starts, np.array([1, 1]), 20, 1, at(case.cos), at(case.sin))
    for heads in ((5, 2, 16), (4, 2, 15), (0, 1, 16)):
        with pytest.raises(ValueError, match="heads of an even width"):
            _native.Layers32(*heads, 1.0, EPS)
