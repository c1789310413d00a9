"""Loading a model in a chosen precision: a dtype of torch, or int8 weights."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from regear.core.errors import RecipeError
from regear.core.recipe import closest
from regear.models.load import load_model, pick_device
from regear.ops import int8

FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
INT8 = "int8"
NAMES = (*FLOATS, INT8)

READ = ("v_b_proj", "kv_b_proj")  # latent attention multiplies with these matrices itself
TEXTS, LENGTH = 8, 24  # tokens
FINE = 2  # digits, of a head's rows: what they lose falls on the scores themselves, and they are few


def check_dtype(name: str | None, device: str = "auto") -> None:
    """Refuse a precision that is not known, or not for this device.

    Raises:
        RecipeError: not one of `NAMES`, or int8 elsewhere than on a CPU.
    """
    if name is not None and name not in NAMES:
        raise RecipeError(f"unknown dtype {name!r}{closest(name, NAMES)}; known: {', '.join(NAMES)}")
    if name == INT8:
        place = pick_device(device)
        if place.type != "cpu":
            raise RecipeError(f"int8 weights are for a CPU; found device {place}; add --device cpu, or take bfloat16")
        int8.check()


def load_as(directory: Path, device: str = "auto", dtype: str | None = None) -> Any:
    """A causal language model in evaluation mode, in the precision named; None is `load_model`'s own choice.

    Raises:
        RecipeError: see `check_dtype`.
        CheckpointError: see `load_model`.
    """
    check_dtype(dtype, device)
    if dtype != INT8:
        return load_model(directory, device, dtype=FLOATS[dtype] if dtype else None)
    model = load_model(directory, device, dtype=torch.float32)
    quantise_weights(model)
    return model


@torch.no_grad()
def quantise_weights(model: Any) -> None:
    """Give every linear map of a float32 model on a CPU int8 weights, in place; the float ones are freed.

    Embeddings stay, also where the head shares their weight; norms, routed experts and what `READ` names do too. The
    sizes of inputs come from texts that the model itself writes, so that the result depends on the model alone.
    """
    maps = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    maps = {name: part for name, part in maps.items() if name.rpartition(".")[2] not in READ}
    rounding = int8.Rounding()
    for names, size_I in _inputs(model, maps):
        gain_I = None if size_I is None else int8.gain(size_I, [maps[name].weight for name in names])
        for name in names:
            few = int8.levels() < int8.LARGEST  # 6 bits would be too coarse
            digits = FINE if few or maps[name] is model.get_output_embeddings() else 1
            model.set_submodule(name, int8.of_linear(maps.pop(name), gain_I, digits, rounding))


def own_texts(model: Any) -> torch.Tensor:
    """Tokens that the model draws after single random ones, the same every time, [TEXTS, 1 + LENGTH]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = torch.randint(len(model.get_input_embeddings().weight), (TEXTS, 1))
        plain = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        ends = {"max_new_tokens": LENGTH, "eos_token_id": None, "pad_token_id": 0}
        texts: torch.Tensor = model.generate(first, attention_mask=torch.ones_like(first), **plain, **ends)
        return texts


def _inputs(model: Any, maps: dict[str, nn.Linear]) -> list[tuple[list[str], torch.Tensor | None]]:
    """Maps that read the same tensor one after the other, and the size of its columns; None for maps that read none."""
    groups: list[tuple[list[str], torch.Tensor | None]] = []
    last: list[torch.Tensor] = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[torch.Tensor]) -> None:
            if any(name in names for names, _ in groups):
                return
            if not last or last[0] is not arguments[0]:
                last[:] = [arguments[0]]
                groups.append(([], int8.root_mean_square(arguments[0].flatten(0, -2))))
            groups[-1][0].append(name)

        return hook

    texts = own_texts(model)
    hooks = [part.register_forward_pre_hook(note(name)) for name, part in maps.items()]
    try:
        model(input_ids=texts, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    seen = {name for names, _ in groups for name in names}
    return groups + [([name], None) for name in maps if name not in seen]
