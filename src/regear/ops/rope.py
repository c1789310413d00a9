"""Taking RoPE apart: which mixtures of key heads keep their rotation, and what the others lose without it.

A RoPE pair (x_i, x_{i + d/2}) is one complex number that RoPE multiplies by e^{iωs}; the same ω serves every key/value
head. Any complex mixture of the heads' numbers at one ω therefore commutes with RoPE and can be shared by all heads.
TransMLA's RoRoPE (arXiv 2502.07864) is the case of real orthogonal mixtures; its FreqFold pretends that adjacent ω are
one. With z = E k and k = D z, a query reads Σ_c conj(q) D_c z_c e^{iω(s-t)}.

Shape letters: G key/value heads, P pairs of a head, C = G P components, W = G d floats of a token's keys (heads, then
halves, then pairs), N rows, T tokens, d head width.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Components:
    """A basis of mixtures of the key heads, a group of frequencies after the other, the best of a group first.

    Shapes: encode [C, G P], decode [G P, C], complex128; pair [C]: the first frequency of a component's group.
    """

    encode: torch.Tensor
    decode: torch.Tensor
    pair: torch.Tensor


def to_pairs(floats: torch.Tensor, heads: int) -> torch.Tensor:
    """[…, heads * d] floats → […, heads, d / 2] complex pairs, in the half-split layout."""
    first, second = floats.unflatten(-1, (heads, 2, -1)).unbind(-2)
    return torch.complex(first, second)


def to_floats(pairs: torch.Tensor) -> torch.Tensor:
    """The inverse of `to_pairs`: […, heads, d / 2] → […, heads * d]."""
    return torch.stack([pairs.real, pairs.imag], -2).flatten(-3)


def real_rows(encode_NC: torch.Tensor, heads: int) -> torch.Tensor:
    """A complex map of pairs [N, G P] as a real map of floats [2 N, W]: rows of real parts, then of imaginary ones."""
    by_head = encode_NC.unflatten(-1, (heads, -1))
    real, imaginary = by_head.real, by_head.imag
    rows = [torch.stack([real, -imaginary], 2), torch.stack([imaginary, real], 2)]
    return torch.cat([part.flatten(1) for part in rows])


def commuting(matrix_WW: torch.Tensor, heads: int) -> torch.Tensor:
    """What of a real quadratic form survives turning all pairs alike: a Hermitian form of the pairs, [G P, G P]."""
    first, second = matrix_WW.double().unflatten(0, (heads, 2, -1)).unbind(1)
    (rr, ri), (ir, ii) = (
        [half.flatten(1) for half in part.flatten(0, 1).unflatten(1, (heads, 2, -1)).unbind(2)]
        for part in (first, second)
    )
    return torch.complex(rr + ii, ir - ri)


def components(
    gram_WW: torch.Tensor,
    metric_WW: torch.Tensor | None,
    heads: int,
    *,
    fold: int = 1,
    real: bool = False,
    damp: float = 0.0,
) -> Components:
    """Principal components of the keys within each group of `fold` adjacent frequencies.

    Args:
        gram_WW: second moments of the keys.
        metric_WW: metric on errors of the keys; the identity when None.
        fold: frequencies taken for one (FreqFold).
        real: only real orthogonal mixtures, as RoRoPE has them; takes no metric.
        damp: share of the metric's mean eigenvalue in a group added to it.
    """
    gram = commuting(gram_WW, heads)
    metric = torch.eye(len(gram), dtype=gram.dtype) if metric_WW is None else commuting(metric_WW, heads)
    count, pairs = len(gram), len(gram) // heads
    encode, decode = torch.zeros_like(gram), torch.zeros_like(gram)
    pair = torch.zeros(count, dtype=torch.long)
    for start in range(0, pairs, fold):
        inside = (torch.arange(heads)[:, None] * pairs + torch.arange(start, min(start + fold, pairs))).flatten()
        places = torch.arange(len(inside)) + start * heads
        block = gram[inside][:, inside]
        root, inverse = _roots(metric[inside][:, inside], damp)
        values = root @ block @ root
        _, vectors = torch.linalg.eigh(values.real if real else values)
        vectors = _fix_phases(vectors.flip(1)).to(gram.dtype)
        rows = vectors.mH @ root
        # Rows of unit length: components then have the keys' own units, and metrics of keys and values compare.
        length = torch.linalg.vector_norm(rows, dim=1)
        encode[places[:, None], inside] = rows / length[:, None]
        decode[inside[:, None], places] = inverse @ vectors * length
        pair[places] = start
    return Components(encode, decode, pair)


def _roots(metric: torch.Tensor, damp: float) -> tuple[torch.Tensor, torch.Tensor]:
    values, vectors = torch.linalg.eigh(metric)
    values = values.clamp_min(0)
    values = (values + damp * values.mean()).clamp_min(values.max().clamp_min(1e-300) * 1e-14)
    return (vectors * values.sqrt()) @ vectors.mH, (vectors * values.rsqrt()) @ vectors.mH


def _fix_phases(vectors: torch.Tensor) -> torch.Tensor:
    """Make each column's largest entry real and positive, so that equal problems give equal components."""
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * (largest.conj() / largest.abs())


