"""Low-rank factors of a projection's output, optimal for a Gram and a metric.

With y = W x, G = E[y yᵀ] and a metric M on errors of y, the best rank-r linear bottleneck ŷ = U E y minimises
E‖M^½ (y - ŷ)‖². With M^½ G M^½ = V Λ Vᵀ it is E = V_rᵀ M^½, U = M^-½ V_r, and what is lost is the sum of the
eigenvalues left out. M = I is CARE's uniform form: the PCA of the outputs (`care_root` is the same in CARE's words);
G = W Wᵀ with M = I is the SVD of the weights.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Basis:
    """A full set of bottleneck directions, best first.

    Shapes: values [W] descending; encode [W, W], whose first r rows give the latents; decode [W, W], whose first r
    columns give the outputs back.
    """

    values: torch.Tensor
    encode: torch.Tensor
    decode: torch.Tensor

    def projector(self, rank: int) -> torch.Tensor:
        """The rank-r map y → ŷ, [W, W]."""
        return self.decode[:, :rank] @ self.encode[:rank]

    def tail(self, rank: int) -> float:
        """Loss, in the metric, of keeping `rank` directions."""
        return float(self.values[rank:].sum())


def symmetric_power(matrix: torch.Tensor, power: float, damp: float = 0.0) -> torch.Tensor:
    """A power of a positive semidefinite matrix after adding `damp` times its mean eigenvalue; float64."""
    values, vectors = torch.linalg.eigh(_symmetric(matrix))
    values = values.clamp_min(0)
    values = values + damp * values.mean()
    floor = values.max() * 1e-14
    powered = torch.where(values > floor, values.clamp_min(1e-300) ** power, torch.zeros_like(values))
    return (vectors * powered) @ vectors.T


def best_basis(gram: torch.Tensor, metric: torch.Tensor | None = None, damp: float = 0.0) -> Basis:
    """All bottleneck directions for a Gram [W, W] and a metric [W, W] (identity when None).

    Latents come out with unit mean square under `gram`, so that they survive any storage type; directions without
    energy keep the scale they have, and nothing turns to NaN.
    """
    gram = _symmetric(gram)
    if metric is None:
        root = inverse = torch.eye(len(gram), dtype=torch.float64)
    else:
        root, inverse = symmetric_power(metric, 0.5, damp), symmetric_power(metric, -0.5, damp)
    values, vectors = torch.linalg.eigh(_symmetric(root @ gram @ root))
    values, vectors = values.flip(0).clamp_min(0), fix_signs(vectors.flip(1))
    encode, decode = vectors.T @ root, inverse @ vectors
    scale = torch.einsum("ri,ij,rj->r", encode, gram, encode).clamp_min(0).sqrt()
    dead = scale <= scale.max() * 1e-12
    scale = torch.where(dead, torch.ones_like(scale), scale)
    encode = encode / scale[:, None]
    return Basis(values, encode, decode * scale)


def fix_signs(vectors: torch.Tensor) -> torch.Tensor:
    """Make each column's largest entry positive, so that equal problems give equal factors."""
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * torch.where(largest < 0, -1.0, 1.0)


def care_root(covariance: torch.Tensor, weight: torch.Tensor, rank: int) -> torch.Tensor:
    """CARE as printed: SVD of √C Wᵀ, truncated and unwhitened; returns the rank-r weight [W, D].

    The naive twin of `best_basis(W C Wᵀ)`, and only for a covariance of full rank. Source: CARE, equation for
    `W^a = √C⁻¹ U_r Σ_r`, `W^b = V_rᵀ`.
    """
    left, sizes, right = torch.linalg.svd(symmetric_power(covariance, 0.5) @ weight.T, full_matrices=False)
    product = symmetric_power(covariance, -0.5) @ (left[:, :rank] * sizes[:rank]) @ right[:rank]
    return product.T


def _symmetric(matrix: torch.Tensor) -> torch.Tensor:
    matrix = matrix.to(torch.float64)
    return (matrix + matrix.T) / 2
