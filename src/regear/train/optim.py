"""Which parameters train, with what decay, at what rate at which step."""

import math
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from regear.core.errors import RecipeError
from regear.core.recipe import closest
from regear.train.recipes import FROZEN, StageRecipe

# Norms, router gates and the parameters of state-space layers: pulling them to zero changes what they mean.
UNDECAYED = re.compile(r"norm|(^|\.)(A_log|D|dt_bias|gate)(\.|$)")

SMALLEST = 1e-3  # a parameter that starts at zero could never leave it


def select(model: nn.Module, train: Sequence[str], freeze: Sequence[str]) -> list[str]:
    """Make exactly the parameters trainable that `train` names and `freeze` does not; returns their names.

    Raises:
        RecipeError: a pattern of `train` names no parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in train:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise RecipeError(
                f"train: no parameter is named like {pattern!r}{_near(pattern, names)}; this model has {names[1]}, …"
            )

    def named(name: str, patterns: Iterable[str]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    chosen = [name for name in names if named(name, train) and not named(name, freeze)]
    if not chosen:
        raise RecipeError(f"nothing is left to train: freeze={list(freeze)} names all that train={list(train)} does")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return chosen


def check_frozen(model: nn.Module, freeze: Sequence[str]) -> None:
    """Refuse patterns of `freeze` that name no parameter, but for those that every stage has.

    Raises:
        RecipeError: with the nearest name.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in set(freeze) - set(FROZEN):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise RecipeError(f"freeze: no parameter is named like {pattern!r}{_near(pattern, names)}")


def _near(pattern: str, names: Sequence[str]) -> str:
    return closest(pattern.strip("*."), sorted({part for name in names for part in name.split(".")}))


def groups(model: nn.Module, recipe: StageRecipe) -> list[dict[str, Any]]:
    """AdamW's groups of equal decay and rate: matrices decay; vectors and what `UNDECAYED` names do not.

    `scale` multiplies the rate. Adam moves every entry by about the rate, whatever its size; a converted layer's
    factors differ in size a hundredfold, so relative rates are shares of each parameter's root mean square (as in
    Adafactor, arXiv 1804.04235, section 8). AdamW multiplies the decay by the rate too, so it is divided by `scale`: a
    step takes the share lr · weight_decay of every parameter, relative rates or not.
    """
    relative = recipe.relative and recipe.lora is None
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = 0.0 if parameter.ndim < 2 or UNDECAYED.search(name) else recipe.weight_decay
            scale = max(size(parameter), SMALLEST) if relative else 1.0
            found.setdefault((decay / scale, scale), []).append(parameter)
    return [{"params": held, "weight_decay": decay, "scale": scale} for (decay, scale), held in found.items()]


@torch.no_grad()
def size(parameter: torch.Tensor) -> float:
    """The root mean square of a parameter, wherever its parts lie."""
    mean: Any = parameter.detach().float().square().mean()
    return float(mean.full_tensor() if hasattr(mean, "full_tensor") else mean) ** 0.5


def adamw(model: nn.Module, recipe: StageRecipe) -> torch.optim.AdamW:
    """AdamW over what is trainable; one kernel a group on a GPU."""
    held = groups(model, recipe)
    fused = all(parameter.is_cuda for group in held for parameter in group["params"]) or None
    return torch.optim.AdamW(held, lr=recipe.lr, betas=recipe.betas, fused=fused)


def settle(optimiser: torch.optim.Optimizer) -> None:
    """Lay restored counts of steps beside their parameters, where AdamW's one kernel reads them."""
    for parameter, kept in optimiser.state.items():
        if "step" in kept:
            kept["step"] = kept["step"].to(parameter.device)


def rate(step: int, steps: int, recipe: StageRecipe) -> float:
    """The learning rate of step `step` of `steps`, counted from 0, as a share of `recipe.lr`.

    A linear warm-up, then half a cosine down to `floor`, or (`wsd`) a plateau whose last `decay` share falls to it.
    """
    warmup = min(recipe.warmup, steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if recipe.schedule == "constant":
        return 1.0
    start = warmup if recipe.schedule == "cosine" else max(warmup, steps - round(recipe.decay * steps))
    if step < start:
        return 1.0
    share = (step - start + 1) / (steps - start + 1)
    fall = (1 + math.cos(math.pi * share)) / 2 if recipe.schedule == "cosine" else 1 - share
    return recipe.floor + (1 - recipe.floor) * fall
