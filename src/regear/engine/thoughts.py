"""What the model thought at places of texts, in a few numbers each, for drafters that learn from it.

The likeliest tokens say what else might have come. A sketch says where in its own space the model was: the signs of a
state's products with fixed directions differ in as large a share of them as the angle between two states is of a half
turn (Charikar, "Similarity estimation techniques from rounding algorithms", 2002).

Shape letters: R places, V vocabulary, D hidden width, S signs.
"""

from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from regear.engine.drafters.base import LIKELY, SKETCH, THOUGHT, UNKNOWN
from regear.ops.noise import keys

likeliest_native: Any = None  # where it is not built, torch does the same in more steps
with suppress(ImportError):
    from regear._native import likeliest as likeliest_native

Array = npt.NDArray[Any]

SIGNS = 32 * SKETCH


def thoughts(logits_RV: torch.Tensor, states_RD: torch.Tensor | None) -> Array:
    """What the model thought at each place, uint32 [R, THOUGHT], as in `drafters.base.Outcome`."""
    found = np.zeros((len(logits_RV), THOUGHT), np.uint32)
    found[:, :LIKELY] = likeliest(logits_RV)
    if states_RD is not None:
        found[:, LIKELY:] = sketch(states_RD)
    return found


def likeliest(logits_RV: torch.Tensor) -> Array:
    """The likeliest tokens of each place under the model itself and their probabilities, uint32 [R, LIKELY]."""
    if likeliest_native is not None and logits_RV.device.type == "cpu" and logits_RV.dtype == torch.float32:
        found: Array = likeliest_native(logits_RV.detach().contiguous().numpy())
        return found
    width = logits_RV.shape[1]
    if not LIKELY <= width <= 1 << 24:
        return np.full((len(logits_RV), LIKELY), UNKNOWN)
    wide = logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32))
    best = wide.topk(LIKELY)
    levels = (16 * (wide.logsumexp(1, keepdim=True) - best.values)).round().clamp(0, 255).nan_to_num(255).long()
    held: Array = ((best.indices << 8) | levels).numpy(force=True).astype(np.uint32)
    held[~best.values.isfinite().all(1).numpy(force=True)] = UNKNOWN
    return held


def sketch(states_RD: torch.Tensor) -> Array:
    """Signs of each state, uint32 [R, SKETCH]."""
    wide = states_RD.float() if states_RD.dtype != torch.float64 else states_RD
    signs = (wide @ _directions(wide.shape[1]).to(wide.device, wide.dtype) > 0).numpy(force=True)
    return np.packbits(signs, axis=1, bitorder="little").view("<u4").astype(np.uint32)


@lru_cache(maxsize=4)
def _directions(width: int) -> torch.Tensor:
    """Directions with entries of 1 and -1, [D, S]: the same everywhere and for ever."""
    bits = keys(0, np.arange(width * SIGNS)) & np.uint64(1)
    return torch.from_numpy(1.0 - 2.0 * bits.reshape(width, SIGNS).astype(np.float32))
