"""Losses, divergences and sampled targets of a softmax whose vocabulary comes in chunks; sums in float64.

The naive twins are `ops.divergence` on whole rows of logits. Shape letters: T positions, C entries of a chunk.
"""

import torch


class Normaliser:
    """log Σ exp of logits, and expectations under their softmax, chunk by chunk."""

    def __init__(self, positions: int, averages: int = 0) -> None:
        self.top = torch.full((positions,), -torch.inf, dtype=torch.float64)
        self.total = torch.zeros(positions, dtype=torch.float64)
        self.weighted = torch.zeros(averages, positions, dtype=torch.float64)

    def add(self, logits_TC: torch.Tensor) -> torch.Tensor:
        """Take in a chunk in float64; returns exp(logits - top), which `average` wants."""
        top = torch.maximum(self.top, logits_TC.amax(-1))
        shrink = (self.top - top).exp()
        powers = (logits_TC - top[:, None]).exp_()
        self.total = self.total * shrink + powers.sum(-1)
        self.weighted = self.weighted * shrink
        self.top = top
        return powers

    def average(self, which: int, powers_TC: torch.Tensor, values_TC: torch.Tensor) -> None:
        """Add a chunk of values to one of the expectations."""
        self.weighted[which] += (powers_TC * values_TC).sum(-1)

    @property
    def log_total(self) -> torch.Tensor:
        """[T]."""
        return self.top + self.total.log()

    @property
    def means(self) -> torch.Tensor:
        """The expectations, [averages, T]."""
        return self.weighted / self.total


def picked(logits_TC: torch.Tensor, start: int, targets_T: torch.Tensor) -> torch.Tensor:
    """The targets' logits where they lie in the chunk that starts at `start`, 0 elsewhere, [T]."""
    place = targets_T - start
    inside = (place >= 0) & (place < logits_TC.shape[1])
    found = logits_TC.gather(1, place.clamp(0, logits_TC.shape[1] - 1)[:, None]).squeeze(1)
    return torch.where(inside, found, torch.zeros_like(found))


class Sampler:
    """Targets drawn by inverting the cumulative distribution: one uniform number a position, whatever the chunks."""

    def __init__(self, uniform_T: torch.Tensor) -> None:
        self.uniform = uniform_T.double()
        self.reached = torch.zeros_like(self.uniform)
        self.targets = torch.full((len(uniform_T),), -1, dtype=torch.long)

    def add(self, probability_TC: torch.Tensor, start: int) -> torch.Tensor:
        """Take in a chunk of probabilities in float64; returns which positions found their target in it, [T]."""
        reached = self.reached[:, None] + probability_TC.cumsum(-1)
        place = torch.searchsorted(reached, self.uniform[:, None], right=True).squeeze(1)
        found = (self.targets < 0) & (place < probability_TC.shape[1])
        self.targets = torch.where(found, place + start, self.targets)
        self.reached = reached[:, -1]
        return found
