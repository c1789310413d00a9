"""Rewriting the matrices of a decoupled layer for another layout of the same function, and back.

Shape letters: H heads, N query floats without rotation, P rotated floats, R latent width, D hidden width.
"""

from collections.abc import Callable

import torch
from torch.nn.functional import pad

Tensor = torch.Tensor

# The latent norm of strict formats has eps 1e-6, whatever the config says. Latents written 2^-10 below the eps, with
# a gain that undoes it, leave the norm's root at sqrt(eps) to one part in 2^20 for latents of unit mean square.
NORM_EPS = 1e-6
NORM_GAIN = 2.0**10
LATENT_SCALE = NORM_EPS**0.5 / NORM_GAIN


def interleave(rows: Tensor) -> Tensor:
    """Half-split RoPE rows (pair i is rows i and i + P/2) → interleaved ones (rows 2i and 2i + 1); [P, …]."""
    return torch.stack(rows.chunk(2), dim=1).flatten(0, 1)


def split_halves(rows: Tensor) -> Tensor:
    """The inverse of `interleave`."""
    return torch.cat([rows[0::2], rows[1::2]])


def fold_queries(weight: Tensor, heads: int, rope: int, gain: float) -> Tensor:
    """Query rows [H * (N + P), D]: rope rows interleaved, all multiplied by `gain`."""
    return _each_head(weight, heads, rope, interleave) * gain


def unfold_queries(weight: Tensor, heads: int, rope: int, gain: float) -> Tensor:
    """The inverse of `fold_queries`."""
    return _each_head(weight, heads, rope, split_halves) / gain


def _each_head(weight: Tensor, heads: int, rope: int, move: Callable[[Tensor], Tensor]) -> Tensor:
    by_head = weight.unflatten(0, (heads, -1))
    plain, rotated = by_head[:, :-rope], by_head[:, -rope:]
    moved = move(rotated.transpose(0, 1)).transpose(0, 1)
    return torch.cat([plain, moved], dim=1).flatten(0, 1)


def fold_latents(weight: Tensor, norm: Tensor, rope: int, norm_eps: float) -> Tensor:
    """Latent and shared-key rows [R + P, D] under a neutral norm of eps `norm_eps` → those under the strict norm."""
    gain = norm.to(weight.dtype) / norm_eps**0.5 * LATENT_SCALE
    return torch.cat([weight[:-rope] * gain[:, None], interleave(weight[-rope:])])


def unfold_latents(weight: Tensor, norm: Tensor, rope: int, rank: int) -> Tensor:
    """Back to rows under a norm that is neutral as it stands; rows beyond `rank` were padding."""
    gain = norm.to(weight.dtype) / NORM_EPS**0.5
    latents = weight[:-rope] * gain[:, None]
    return torch.cat([latents[:rank], split_halves(weight[-rope:])])


def pad_latents(weight: Tensor, rope: int, rank: int) -> Tensor:
    """Zero rows between the latents and the shared key, up to `rank` latents."""
    missing = rank + rope - len(weight)
    return torch.cat([pad(weight[:-rope], (0, 0, 0, missing)), weight[-rope:]])


def pad_up(weight: Tensor, rank: int) -> Tensor:
    """Zero columns of the up-projection, up to `rank`."""
    return pad(weight, (0, rank - weight.shape[1]))
