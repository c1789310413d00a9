"""The pure maps: each undone by its inverse, and equal to what it is for."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from regear.models.formats import fold
from regear.ops.mla import rotate_pairs

sizes = st.integers(1, 5)


@given(sizes, sizes, sizes, st.floats(0.1, 4), st.integers(0, 99))
def test_queries_come_back(heads, nope, half, gain, seed):
    torch.manual_seed(seed)
    weight = torch.randn(heads * (nope + 2 * half), 3, dtype=torch.float64)
    there = fold.fold_queries(weight, heads, 2 * half, gain)
    torch.testing.assert_close(fold.unfold_queries(there, heads, 2 * half, gain), weight)


@given(sizes, sizes, sizes, st.integers(0, 99))
def test_latents_come_back_without_their_padding(rank, half, extra, seed):
    torch.manual_seed(seed)
    weight, norm = torch.randn(rank + 2 * half, 3, dtype=torch.float64), torch.rand(rank, dtype=torch.float64) + 0.5
    wide = fold.pad_latents(weight, 2 * half, rank + extra)
    full = torch.cat([norm, torch.ones(extra, dtype=torch.float64)])
    there = fold.fold_latents(wide, full, 2 * half, 1.0)
    back = fold.unfold_latents(there, torch.full((rank + extra,), fold.NORM_GAIN), 2 * half, rank)
    torch.testing.assert_close(back[:rank], weight[:rank] * norm[:, None])
    assert torch.equal(back[rank:], weight[rank:])


@given(st.integers(1, 6), st.integers(0, 99))
def test_interleaved_pairs_turn_as_split_ones(half, seed):
    torch.manual_seed(seed)
    x, angle = torch.randn(2 * half), torch.rand(half) * 9
    turned = torch.view_as_real(
        torch.view_as_complex(fold.interleave(x).view(-1, 2)) * torch.polar(torch.ones(half), angle)
    )
    torch.testing.assert_close(fold.interleave(rotate_pairs(x, angle)), turned.flatten())


def norm(z, gain, eps):
    return gain * z / (z.square().mean(-1, keepdim=True) + eps).sqrt()


def test_the_norm_fades_as_its_scale_falls():
    """The smaller the latents lie below the eps, the less the norm does: 4^-k."""
    torch.manual_seed(0)
    z = torch.randn(64, 32, dtype=torch.float64)
    errors = []
    for k in range(0, 11, 2):
        small = z * fold.NORM_EPS**0.5 * 2.0**-k
        errors.append(float((norm(small, 2.0**k, fold.NORM_EPS) - z).abs().max()))
    assert errors[0] > 0.1
    assert all(14 < a / b < 17 for a, b in pairwise(errors[1:]))
    assert errors[-1] < 1e-5
    assert fold.LATENT_SCALE * fold.NORM_GAIN == fold.NORM_EPS**0.5
