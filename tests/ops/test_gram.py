"""Moments: streaming equals at once, order and pads do not matter, sums survive large offsets."""

import torch

from regear.ops.gram import Moments


def test_streaming_equals_batch_in_any_order():
    rows = torch.randn(50, 5)
    weight = torch.rand(50)
    whole, parts = Moments(5), Moments(5)
    whole.add(rows, weight)
    for i in torch.randperm(50).split(7):
        parts.add(rows[i], weight[i])
    torch.testing.assert_close(parts.gram, whole.gram, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(whole.second, (rows.double() * weight.double()[:, None]).T @ rows.double() / whole.count)


def test_a_pad_changes_nothing():
    rows = torch.randn(6, 4)
    padded, plain = Moments(4), Moments(4)
    plain.add(rows)
    padded.add(torch.cat([rows, torch.full((3, 4), 1e6)]), torch.tensor([1.0] * 6 + [0.0] * 3))
    assert torch.equal(padded.gram, plain.gram)
    assert padded.count == plain.count


def test_small_terms_survive_beside_large_ones():
    moments = Moments(1)
    moments.add(torch.tensor([[1e4]]))
    for _ in range(1000):
        moments.add(torch.tensor([[0.1]]))
    assert abs(float(moments.gram) - (1e8 + 10)) < 1e-2  # a float32 sum would still stand at 1e8
