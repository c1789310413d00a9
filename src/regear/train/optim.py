"""Which parameters train, with what decay, at what rate at which step."""

import math
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from regear.core.errors import RecipeError
from regear.core.recipe import closest
from regear.train.recipes import StageRecipe

# Norms, router gates and the parameters of state-space layers: pulling them to zero changes what they mean.
UNDECAYED = re.compile(r"norm|(^|\.)(A_log|D|dt_bias|gate)(\.|$)")


def select(model: nn.Module, train: Sequence[str], freeze: Sequence[str]) -> list[str]:
    """Make exactly the parameters trainable that `train` names and `freeze` does not; returns their names.

    Raises:
        RecipeError: a pattern of `train` names no parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in train:
        if not any(fnmatchcase(name, pattern) for name in names):
            guess = closest(pattern.strip("*."), sorted({part for name in names for part in name.split(".")}))
            raise RecipeError(f"train: no parameter is named like {pattern!r}{guess}; this model has {names[1]}, …")

    def named(name: str, patterns: Iterable[str]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    chosen = [name for name in names if named(name, train) and not named(name, freeze)]
    if not chosen:
        raise RecipeError(f"nothing is left to train: freeze={list(freeze)} names all that train={list(train)} does")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return chosen


def groups(model: nn.Module, decay: float) -> list[dict[str, object]]:
    """AdamW's groups: matrices decay; vectors and what `UNDECAYED` names do not."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim < 2 or UNDECAYED.search(name) else decayed).append(parameter)
    kinds = ((decayed, decay), (plain, 0.0))
    return [{"params": held, "weight_decay": share} for held, share in kinds if held]


def adamw(model: nn.Module, recipe: StageRecipe) -> torch.optim.AdamW:
    """AdamW over what is trainable."""
    return torch.optim.AdamW(groups(model, recipe.weight_decay), lr=recipe.lr, betas=recipe.betas)


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
