"""Products with int8 weights: their plain form, rows that mind no neighbours, what is kept and what is freed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from regear.core.errors import IncompatibleModel
from regear.ops import int8
from regear.ops.int8 import joined, naive, of_linear, quantise

widths = st.integers(1, 70)


def make(inner, outer, *, bias=False, gain=False, seed=0):
    torch.manual_seed(seed)
    layer = nn.Linear(inner, outer, bias=bias)
    gain_I = torch.rand(inner) + 0.5 if gain else None
    weight = layer.weight if gain_I is None else layer.weight / gain_I
    return layer, gain_I, *quantise(weight)


@given(widths, widths, st.integers(1, 20), st.booleans(), st.booleans(), st.integers(0, 99))
def test_the_fast_form_is_the_plain_one(inner, outer, rows, bias, gain, seed):
    layer, gain_I, codes, scale = make(inner, outer, bias=bias, gain=gain, seed=seed)
    x = torch.randn(2, rows, inner) * torch.logspace(-6, 6, rows)[:, None]
    found = of_linear(layer, gain_I)(x)
    wanted = naive(x, codes, scale, layer.bias, gain_I, int8.levels())
    step = x.abs().amax(-1, keepdim=True) * layer.weight.abs().amax() / 127  # a tie rounded the other way
    assert found.shape == wanted.shape
    assert ((found - wanted).abs() <= 1e-5 * wanted.abs() + 3 * step).all()
    assert ((found - wanted).abs() <= 1e-5 * wanted.abs() + 1e-4 * step).float().mean() > 0.9


@given(st.integers(1, 40), st.integers(0, 39), st.integers(1, 40), st.booleans())
def test_a_row_is_the_same_whatever_is_beside_it(rows, first, count, gain):
    layer, gain_I, *_ = make(48, 33, bias=True, gain=gain)
    x = torch.randn(rows, 48)
    x[::3] *= 1e6  # a neighbour's range must not count
    part = slice(first % rows, first % rows + count)
    fast = of_linear(layer, gain_I)
    assert torch.equal(fast(x)[part], fast(x[part]))


def test_codes_come_back_and_rounding_is_within_half_a_step():
    layer, gain_I, codes, scale = make(40, 30, gain=True)
    fast = of_linear(layer, gain_I)
    assert torch.equal(fast.codes[0], codes)
    torch.testing.assert_close(fast.codes[1], scale)
    steps = scale[:, None] * gain_I
    assert ((fast.weight - layer.weight).abs() <= 0.501 * steps).all()
    assert fast.codes[0].abs().amax(1).eq(127).all()


def test_exact_rounds_the_weights_only():
    layer, gain_I, *_ = make(64, 20, bias=True, gain=True)
    fast, x = of_linear(layer, gain_I), torch.randn(5, 64)
    wanted = nn.functional.linear(x, fast.weight, layer.bias)
    with int8.exact(nn.Sequential(fast)):
        torch.testing.assert_close(fast(x), wanted, rtol=1e-5, atol=1e-5)
    assert (fast(x) - wanted).abs().max() > 1e-3


def test_two_digits_round_rows_finer_by_the_base():
    layer, gain_I, *_ = make(64, 20, bias=True, gain=True)
    x = torch.randn(5, 64)
    one, two = of_linear(layer, gain_I), of_linear(layer, gain_I, digits=2)
    wanted = nn.functional.linear(x, one.weight, layer.bias)
    assert (two(x) - wanted).norm() < (one(x) - wanted).norm() / (0.8 * int8.levels())
    assert torch.equal(two(x)[1:3], two(x[1:3]))
    before = two(x)
    with int8.exact(two), int8.exact(two):
        assert not torch.equal(two(x), before)
    assert torch.equal(two(x), before)


def test_joined_maps_give_the_same_numbers():
    layers = [make(24, outer, bias=True, seed=outer)[0] for outer in (7, 9)]
    gain_I, x = torch.rand(24) + 0.5, torch.randn(3, 24)
    shared = int8.Rounding()
    parts = [of_linear(layer, gain_I, rounding=shared) for layer in layers]
    whole, wanted = joined(parts), torch.cat([part(x) for part in parts], -1)
    assert torch.equal(whole(x), wanted)
    with int8.exact(parts[0]):
        assert torch.equal(whole(x), torch.cat([part(x) for part in parts], -1))
        assert not torch.equal(whole(x), wanted)
    for other in (of_linear(layers[1], rounding=shared), of_linear(layers[1], gain_I * 2, rounding=shared)):
        assert joined([parts[0], other]) is None
    assert joined([parts[0], of_linear(layers[1], gain_I)]) is None


def test_a_gain_spreads_large_inputs_over_the_weights():
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 64, bias=False), torch.randn(50, 64)
    x[:, 5] *= 200
    gain_I = int8.gain(int8.root_mean_square(x), [layer.weight])
    wanted = layer(x)
    plain, spread = ((of_linear(layer, g)(x) - wanted).norm() for g in (None, gain_I))
    assert spread < plain / 3
    assert gain_I.log().mean().abs() < 1e-5


def test_inputs_that_are_never_used_keep_their_size():
    weight = torch.randn(4, 3)
    weight[:, 0] = 0
    gain_I = int8.gain(torch.tensor([1.0, 0.0, 2.0]), [weight])
    assert gain_I[0] == gain_I[1] == 1
    assert torch.isfinite(gain_I).all()
    assert torch.equal(int8.gain(torch.zeros(3), [weight]), torch.ones(3))


def test_zeros_no_rows_and_what_is_not_a_number():
    fast = of_linear(make(16, 8, bias=True)[0])
    assert torch.equal(fast(torch.zeros(2, 16)), fast.bias.expand(2, 8))
    assert fast(torch.empty(0, 16)).shape == (0, 8)
    x = torch.randn(3, 16)
    x[1, 2] = torch.nan
    found = fast(x)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], fast(x[[0, 2]]))


def test_a_processor_without_the_instructions_takes_half_the_codes(monkeypatch):
    layer, _, codes, scale = make(48, 20)
    monkeypatch.setattr(int8, "levels", lambda: 63)
    x = torch.randn(4, 48)
    torch.testing.assert_close(of_linear(layer)(x), naive(x, codes, scale, most=63), rtol=1e-4, atol=1e-4)


def test_a_torch_without_the_operator_is_refused(monkeypatch):
    monkeypatch.setattr(int8, "_apply", None)
    with pytest.raises(IncompatibleModel, match="float32"):
        of_linear(nn.Linear(4, 4))
