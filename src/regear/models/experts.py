"""Routed experts: transformers holds all of a layer's in two tensors, checkpoints hold each expert's matrices apart."""

from collections.abc import Callable, Mapping

import torch

JOINED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


def apart(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The checkpoint's tensors behind one tensor of a module, in order; all but joined experts are one and the same.

    Args:
        name: such as `mlp.experts.gate_up_proj`, with any prefix; its shape is [E, 2 I, D] (`down_proj`: [E, D, I]).
    """
    place, _, last = name.rpartition(".")
    if not place.endswith(".experts"):
        return {name: shape}
    count, rows, columns = shape
    matrices = JOINED[last]
    part = (rows // len(matrices), columns)
    return {f"{place}.{number}.{matrix}.weight": part for number in range(count) for matrix in matrices}


def join(name: str, shape: tuple[int, ...], read: Callable[[str], torch.Tensor]) -> torch.Tensor:
    """A module's tensor, read from the checkpoint; one expert's matrix at a time is held beside it."""
    parts = apart(name, shape)
    if name in parts:
        return read(name)
    first = read(next(iter(parts)))
    whole = torch.full(shape, torch.nan, dtype=first.dtype, device=first.device)
    for place, part in zip(whole.view(len(parts), *first.shape), parts, strict=True):
        place.copy_(read(part))
    return whole


def split(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A model's tensors under the names of its checkpoint: the inverse of `join`, without copies."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        parts = apart(name, tuple(tensor.shape))
        pieces = [tensor] if name in parts else tensor.reshape(len(parts), *next(iter(parts.values())))
        found |= zip(parts, pieces, strict=True)
    return found
