"""The Kronecker fit of the curvature: it finds true factors, matches its naive form, and ignores a harmless giant."""

import torch

from regear.ops.fisher import kronecker_fisher, quadratic, weighted_gram
from regear.ops.lowrank import best_basis, symmetric_power


def test_pieces_equal_their_loops():
    rows, weight = torch.randn(30, 5, dtype=torch.float64), torch.rand(30, dtype=torch.float64)
    naive = sum(w * torch.outer(r, r) for r, w in zip(rows, weight, strict=True)) / 30
    torch.testing.assert_close(weighted_gram(rows, weight), naive)
    matrix = torch.randn(5, 5, dtype=torch.float64)
    torch.testing.assert_close(quadratic(rows, matrix), torch.stack([r @ matrix @ r for r in rows]))


def test_one_round_equals_the_written_formula():
    torch.manual_seed(0)
    y, g = torch.randn(40, 4, dtype=torch.float64), torch.randn(40, 4, dtype=torch.float64)
    gram, metric = kronecker_fisher(y, g, torch.ones(40, dtype=torch.float64), rounds=1, damp=0.1)
    first = g.T @ g / 40
    inverse = symmetric_power(first, -1, 0.1)
    want = sum((gi @ inverse @ gi) / 4 * torch.outer(yi, yi) for yi, gi in zip(y, g, strict=True)) / 40
    torch.testing.assert_close(gram, want)
    inverse = symmetric_power(want, -1, 0.1)
    want_metric = sum((yi @ inverse @ yi) / 4 * torch.outer(gi, gi) for yi, gi in zip(y, g, strict=True)) / 40
    torch.testing.assert_close(metric, want_metric)


def test_independent_factors_are_found():
    torch.manual_seed(0)
    a, b = torch.randn(3, 3, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    y, g = torch.randn(60_000, 3, dtype=torch.float64) @ a.T, torch.randn(60_000, 3, dtype=torch.float64) @ b.T
    gram, metric = kronecker_fisher(y, g, torch.ones(60_000), damp=0.0)
    found, want = torch.kron(gram, metric), torch.kron(a @ a.T, b @ b.T)
    assert (found / found.norm() - want / want.norm()).norm() < 0.03


def test_a_huge_output_without_influence_does_not_take_the_ranks():
    """The first token of a text: enormous keys that no loss depends on would fill a plain Gram."""
    torch.manual_seed(0)
    y, g = torch.randn(500, 4), torch.randn(500, 4)
    y[:, 3] = 0
    y[:5] = torch.tensor([0.0, 0, 0, 500])
    g[:5] = 1e-4
    weight = torch.ones(500)
    gram, metric = kronecker_fisher(y, g, weight)
    kept = best_basis(gram, metric, 0.1).projector(3)
    assert torch.linalg.norm(kept[:3, :3] - torch.eye(3)) < 0.1
    plain = best_basis(weighted_gram(y, weight)).projector(3)
    assert torch.linalg.norm(plain[:3, :3] - torch.eye(3)) > 0.9


def test_weight_zero_leaves_a_token_out():
    y, g = torch.randn(20, 3), torch.randn(20, 3)
    weight = torch.tensor([1.0] * 15 + [0.0] * 5)
    changed = y.clone()
    changed[15:] *= 100
    for a, b in zip(kronecker_fisher(y, g, weight), kronecker_fisher(changed, g, weight), strict=True):
        torch.testing.assert_close(a, b)
