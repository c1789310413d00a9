"""Ranks across layers under one budget: how many latent directions each layer keeps.

Every rule takes the layers' spectra (descending, [W] each), a budget summed over layers, the step in which ranks
move, and bounds; the greedy ones hand out steps to the layer with the largest score, ties to the lower layer.
"""

import heapq
import math
from collections.abc import Callable, Sequence

from regear.core.errors import RecipeError

Spectra = Sequence[Sequence[float]]
Score = Callable[[int, int], float]


def uniform(layers: int, budget: int, *, step: int, high: int) -> list[int]:
    """The same rank everywhere, the largest multiple of `step` that fits.

    Raises:
        RecipeError: not even one step a layer fits.
    """
    rank = min(budget // layers, high) // step * step
    if rank < 1:
        raise RecipeError(
            f"the budget of {budget} floats per token is below one rank of {step} in each of {layers} layers; "
            "raise convert.kv_ratio or lower convert.align"
        )
    return [rank] * layers


def greedy(score: Score, layers: int, budget: int, *, step: int, low: int, high: int) -> list[int]:
    """Start every layer at `low`, then give `step` to the best-scoring layer while the budget lasts.

    Optimal when each layer's score falls with its rank; CARE's printed score does not.
    """
    ranks = [low] * layers
    left = budget - sum(ranks)
    if left < 0 or low < 1:
        uniform(layers, budget, step=step, high=high)  # says what is wrong
        raise RecipeError(f"the lower bound of {low} in {layers} layers is above the budget of {budget}")
    queue = [(-score(layer, low), layer) for layer in range(layers) if low + step <= high]
    heapq.heapify(queue)
    while queue and left >= step:
        _, layer = heapq.heappop(queue)
        ranks[layer] += step
        left -= step
        if ranks[layer] + step <= high:
            heapq.heappush(queue, (-score(layer, ranks[layer]), layer))
    return ranks


def bounds(layers: int, budget: int, width: int, *, step: int, low: float = 0.5, high: float = 2.0) -> tuple[int, int]:
    """Bounds as fractions of the mean rank, in whole steps, within [step, width]."""
    mean = budget / layers

    def whole(rank: float) -> int:
        return max(step, int(rank // step) * step)

    top = whole(min(width, high * mean))
    return min(max(step, math.ceil(low * mean / step) * step), whole(mean), top), top


def _sum(values: Sequence[float], start: int, count: int) -> float:
    return float(sum(values[start : start + count]))


def energy_score(spectra: Spectra, step: int) -> Score:
    """Share of the layer's own energy that the next step keeps: σ²/Σσ²."""
    totals = [max(float(sum(s)), 1e-300) for s in spectra]
    return lambda layer, rank: _sum(spectra[layer], rank, step) / totals[layer]


def care_score(spectra: Spectra, step: int) -> Score:
    """CARE's equation (1) as printed: σ²_{r+1} over what is still left. It runs away as a layer nears full rank."""
    return lambda layer, rank: _sum(spectra[layer], rank, step) / max(_sum(spectra[layer], rank, 1 << 30), 1e-300)


def care_code_score(spectra: Spectra, step: int, low: int) -> Score:
    """CARE's released code: the printed score times a depth prior, over √(r / r_min); neither is in the paper."""
    printed, layers = care_score(spectra, step), len(spectra)

    def score(layer: int, rank: int) -> float:
        depth = math.sqrt((layers - layer) / ((layers + 1) / 2))
        return printed(layer, rank) * depth / math.sqrt(max(rank, 1) / max(low, 1))

    return score


def measured_score(spectra: Spectra, step: int, sensitivity: Sequence[float], cut: int) -> Score:
    """Energy in units of measured loss: `sensitivity` is the loss when only that layer is cut to rank `cut`."""
    scale = [s / max(_sum(v, cut, 1 << 30), 1e-300) for s, v in zip(sensitivity, spectra, strict=True)]
    return lambda layer, rank: scale[layer] * _sum(spectra[layer], rank, step)


def curvature_score(spectra: Spectra, step: int) -> Score:
    """Predicted loss: for a metric in units of loss the eigenvalues themselves compare across layers."""
    return lambda layer, rank: _sum(spectra[layer], rank, step)
