"""Low-rank adapters (peft) put into a model in place, and folded into its weights afterwards."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from regear.core.errors import RecipeError
from regear.train.recipes import LoraRecipe

ADAPTER = "default"


def inject(model: nn.Module, recipe: LoraRecipe, names: list[str]) -> None:
    """Freeze all and give every linear layer among `names` (parameters) an adapter.

    Raises:
        RecipeError: peft is not installed, or none of the parameters is a linear layer's weight.
    """
    wanted = targets(model, names)
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # type: ignore[arg-type]
        lora_dropout=recipe.dropout,
        target_modules=wanted,
        bias="none",
    )
    inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def targets(model: Any, names: list[str]) -> list[str]:
    """The linear layers among the owners of some parameters.

    Raises:
        RecipeError: peft is not installed, there are none, or the head is among them.
    """
    if find_spec("peft") is None:
        raise RecipeError("train.lora needs peft: pip install 'regear[train]'")
    owners = [name.removesuffix(".weight") for name in names]
    found = [name for name in owners if isinstance(_module(model, name), nn.Linear)]
    if not found:
        raise RecipeError(f"train.lora: {names[0]} and the other chosen parameters belong to no linear layer")
    for name in found:
        if _module(model, name) is model.get_output_embeddings():
            raise RecipeError(
                f"train.lora: the losses take the head as one matrix, so {name} can have no adapter; add "
                f"{name}.weight to train.freeze"
            )
    return found


def _module(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def merged(tensors: dict[str, Any], recipe: LoraRecipe) -> dict[str, torch.Tensor]:
    """A model's tensors with its adapters folded in, under the names it had before: W + alpha / rank · B A."""
    plain = {name.replace(".base_layer.", "."): value for name, value in tensors.items() if ".lora_" not in name}
    suffix = f".lora_A.{ADAPTER}.weight"
    for name in [name for name in tensors if name.endswith(suffix)]:
        prefix = name.removesuffix(suffix)
        product = tensors[f"{prefix}.lora_B.{ADAPTER}.weight"].float() @ tensors[name].float()
        weight = plain[f"{prefix}.weight"]
        plain[f"{prefix}.weight"] = weight + (recipe.alpha / recipe.rank * product).to(weight.dtype)
    return plain
