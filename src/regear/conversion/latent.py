"""A layer's latent: its factors cut to ranks, and the ranks of all layers under one budget."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from regear.conversion.recipes import MlaRecipe
from regear.conversion.stream import Edit
from regear.ops import ranks as rules
from regear.ops.lowrank import Basis

# A fitted curvature is trusted within these shares of the mean rank.
CURVATURE_BOUNDS = (0.75, 1.4)
MEASURED_BOUNDS = (0.5, 1.7)


@dataclass(frozen=True)
class Factored:
    """One layer's new tensors in float64: down [r, D], key [G*d, r_k], value [G*d, r_v]; ranks are [r, r_k, r_v]."""

    down: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor

    @property
    def ranks(self) -> list[int]:
        return [len(self.down), self.key.shape[1], self.value.shape[1]]

    def edit(self, key_bias: torch.Tensor | None, value_bias: torch.Tensor | None) -> Edit:
        """The same map as dense weights, to run inside the source model."""
        r, r_k, r_v = self.ranks
        return Edit(self.key @ self.down[:r_k], self.value @ self.down[r - r_v :], key_bias, value_bias)


def latent_ranks(ranks: Sequence[int]) -> list[int]:
    """A rank a branch → `[r, r_k, r_v]`: one branch is shared by keys and values, two stand beside each other."""
    return [sum(ranks), ranks[0], ranks[-1]]


def assemble(found: Sequence[Basis], weight: torch.Tensor, ranks: Sequence[int]) -> Factored:
    """Cut bases to ranks: one basis and one rank for a joint latent, two of each for separate ones."""
    half = len(weight) // 2
    if len(found) == 1:
        up = found[0].decode[:, : ranks[0]]
        return Factored(found[0].encode[: ranks[0]] @ weight, up[:half], up[half:])
    keys, values = found
    down = torch.cat([keys.encode[: ranks[0]] @ weight[:half], values.encode[: ranks[1]] @ weight[half:]])
    return Factored(down, keys.decode[:, : ranks[0]], values.decode[:, : ranks[1]])


def allocate(
    recipe: MlaRecipe, spectra: list[list[list[float]]], budget: int, high: int, sensitivity: Sequence[float] | None
) -> list[list[int]]:
    """Ranks of every layer, [layer][branch]; the budget is shared equally between branches.

    Args:
        spectra: [branch][layer][direction], descending.
        budget: floats per token summed over layers.
        high: the most ranks a branch of a layer can use.
        sensitivity: of each layer, for `measured`.
    """
    columns = []
    for spectrum in spectra:
        layers, share, step = len(spectrum), budget // len(spectra), recipe.align
        if recipe.allocate == "uniform":
            columns.append(rules.uniform(layers, share, step=step, high=high))
            continue
        bounds = {"curvature": CURVATURE_BOUNDS, "measured": MEASURED_BOUNDS}.get(recipe.allocate, (0.5, 2.0))
        low, top = rules.bounds(layers, share, high, step=step, low=bounds[0], high=bounds[1])
        match recipe.allocate:
            case "energy":
                score = rules.energy_score(spectrum, step)
            case "care":
                score = rules.care_score(spectrum, step)
            case "care_code":
                score = rules.care_code_score(spectrum, step, low)
            case "measured":
                score = rules.measured_score(spectrum, step, sensitivity or [], high // 4)
            case _:
                score = rules.curvature_score(spectrum, step)
        columns.append(rules.greedy(score, layers, share, step=step, low=low, high=top))
    return [list(row) for row in zip(*columns, strict=True)]
