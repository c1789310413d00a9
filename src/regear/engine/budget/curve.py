"""How tokens that are kept follow those that are guessed, over whole texts: A = k l (1 − exp(−α p / l)), as in DAS."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

LOWEST, HIGHEST = 0.05, 0.98  # of k
RANGE = 1e-3, 1e2  # of α
GRID, ROUNDS = 61, 4


def fit(proposed: Array, accepted: Array, lengths: Array) -> tuple[float, float]:
    """(α, k) with the least squares of A / l; for a given α the best k is that of a line through zero.

    Without any guesses it is the prior that a guess stands with a chance of a half: α k = 1/2, k = 1/2.
    """
    share, kept = proposed / lengths, accepted / lengths
    if not (share > 0).any():
        return 1.0, 0.5
    low, high = np.log(RANGE)
    best, capacity = 1.0, 0.5
    for _ in range(ROUNDS):
        alphas = np.exp(np.linspace(low, high, GRID))
        shapes = -np.expm1(-alphas[:, None] * share)
        capacities = np.clip(shapes @ kept / (shapes**2).sum(1), LOWEST, HIGHEST)
        errors = ((capacities[:, None] * shapes - kept) ** 2).sum(1)
        place = int(errors.argmin())
        best, capacity = float(alphas[place]), float(capacities[place])
        step = (high - low) / (GRID - 1)
        low, high = np.log(best) - step, np.log(best) + step
    return best, capacity
