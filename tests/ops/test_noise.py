"""Noise has its law, hangs on key and column alone, and is the same however many keys are asked for at once."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from regear.ops import noise

ALPHA = 1e-4
COUNT = 1 << 16
SEEDS = st.integers(-(2**70), 2**70)


def cells(*samples, bins=8):
    """How often each combination of bins of several uniform samples occurs."""
    edges = [np.linspace(0, 1, bins + 1)] * len(samples)
    return np.histogramdd(np.stack([np.asarray(x, float).ravel() for x in samples], 1), edges)[0].ravel()


def at_once(keys, columns):
    """As on a GPU: all rows in one operation."""
    halves = torch.from_numpy(keys.view(np.int32).reshape(-1, 2).copy())
    return noise._hash(torch.arange(columns, dtype=torch.int32), halves[:, :1], halves[:, 1:])


def many(seeds=1, positions=1, columns=1):
    """Uniform numbers [seeds, positions, columns] of consecutive seeds and positions."""
    seed, position = np.meshgrid(np.arange(seeds), np.arange(positions), indexing="ij")
    return at_once(noise.keys(seed.ravel(), position.ravel()), columns).view(seeds, positions, columns).numpy()


@pytest.mark.parametrize("sizes", [(COUNT, 1, 1), (1, COUNT, 1), (1, 1, COUNT), (32, 32, 64)])
def test_uniform_along_seeds_positions_and_columns(sizes):
    found = many(*sizes).ravel()
    assert stats.kstest(found, "uniform").pvalue > ALPHA
    assert stats.chisquare(cells(found, bins=256)).pvalue > ALPHA


def test_gumbel_law():
    found = noise.gumbel(noise.keys(np.arange(64), 5), 1024).numpy().ravel()
    assert stats.kstest(found, "gumbel_r").pvalue > ALPHA


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("step", [1, 2, 16])
def test_neighbours_are_independent(axis, step):
    found = many(*(256 if i == axis else 16 for i in range(3)))
    one, other = np.moveaxis(found, axis, 0)[:-step], np.moveaxis(found, axis, 0)[step:]
    # Disjoint pairs: chi-square wants independent draws.
    picked = np.arange(len(one)) // step % 2 == 0
    assert stats.chisquare(cells(one[picked], other[picked])).pvalue > ALPHA
    assert abs(stats.spearmanr(one.ravel(), other.ravel()).statistic) < 4.5 / one.size**0.5


def test_low_bits_are_as_random_as_high_ones():
    found = (many(64, 16, 64).astype(float) * 2**20 % 16).astype(int)
    assert stats.chisquare(np.bincount(found.ravel())).pvalue > ALPHA


@given(SEEDS, st.lists(SEEDS, max_size=4))
def test_a_key_equals_its_naive_form(seed, places):
    mask = 2**64 - 1

    def mix(x):
        x = (x ^ (x >> 30)) * noise.FIRST & mask
        x = (x ^ (x >> 27)) * noise.SECOND & mask
        return x ^ (x >> 31)

    state = mix((seed + noise.GOLDEN) & mask)
    for place in places:
        state = mix(mix((state + noise.GOLDEN) & mask) ^ mix((place + noise.GOLDEN) & mask))
    assert noise.key(seed, *places) == state


@given(st.lists(st.tuples(SEEDS, st.integers(0, 2**40)), min_size=1, max_size=6))
def test_keys_of_many_places_equal_each_ones(pairs):
    seeds, places = zip(*pairs, strict=True)
    expected = [noise.key(*pair) for pair in pairs]
    assert noise.keys(seeds, places).tolist() == expected
    unsigned = np.array([seed % 2**64 for seed in seeds], np.uint64)
    assert noise.keys(unsigned, np.array(places)).tolist() == expected


def test_no_two_places_share_a_key():
    seed, place = np.meshgrid(np.arange(-200, 200), np.arange(-10, 390))
    assert len(np.unique(noise.keys(seed.ravel(), place.ravel()))) == seed.size
    assert (
        len({noise.key(*places) for places in [(0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 1, 0), (0, 1), (1, 0), (0,), (1,)]})
        == 8
    )


def hashed(key, column):
    """The hash of one column in Python's integers."""

    def mixed(x):
        for shift, factor in noise.ROUNDS:
            x ^= x >> shift
            x = x * (factor or 1) % 2**32
        return x

    low, high = key % 2**32, key >> 32
    return mixed((mixed(column ^ low) + high) % 2**32) % 2**31


@given(st.integers(0, 2**64 - 1), st.integers(0, 200))
def test_numbers_equal_their_naive_form(key, column):
    found = noise.uniform(np.array([key], np.uint64), column + 1)[0, column].item()
    assert found == min(np.float32(np.float32(hashed(key, column)) + np.float32(0.5)) * 2.0**-31, 1 - 2.0**-24)


def test_rows_do_not_depend_on_their_neighbours_or_on_the_width():
    keys = noise.keys(np.arange(40), 3)
    together = noise.gumbel(keys, 300)
    for row in range(40):
        assert torch.equal(noise.gumbel(keys[row : row + 1], 300)[0], together[row])
    assert torch.equal(noise.gumbel(keys, 7), together[:, :7])


def test_all_rows_at_once_as_on_a_gpu_equal_one_at_a_time():
    keys = noise.keys(np.arange(40), 3)
    assert torch.equal(at_once(keys, 90), noise.uniform(keys, 90))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_makes_the_same_numbers():
    keys = noise.keys(np.arange(40), 3)
    assert torch.equal(noise.uniform(keys, 90, "cuda").cpu(), noise.uniform(keys, 90))


def test_extremes_are_finite(monkeypatch):
    for extreme in (0, -1, 0x7FFFFFFF, -(2**31)):
        monkeypatch.setattr(noise, "_mixed", lambda x, value=extreme: torch.full_like(x, value))
        keys = np.array([0], np.uint64)
        assert 0 < noise.uniform(keys, 1).item() < 1
        assert -5 < noise.gumbel(keys, 1).item() < 23
    assert noise.uniform(np.empty(0, np.uint64), 5).shape == (0, 5)


def test_always_finite_and_inside_the_open_interval():
    found = noise.uniform(noise.keys(range(-20, 20), 2**63), 50_000)
    assert found.dtype == torch.float32
    assert 0 < found.min() < 1e-4
    assert 1 - 1e-4 < found.max() < 1
    assert noise.gumbel(noise.keys([2**64, -(2**63)], [-1, 2**80]), 50_000).isfinite().all()
