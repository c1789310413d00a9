"""Numbers in 8 or 4 bits, in groups that share a scale and a smallest value (asymmetric, round to nearest).

A group is the last dimension. Scale and smallest value are stored in float16 and the codes are computed with the
stored ones, so that their rounding costs range and adds no error of its own.
"""

from typing import NamedTuple

import torch

BITS = (8, 4)
LARGEST = 65504.0  # of float16


class Packed(NamedTuple):
    """Groups of integers: `codes` uint8 [..., ceil(g * bits / 8)], `scale` and `least` float16 [...]."""

    codes: torch.Tensor
    scale: torch.Tensor
    least: torch.Tensor


def quantise(x: torch.Tensor, bits: int) -> Packed:
    """Round groups x [..., g] to `bits` bits; two 4-bit codes share a byte, the earlier one in its low half.

    Raises:
        ValueError: bits other than 8 or 4, an empty group, or a value that float16 cannot hold.
    """
    if bits not in BITS or not x.shape[-1]:
        raise ValueError(f"found bits={bits} and groups of {x.shape[-1]}; wanted bits 8 or 4 and a group of 1 or more")
    x = x.float()
    low, high = x.aminmax(dim=-1)
    if x.numel() and not bool((low >= -LARGEST).all() & (high <= LARGEST).all()):
        raise ValueError(f"found a value that is not finite or beyond {LARGEST:.0f}; its scale does not fit float16")
    least = low.half()
    scale = ((high - least.float()) / (2**bits - 1)).clamp(min=0, max=LARGEST).half()
    step = torch.where(scale > 0, scale, torch.ones_like(scale)).float()  # a flat group has codes of zero
    codes = ((x - least.float().unsqueeze(-1)) / step.unsqueeze(-1)).round().clamp(0, 2**bits - 1).to(torch.uint8)
    return Packed(codes if bits == 8 else pack_nibbles(codes), scale, least)


def dequantise(packed: Packed, bits: int, group: int) -> torch.Tensor:
    """The groups again, float32 [..., group]."""
    codes = packed.codes if bits == 8 else unpack_nibbles(packed.codes)[..., :group]
    return codes * packed.scale.float().unsqueeze(-1) + packed.least.float().unsqueeze(-1)


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Codes below 16, uint8 [..., g] → uint8 [..., ceil(g / 2)]; an odd last one stands alone."""
    even = torch.nn.functional.pad(codes, (0, codes.shape[-1] % 2))
    return even[..., ::2] | even[..., 1::2] << 4


def unpack_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """uint8 [..., n] → codes below 16, uint8 [..., 2 n]."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


def spread_out(x: torch.Tensor) -> torch.Tensor:
    """Rotate x [..., w] by an orthogonal matrix of ±1 entries (Walsh-Hadamard), its own inverse.

    One large entry becomes many small ones, which a shared scale holds better. Blocks are as wide as the largest
    power of two that divides w.
    """
    width = x.shape[-1]
    block = width & -width
    y = x.float().reshape(-1, width // block, block) if width else x
    half = 1
    while half < block:
        a, b = y.unflatten(-1, (-1, 2, half)).unbind(-2)
        y = torch.stack((a + b, a - b), dim=-2).flatten(-3)
        half *= 2
    return (y * block**-0.5).reshape(x.shape) if width else x


def group_width(width: int, most: int = 64) -> int:
    """The widest group of at most `most` that divides a width into equal ones; the whole width if that is below 16."""
    found = max(size for size in range(1, min(width, most) + 1) if width % size == 0)
    return found if found >= 16 else width
