"""Few-bit groups against their plain form, number by number."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings

from regear.ops.kvquant import (
    dequantise,
    group_width,
    pack_nibbles,
    quantise,
    spread_out,
    unpack_nibbles,
)

NUMBERS = st.floats(-1000, 1000, width=32)
BITS = st.sampled_from([8, 4])


def half(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32).half())


def naive(x: list[float], bits: int) -> tuple[list[float], float]:
    """What one group becomes when it is stored and read, and its step."""
    least = half(min(x))
    scale = half(max(0.0, (max(x) - least) / (2**bits - 1)))
    if scale == 0:
        return [least] * len(x), 0.0
    codes = [min(2**bits - 1, max(0, round((value - least) / scale))) for value in x]
    return [least + scale * code for code in codes], scale


@settings(max_examples=200, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=20), BITS)
@example([-128.7494659423828], 8)
def test_a_group_is_stored_as_the_plain_form_stores_it(x, bits):
    packed = quantise(torch.tensor([x]), bits)
    found = dequantise(packed, bits, len(x))[0].tolist()
    expected, step = naive(x, bits)
    # Where a number lies midway between two codes, float32 and float64 may round it to either.
    assert all(abs(a - b) <= step * 1.0001 + 1e-6 for a, b in zip(found, expected, strict=True))
    assert sum(abs(a - b) > step / 2 for a, b in zip(found, expected, strict=True)) <= max(1, len(x) // 4)
    assert packed.codes.shape == (1, -(-len(x) * bits // 8))


@settings(max_examples=200, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=20), BITS)
def test_the_error_is_half_a_step_and_the_rounding_of_the_ends(x, bits):
    packed = quantise(torch.tensor([x]), bits)
    error = (dequantise(packed, bits, len(x))[0] - torch.tensor(x)).abs().max()
    size = max(map(abs, x))
    bound = (max(x) - min(x)) / (2**bits - 1) / 2
    assert error <= bound + 2**-10 * size * 1.01 + 2**-11 * (max(x) - min(x)) + 2**bits * 6e-8


def test_known_numbers():
    packed = quantise(torch.tensor([[0.0, 1.0, 2.0, 15.0, 7.4]]), 4)
    assert packed.codes.tolist() == [[0x10, 0xF2, 0x07]]
    assert dequantise(packed, 4, 5).tolist() == [[0, 1, 2, 15, 7]]
    assert dequantise(quantise(torch.full((2, 3), 1.5), 8), 8, 3).tolist() == [[1.5] * 3] * 2


@given(st.lists(st.integers(0, 15), min_size=1, max_size=9))
def test_nibbles_come_back(codes):
    found = unpack_nibbles(pack_nibbles(torch.tensor(codes, dtype=torch.uint8)))
    assert found[: len(codes)].tolist() == codes


@pytest.mark.parametrize("x", [[float("nan"), 1.0], [float("inf"), 0.0], [1e6, 0.0]])
def test_what_float16_cannot_hold_is_refused(x):
    with pytest.raises(ValueError, match="does not fit float16"):
        quantise(torch.tensor([x]), 8)


@pytest.mark.parametrize("width", [1, 2, 12, 40, 64, 96, 167])
def test_the_rotation_is_its_own_inverse_and_keeps_lengths(width):
    x = torch.randn(3, width)
    y = spread_out(x)
    assert torch.allclose(y.norm(dim=-1), x.norm(dim=-1), atol=1e-5)
    assert torch.allclose(spread_out(y), x, atol=1e-5)


def test_the_rotation_is_the_hadamard_matrix():
    matrix = torch.tensor([[1.0]])
    while len(matrix) < 8:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    x = torch.randn(5, 24)  # three blocks of 8
    expected = (x.reshape(5, 3, 8) @ matrix / 8**0.5).reshape(5, 24)
    assert torch.allclose(spread_out(x), expected, atol=1e-5)


def test_groups_divide_the_width():
    assert [group_width(w) for w in (64, 128, 96, 80, 12, 256)] == [64, 64, 48, 40, 12, 64]
    assert group_width(67) == 67  # a prime is one group
