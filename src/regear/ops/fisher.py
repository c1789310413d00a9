"""The curvature of the loss in a projection's outputs, as one Kronecker product fitted to tokens.

An error ΔA in the map y → y + ΔA y changes the loss by about ½ Σ_t (g_tᵀ ΔA y_t)², where g_t is the gradient of
the loss, with targets drawn from the model itself, in token t's output (the Fisher information). The expectation of
(y yᵀ) ⊗ (g gᵀ) is fitted by G ⊗ M as the maximum-likelihood factors of a matrix normal are, in turns:

    G = E[(gᵀ M⁻¹ g) y yᵀ] / W,      M = E[(yᵀ G⁻¹ y) g gᵀ] / W,      from M = E[g gᵀ].

Plain second moments would let a few tokens with huge keys and no influence (the first of a text) fill G.
"""

import torch

from regear.ops.lowrank import symmetric_power

CHUNK = 4096


def weighted_gram(rows_NW: torch.Tensor, weight_N: torch.Tensor) -> torch.Tensor:
    """Σ_t w_t r_t r_tᵀ / N, [W, W]: products of a chunk in the rows' own type, their sum in float64."""
    total = torch.zeros(rows_NW.shape[1], rows_NW.shape[1], dtype=torch.float64)
    for rows, weight in zip(rows_NW.split(CHUNK), weight_N.split(CHUNK), strict=True):
        total += ((rows * weight.to(rows)[:, None]).T @ rows).double()
    return total / len(rows_NW)


def quadratic(rows_NW: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """r_tᵀ A r_t for every row, [N]."""
    matrix = matrix.to(rows_NW)
    return torch.cat([((rows @ matrix) * rows).sum(1) for rows in rows_NW.split(CHUNK)])


def kronecker_fisher(
    output_NW: torch.Tensor, gradient_NW: torch.Tensor, weight_N: torch.Tensor, *, rounds: int = 2, damp: float = 0.01
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit E[(y yᵀ) ⊗ (g gᵀ)] ≈ G ⊗ M by `rounds` turns; returns (G, M), float64, [W, W] each.

    Args:
        output_NW: the projection's outputs y.
        gradient_NW: the gradients g in the same places.
        weight_N: weight of each token; 0 leaves it out.
        damp: share of the mean eigenvalue added before each inverse.
    """
    width = output_NW.shape[1]
    gram, metric = torch.zeros(width, width), weighted_gram(gradient_NW, weight_N)
    for _ in range(rounds):
        pull = quadratic(gradient_NW, symmetric_power(metric, -1.0, damp)) / width
        gram = weighted_gram(output_NW, weight_N * pull)
        push = quadratic(output_NW, symmetric_power(gram, -1.0, damp)) / width
        metric = weighted_gram(gradient_NW, weight_N * push)
    return gram, metric
