"""Which tokens of a stochastic draft stand, so that what is emitted is distributed as the target alone would sample.

    accept d ~ q with probability min(1, p(d) / q(d));  at the first rejection draw from norm(max(p − q, 0)) and stop;
    after a draft that stands whole draw from p

Sources: Leviathan et al. (arXiv 2211.17192), Chen et al. (arXiv 2302.01318). p and q are the distributions after
temperature, filters and penalties: q is what the draft was really drawn from. A draft without a distribution, a point
mass, needs none of this: see `engine.verify`.

Shape letters: N texts, K drafted tokens, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from regear.ops.noise import gumbel, keys, uniform

ACCEPTING, DRAWING = 1, 2  # streams of noise, apart from each other and from the noise that a draft is drawn with

Distribution = Sequence[float]
Array = npt.NDArray[np.int64]


def residual(p: Distribution, q: Distribution) -> list[float]:
    """norm(max(p − q, 0)), what a rejected token is replaced from; p where the two are equal."""
    rest = [max(a - b, 0.0) for a, b in zip(p, q, strict=True)]
    total = sum(rest)
    return [x / total for x in rest] if total > 0 else list(p)


def draw(p: Distribution, u: float) -> int:
    """The token at which the running sum of p passes u."""
    total = 0.0
    for token, mass in enumerate(p):
        total += mass
        if u < total:
            return token
    return max(token for token, mass in enumerate(p) if mass > 0)


def accept_chain(
    targets: Sequence[Distribution],
    drafts: Sequence[Distribution],
    drafted: Sequence[int],
    accepting: Sequence[float],
    drawing: float,
) -> list[int]:
    """The naive form: the tokens that one text is given, one to K + 1.

    Args:
        targets: p at every drafted place and at the one after them. `drafts`: q at every drafted place.
        accepting: a uniform number for each drafted token. `drawing`: one for the last token.
    """
    for place, (token, u) in enumerate(zip(drafted, accepting, strict=True)):
        if u * drafts[place][token] >= targets[place][token]:
            return [*drafted[:place], draw(residual(targets[place], drafts[place]), drawing)]
    return [*drafted, draw(targets[len(drafted)], drawing)]


def accept_chains(
    p_NQV: torch.Tensor, q_NKV: torch.Tensor, drafted_NK: torch.Tensor, seed_N: Array, position_N: Array
) -> tuple[torch.Tensor, torch.Tensor]:
    """How many drafted tokens of each text stand, and the token after them, int64 [N] each.

    Args:
        p_NQV: Q = K + 1 places. `q_NKV`: zero outside its support, where it was cut.
        seed_N: of the noise, with `position_N`, how many tokens stand before the first drafted one.
    """
    count, length = drafted_NK.shape
    index = drafted_NK.unsqueeze(2)
    p_of, q_of = (x.gather(2, index).squeeze(2) for x in (p_NQV[:, :length], q_NKV))
    u = uniform(keys(seed_N, position_N, np.full(count, ACCEPTING)), length, p_NQV.device)
    kept = (u * q_of < p_of).long().cumprod(1).sum(1)
    rows = torch.arange(count, device=p_NQV.device)
    rest = p_NQV[rows, kept]
    rejected = kept < length
    rest[rejected] = residuals(rest[rejected], q_NKV[rejected, kept[rejected]])
    last = keys(seed_N, position_N + kept.numpy(force=True), np.full(count, DRAWING))
    return kept, (rest.log() + gumbel(last, rest.shape[1], rest.device)).argmax(1)


def residuals(p_NV: torch.Tensor, q_NV: torch.Tensor) -> torch.Tensor:
    """max(p − q, 0), not normalised; p where the two are equal."""
    rest = (p_NV - q_NV).clamp_min(0)
    return torch.where(rest.sum(1, keepdim=True) > 0, rest, p_NV)
