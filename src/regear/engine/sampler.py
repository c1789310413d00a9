"""From scores to tokens: greedy, or the maximum of scores plus noise that is keyed by seed and place.

    z = penalised scores / temperature, less what top-k, min-p and top-p leave out;  token = argmax(z + g(seed, place))

Shape letters: R places to fill, V vocabulary.
"""

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from regear.engine.types import Request
from regear.ops.noise import gumbel, keys

choose_native: Any = None  # where it is not built, torch does the same in more steps
with suppress(ImportError):
    from regear._native import choose as choose_native

Array = npt.NDArray[Any]

COLD = 1e-9  # temperatures up to here are greedy: scores over less would overflow, and noise could decide nothing


@dataclass(frozen=True)
class Places:
    """Places in texts that want a token: how each samples, and how many tokens stand before it; arrays of length R.

    `before` holds, for places with penalties, their request, the length of its prompt, and all tokens up to there,
    drafted ones too.
    """

    seed: Array
    position: Array
    temperature: Array
    top_p: Array
    top_k: Array
    min_p: Array
    before: dict[int, tuple[Request, int, Array]] = field(default_factory=dict)

    def only(self, index: Array) -> "Places":
        """Some of the places; penalties are not carried."""
        seed, position, temperature = self.seed[index], self.position[index], self.temperature[index]
        return Places(seed, position, temperature, self.top_p[index], self.top_k[index], self.min_p[index])


def choose(logits_RV: torch.Tensor, places: Places) -> torch.Tensor:
    """The token of each place, int64 [R]."""
    if places.before:
        logits_RV = logits_RV.clone()
        for row, (request, prompt, before) in places.before.items():
            penalise(logits_RV[row], request, prompt, before)
    sampled = np.flatnonzero(places.temperature > COLD)
    if len(sampled) == len(places.temperature):
        return drawn(logits_RV, places)
    found = logits_RV.argmax(-1)
    if len(sampled):
        rows = torch.from_numpy(sampled).to(logits_RV.device)
        found[rows] = drawn(logits_RV[rows], places.only(sampled))
    return found


def drawn(logits_RV: torch.Tensor, places: Places) -> torch.Tensor:
    """The maximum of scores with noise, int64 [R]; temperatures above 0.

    Float32 on a CPU from which nothing is left out goes to compiled code, which makes noise only where it may decide.
    """
    whole = not places.top_k.any() and not places.min_p.any() and not (places.top_p < 1).any()
    if choose_native is None or not whole or logits_RV.device.type != "cpu" or logits_RV.dtype != torch.float32:
        return noisy(logits_RV, places).argmax(-1)
    scores = logits_RV.detach().contiguous().numpy()
    found = torch.from_numpy(
        choose_native(scores, keys(places.seed, places.position), places.temperature.astype(np.float64))
    )
    if len(odd := np.flatnonzero(found.numpy() < 0)):  # scores that are not finite
        found[torch.from_numpy(odd)] = noisy(logits_RV[torch.from_numpy(odd)], places.only(odd)).argmax(-1)
    return found


def noisy(logits_RV: torch.Tensor, places: Places) -> torch.Tensor:
    """Scores whose maximum is the sample, float32 (float64 stays) [R, V]; temperatures above 0."""
    scores = filtered(logits_RV, places)
    return scores.add_(gumbel(keys(places.seed, places.position), scores.shape[1], scores.device))


def filtered(logits_RV: torch.Tensor, places: Places) -> torch.Tensor:
    """Scores over temperature, −inf outside top-k, min-p and top-p, in that order; a new tensor."""
    dtype = torch.promote_types(logits_RV.dtype, torch.float32)
    scores = logits_RV.to(dtype) / _column(places.temperature, logits_RV, dtype)
    if places.top_k.any():
        top_k(scores, places.top_k)
    if places.min_p.any():
        least = scores.amax(1, keepdim=True) + _column(places.min_p, scores, dtype).log()
        scores.masked_fill_(scores < least, -torch.inf)
    if (places.top_p < 1).any():
        top_p(scores, places.top_p)
    return scores


def top_k(scores_RV: torch.Tensor, count_R: Array) -> None:
    """Leave out, in place, what is worse than the k-th best; 0 leaves all."""
    width = scores_RV.shape[1]
    count = np.where(count_R == 0, width, np.minimum(count_R, width))
    limited = count[count < width]
    if not len(limited):
        return
    best = scores_RV.topk(int(limited.max())).values
    last = torch.from_numpy(np.minimum(count, best.shape[1]) - 1).to(scores_RV.device)
    least = best.gather(1, last.unsqueeze(1))
    least[torch.from_numpy(count == width).to(scores_RV.device)] = -torch.inf
    scores_RV.masked_fill_(scores_RV < least, -torch.inf)


def top_p(scores_RV: torch.Tensor, mass_R: Array) -> None:
    """Leave out, in place, what lies beyond the likeliest tokens that together have mass p; the first one stays."""
    rows = np.flatnonzero(mass_R < 1)
    index = torch.from_numpy(rows).to(scores_RV.device)
    picked = scores_RV[index]
    order = picked.argsort(dim=1, descending=True, stable=True)
    ranked = picked.gather(1, order).softmax(1)
    before = ranked.cumsum(1) - ranked
    beyond = before >= _column(mass_R[rows], scores_RV, scores_RV.dtype)
    scores_RV[index] = picked.masked_fill(torch.zeros_like(beyond).scatter_(1, order, beyond), -torch.inf)


def penalise(row_V: torch.Tensor, request: Request, prompt: int, before: Array) -> None:
    """Change the scores of tokens that stand before a place, in place."""
    known = torch.from_numpy(before.astype(np.int64)).to(row_V.device)
    if request.repetition_penalty != 1:
        seen = known.unique()
        held = row_V[seen]
        row_V[seen] = torch.where(held > 0, held / request.repetition_penalty, held * request.repetition_penalty)
    if request.presence_penalty or request.frequency_penalty:
        written, times = known[prompt:].unique(return_counts=True)
        row_V[written] -= request.presence_penalty + request.frequency_penalty * times.to(row_V.dtype)


def logprob(logits_RV: torch.Tensor, tokens_R: torch.Tensor) -> torch.Tensor:
    """Log-probability of each token under the model itself, nats, [R]."""
    wide = logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32))
    return wide.gather(1, tokens_R.to(wide.device).unsqueeze(1)).squeeze(1) - wide.logsumexp(1)


def _column(values: Array, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(values).to(like.device, dtype).unsqueeze(1)
