"""Noise that is a function of a key and a place, so that a text's randomness hangs on nothing else.

Gumbel noise g makes sampling a maximum: argmax(z + g) is distributed as softmax(z) (Gumbel, 1954). With g a function of
(seed, position, token), the same scores give the same token whatever was computed beside them, and a drafter that adds
the same noise to its own scores guesses nearly as well as any could (Daliri et al., arXiv 2408.07978).
"""

import numpy as np
import numpy.typing as npt
import torch

GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
ROUNDS = ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 0))  # Wellons' 32-bit mixer, of low bias

Integers = npt.NDArray[np.uint64]


def mix(x: Integers) -> Integers:
    """SplitMix64's finaliser: every bit of the result depends on every bit of x."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(SECOND)
    return x ^ (x >> np.uint64(31))


def keys(seed: npt.ArrayLike, *places: npt.ArrayLike) -> Integers:
    """Keys of many places, elementwise: (seed, request, sample, epoch, position, …). Order counts."""
    golden = np.uint64(GOLDEN)
    state = mix(_unsigned(seed) + golden)
    for place in places:
        # Once more through the mixer: were the two treated alike, (a, b) and (b, a) would share a key, and all (a, a).
        state = mix(mix(state + golden) ^ mix(_unsigned(place) + golden))
    return state


def key(seed: int, *places: int) -> int:
    """One key, 64 bits: a seed for one request of many, by (seed, request, sample, epoch)."""
    return int(keys([seed], *([place] for place in places))[0])


def _unsigned(x: npt.ArrayLike) -> Integers:
    """Integers by their low 64 bits; negative ones and longer ones too."""
    if isinstance(x, np.ndarray) and x.dtype.kind in "iu":
        return x.astype(np.uint64)
    return np.array(
        [int(value) & 0xFFFFFFFFFFFFFFFF for value in np.atleast_1d(np.asarray(x, dtype=object))], np.uint64
    )


def uniform(keys_R: Integers, width: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Numbers in (0, 1), float32 [R, width], from a hash of each key and the column; finest near 0."""
    halves = torch.from_numpy(keys_R.view(np.int32).reshape(-1, 2).copy()).to(device)
    columns = torch.arange(width, dtype=torch.int32, device=device)
    if halves.device.type == "cpu":  # a row at a time stays in the processor's cache
        found = torch.empty(len(halves), width)
        for row, (low, high) in zip(found, halves, strict=True):
            row.copy_(_hash(columns, low, high))
        return found
    return _hash(columns, halves[:, :1], halves[:, 1:])


def _hash(columns: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    x = _mixed(columns ^ low)
    x = _mixed(x.add_(high))
    return x.bitwise_and_(0x7FFFFFFF).float().add_(0.5).mul_(2.0**-31).clamp_(max=1 - 2.0**-24)


def _mixed(x: torch.Tensor) -> torch.Tensor:
    for shift, factor in ROUNDS:
        x ^= (x >> shift).bitwise_and_((1 << (32 - shift)) - 1)  # torch shifts signs in; these bits are logical
        if factor:
            x *= _signed(factor)
    return x


def _signed(x: int) -> int:
    """The low 32 bits as a two's complement number."""
    x &= 0xFFFFFFFF
    return x - (1 << 32) if x >> 31 else x


def gumbel(keys_R: Integers, width: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Gumbel noise, float32 [R, width]."""
    return uniform(keys_R, width, device).neg_().log1p_().neg_().log_().neg_()
