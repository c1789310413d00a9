"""What changes too rare to be resampled may still have done: a bound by counting instead of the bootstrap.

Where only a few independent units changed, resamples hold a few more or less of the same, or none, and intervals come
out too short. So the interval is widened by the changed units that may have been missed, each changed by as much as
those that were seen, in either direction.
"""

import math

FEW = 10  # changed clusters below which the bootstrap says too little of how rare changes are


def most_changed(changed: int, clusters: int, level: float) -> float:
    """Upper bound, at `level`, of the share of clusters that a change touches, having seen `changed` of `clusters`.

    The exact binomial bound of Clopper and Pearson; with none seen, about `3 / clusters` at 95 % (the rule of three).
    """
    low, high = changed / clusters, 1.0
    if changed >= clusters:
        return high
    for _ in range(60):
        middle = (low + high) / 2
        seen = sum(math.comb(clusters, i) * middle**i * (1 - middle) ** (clusters - i) for i in range(changed + 1))
        low, high = (middle, high) if seen > 1 - level else (low, middle)
    return high


def widened(
    bounds: tuple[float, float], effect: float, changed: int, clusters: int, typical: float, level: float
) -> tuple[float, float]:
    """Bounds that allow for the changes missed, where fewer than `FEW` clusters changed; else as they are."""
    if changed >= FEW or not clusters:
        return bounds
    missed = (most_changed(changed, clusters, level) - changed / clusters) * typical
    return min(bounds[0], effect - missed), max(bounds[1], effect + missed)
