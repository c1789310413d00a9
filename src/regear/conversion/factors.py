"""The factorisations of [k; v]: which Gram and which metric each one hands to `ops.lowrank.best_basis`.

One row of `FACTORS` a method; each is a function of one layer's statistics and weights (`LayerView`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from regear.models.families import SourceSpec
from regear.ops.lowrank import Basis, best_basis, symmetric_power

# Damping of each metric, as a share of its mean eigenvalue: keeps directions that no calibration token used.
DAMP = 1e-6
# The Fisher metric is an estimate from some ten thousand tokens; chosen on selection text from 0.001, 0.01 and 0.1.
FISHER_DAMP = 0.1

# Share of the Gram's energy given to inputs of all directions alike (CARE's shrinkage, smaller): what no calibration
# token used is kept before what the weights cannot produce.
RIDGE = 1e-6

Problem = tuple[torch.Tensor, torch.Tensor | None, float]


@dataclass(frozen=True)
class LayerView:
    """One layer's statistics, its projection [k; v] as float64 [W, D], its output projection, and the model's facts."""

    spec: SourceSpec
    statistics: dict[str, torch.Tensor]
    weight: torch.Tensor
    output_weight: torch.Tensor
    key_norm: torch.Tensor | None
    value_weight: float = 1.0


def svd(view: LayerView) -> Problem:
    """The weights' own SVD: every input direction counts the same."""
    return view.weight @ view.weight.T, None, 0.0


def care(view: LayerView) -> Problem:
    """CARE's uniform form: least squares on the outputs."""
    return view.statistics["kv_gram"], None, 0.0


def balanced(view: LayerView) -> Problem:
    """Keys and values each divided by their own scale, so that neither drowns the other (TransMLA)."""
    gram, half = view.statistics["kv_gram"], view.spec.branch_width
    energy = gram.diagonal()
    scales = torch.cat([part.mean().clamp_min(1e-300).expand(half) for part in (energy[:half], energy[half:])])
    return gram, torch.diag(1 / scales), DAMP


def attention(view: LayerView) -> Problem:
    """What attention makes of an error: query energy per RoPE pair for keys, the output projection for values.

    Only what survives averaging over rotations is kept for keys. Each branch is divided by its own energy, then the
    values are multiplied by `value_weight`.
    """
    spec, gram, half = view.spec, view.statistics["kv_gram"], view.spec.branch_width
    group = spec.heads // spec.kv_heads
    energy = view.statistics["query_energy"].view(spec.kv_heads, group, 2, spec.head_dim // 2).mean((1, 2))
    keys = energy.repeat(1, 2)  # both halves of a rotated pair, [G, d]
    if view.key_norm is not None:
        # Near its mean, k_norm multiplies a raw key by its gain over the root mean square of what it norms.
        energy = gram.diagonal()[:half].view(spec.kv_heads, spec.head_dim)
        square = energy.mean() if spec.qk_norm_width == "all" else energy.mean(1, keepdim=True)
        keys = keys * view.key_norm.double().view(-1, spec.head_dim).square() / square.clamp_min(1e-300)
    heads = view.output_weight.double().view(-1, spec.kv_heads, group, spec.head_dim)
    values = torch.einsum("oghd,oghe->gde", heads, heads)
    metric = torch.zeros_like(gram)
    metric[:half, :half] = torch.diag(keys.reshape(-1))
    metric[half:, half:] = torch.block_diag(*values)
    for part, weight in ((slice(0, half), 1.0), (slice(half, None), view.value_weight)):
        metric[part, part] *= weight / (metric[part, part] * gram[part, part]).sum().clamp_min(1e-300)
    return gram, metric, DAMP


def fisher(view: LayerView) -> Problem:
    """The loss's own curvature (`ops.fisher`): eigenvalues are predicted losses in nats a token, times two."""
    # Its float32 sums leave slightly negative energy where no token went, which would drown the ridge.
    gram = symmetric_power(view.statistics["fisher_gram"], 1.0)
    return gram, view.statistics["fisher_metric"], FISHER_DAMP


@dataclass(frozen=True)
class Factor:
    """A row: the problem it poses, the collectors it needs, one line of help."""

    problem: Callable[[LayerView], Problem]
    collectors: tuple[str, ...]
    help: str


FACTORS = {
    "svd": Factor(svd, (), "SVD of the weights, no calibration"),
    "care": Factor(care, ("kv-moments",), "CARE's uniform form: PCA of the outputs"),
    "balanced": Factor(balanced, ("kv-moments",), "keys and values scaled to equal size"),
    "attention": Factor(attention, ("kv-moments", "query-energy"), "query energy for keys, output weights for values"),
    "fisher": Factor(fisher, ("kv-moments", "kv-fisher"), "curvature of the loss in keys and values"),
}


def reachable(gram: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The Gram [W, W], shrunk towards white inputs, without what rounding put out of reach of the weights [W, D]."""
    white = weight @ weight.T
    # Float32 sums leave slightly negative energy where no token went, which would drown the ridge.
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    gram = (vectors * values.clamp_min(0)) @ vectors.T
    gram = gram + RIDGE * gram.trace() / white.trace().clamp_min(1e-300) * white
    if weight.shape[1] < weight.shape[0]:
        onto = weight @ torch.linalg.pinv(weight)
        gram = onto @ gram @ onto.T
    return gram


def bases(view: LayerView, factor: str, branches: str) -> tuple[Basis, ...]:
    """The layer's bottleneck directions: one basis for [k; v], or one each for keys and values."""
    gram, metric, damp = FACTORS[factor].problem(view)
    gram = reachable(gram, view.weight)
    if branches == "joint":
        return (best_basis(gram, metric, damp),)
    half = view.spec.branch_width
    parts = (slice(0, half), slice(half, None))
    return tuple(best_basis(gram[p, p], None if metric is None else metric[p, p], damp) for p in parts)
