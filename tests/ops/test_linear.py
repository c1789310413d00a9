"""oneDNN's products against torch's own: values, gradients, and what is left to torch."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from regear.ops.linear import Linear, adopt, linear, product, usable

widths = st.integers(1, 40)


@given(widths, widths, st.integers(1, 6), st.integers(1, 6), st.booleans(), st.booleans(), st.integers(0, 99))
def test_values_and_gradients_are_those_of_torch(inner, outer, rows, columns, bias, strided, seed):
    torch.manual_seed(seed)
    x = torch.randn(columns, rows, inner).transpose(0, 1) if strided else torch.randn(rows, columns, inner)
    weight, shift = torch.randn(outer, inner), torch.randn(outer) if bias else None
    upstream = torch.randn(rows, columns, outer)

    def results(function, dtype):
        inputs = [None if t is None else t.detach().to(dtype).requires_grad_() for t in (x, weight, shift)]
        out = function(*inputs)
        out.backward(upstream.to(dtype))
        return [out.detach()] + [t.grad for t in inputs if t is not None]

    for found, wanted in zip(results(linear, torch.float32), results(nn.functional.linear, torch.float64), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)


def test_a_frozen_weight_gets_no_gradient_and_passes_one_on():
    layer = Linear(8, 5).requires_grad_(False)
    x = torch.randn(3, 8, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is None
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(3, 8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_stay_with_torch(dtype):
    x, weight = torch.randn(4, 6, dtype=dtype), torch.randn(5, 6, dtype=dtype)
    assert not usable(x, weight)
    assert torch.equal(linear(x, weight), nn.functional.linear(x, weight))


def test_no_rows_and_transposed_factors():
    assert linear(torch.empty(0, 6), torch.randn(5, 6)).shape == (0, 5)
    left, right = torch.randn(7, 3), torch.randn(9, 7)
    torch.testing.assert_close(product(left.T, right.T), left.T @ right.T, rtol=1e-4, atol=1e-4)


def test_it_can_be_switched_off_as_torch_does():
    with torch.backends.mkldnn.flags(enabled=False):
        assert not usable(torch.randn(2, 2))


def test_a_model_keeps_its_names_and_values():
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3, bias=False))
    before = copy.deepcopy(model)
    adopt(model)
    x = torch.randn(5, 6)
    torch.testing.assert_close(model(x), before(x), rtol=1e-5, atol=1e-6)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.state_dict().values(), strict=True)
    )
    assert list(model.state_dict()) == list(before.state_dict())
    adopt(model)
    assert isinstance(model[0], Linear)