def folded_grid(pairs: int, heads: int, step: int, fold: int) -> tuple[torch.Tensor, torch.Tensor]:
    """TransMLA's choice: of each group of `fold` frequencies the best fold / step components, turned with every
    `step`-th of its frequencies. Returns components and their frequencies, both [P / step]."""
    chosen = [start * heads + i for start in range(0, pairs, fold) for i in range(fold // step)]
    return torch.tensor(chosen), torch.arange(0, pairs, step)


def greedy_pairs(residual_CC: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` components whose rotation is worth most, in order of place.

    Args:
        residual_CC: R, second moments of what each component loses when it is not rotated; losing a set S of them
            costs Σ_{a, b in S} R_ab. Each step keeps the one that lowers it most.
    """
    lost = torch.ones(len(residual_CC), dtype=torch.float64)
    for _ in range(count):
        gain = lost * (2 * residual_CC @ lost - residual_CC.diagonal())
        gain[lost == 0] = -torch.inf
        lost[int(gain.argmax())] = 0
    return (lost == 0).nonzero().squeeze(1)


def greedy_grid(residual_CC: torch.Tensor, pair_C: torch.Tensor, step: int) -> torch.Tensor:
    """As `greedy_pairs`, but exactly one component for each `step`-th frequency, in the frequencies' order."""
    lost = torch.ones(len(residual_CC), dtype=torch.float64)
    open_ = pair_C % step == 0
    while open_.any():
        gain = lost * (2 * residual_CC @ lost - residual_CC.diagonal())
        best = int(gain.masked_fill(~open_, -torch.inf).argmax())
        lost[best] = 0
        open_ &= pair_C != pair_C[best]
    return (lost == 0).nonzero().squeeze(1)


@dataclass(frozen=True)
class Heads:
    """One window of one layer at the attention itself.

    Shapes: query, gradient (of the loss in the mixed values) [H, T, d]; key (as it enters RoPE), value [G, T, d];
    phase e^{iωt} [T, P]; scale of the scores.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    gradient: torch.Tensor
    phase: torch.Tensor
    scale: float

    def group(self, head: int) -> int:
        """The key/value head that a query head reads."""
        return head * len(self.key) // len(self.query)


def turned(floats_TD: torch.Tensor, phase_TP: torch.Tensor) -> torch.Tensor:
    """RoPE: the [T, d] floats of a head turned by their phases."""
    return to_floats(to_pairs(floats_TD, 1) * phase_TP[:, None])


def score_gradient(window: Heads, head: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of the loss in q·k for every query and key of one head, and the attention weights; both [T, T].

    Rows of the gradient sum to zero: what is added to all scores of a query changes nothing.
    """
    group = window.group(head)
    query, key = turned(window.query[head], window.phase), turned(window.key[group], window.phase)
    scores = window.scale * query @ key.T
    weights = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
    change = window.gradient[head] @ window.value[group].T
    return window.scale * weights * (change - (weights * change).sum(-1, keepdim=True)), weights
