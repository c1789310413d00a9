"""Low-rank factors: CARE's printed form equals the PCA of outputs; the metric form is optimal; nothing turns to NaN."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from regear.ops.lowrank import best_basis, care_root, fix_signs, symmetric_power


def problem(width=8, inputs=12, tokens=200, seed=0):
    torch.manual_seed(seed)
    x = torch.randn(tokens, inputs, dtype=torch.float64) @ torch.randn(inputs, inputs, dtype=torch.float64)
    weight = torch.randn(width, inputs, dtype=torch.float64)
    return x.T @ x / tokens, weight


def spd(width, seed=1):
    torch.manual_seed(seed)
    a = torch.randn(width, width, dtype=torch.float64)
    return a @ a.T + 0.1 * torch.eye(width, dtype=torch.float64)


@pytest.mark.parametrize("rank", [1, 3, 7, 8])
def test_care_as_printed_equals_pca_of_outputs_equals_cholesky(rank):
    covariance, weight = problem()
    printed = care_root(covariance, weight, rank)
    pca = best_basis(weight @ covariance @ weight.T).projector(rank) @ weight
    lower = torch.linalg.cholesky(covariance)
    left, sizes, right = torch.linalg.svd(lower.T @ weight.T, full_matrices=False)
    whitened = (torch.linalg.inv(lower.T) @ (left[:, :rank] * sizes[:rank]) @ right[:rank]).T
    assert (printed - pca).abs().max() < 1e-10
    assert (printed - whitened).abs().max() < 1e-10


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), rank=st.integers(1, 7), damp=st.sampled_from([0.0, 0.1]))
def test_what_is_lost_is_the_tail_and_no_random_bottleneck_loses_less(seed, rank, damp):
    covariance, weight = problem(seed=seed)
    gram, metric = weight @ covariance @ weight.T, spd(8, seed + 1)
    basis = best_basis(gram, metric, damp)
    used = metric + damp * metric.diagonal().mean() * torch.eye(8, dtype=torch.float64)

    def loss(projector):
        rest = torch.eye(8, dtype=torch.float64) - projector
        return float((used @ rest @ gram @ rest.T).trace())

    assert loss(basis.projector(rank)) == pytest.approx(basis.tail(rank), rel=1e-8, abs=1e-9)
    other = torch.randn(8, rank, dtype=torch.float64)
    # The best decoder for a random encoder, by least squares under the Gram.
    decoder = gram @ other @ torch.linalg.inv(other.T @ gram @ other)
    assert loss(decoder @ other.T) >= basis.tail(rank) - 1e-9


def test_full_rank_is_the_identity_whatever_the_metric():
    covariance, weight = problem()
    basis = best_basis(weight @ covariance @ weight.T, spd(8), 0.1)
    torch.testing.assert_close(basis.projector(8), torch.eye(8, dtype=torch.float64), atol=1e-10, rtol=0)


def test_latents_have_unit_mean_square():
    covariance, weight = problem()
    gram = weight @ covariance @ weight.T
    basis = best_basis(gram, 1e-9 * spd(8), 0.1)
    torch.testing.assert_close(torch.diagonal(basis.encode @ gram @ basis.encode.T), torch.ones(8, dtype=torch.float64))


@pytest.mark.parametrize("metric", [None, torch.zeros(6, 6), torch.diag(torch.tensor([1.0, 0, 0, 0, 0, 0]))])
@pytest.mark.parametrize("gram", [torch.zeros(6, 6), torch.diag(torch.tensor([4.0, 1, 0, 0, 0, 0]))])
def test_singular_problems_give_zeros_not_nan(gram, metric):
    basis = best_basis(gram, metric, 1e-6)
    for tensor in (basis.values, basis.encode, basis.decode):
        assert torch.isfinite(tensor).all()
    assert torch.isfinite(basis.projector(4)).all()


def test_signs_are_fixed():
    vectors = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    assert torch.equal(fix_signs(vectors), fix_signs(-vectors))


def test_symmetric_power_inverts():
    matrix = spd(6)
    product = symmetric_power(matrix, 0.5) @ symmetric_power(matrix, 0.5) @ symmetric_power(matrix, -1.0)
    torch.testing.assert_close(product, torch.eye(6, dtype=torch.float64), atol=1e-10, rtol=0)
