"""Objectives on hidden states: each layer alone on the teacher's inputs, or the student's own states.

The loss of a token is Σ_layers mean_d (s − t)² / mean_d t². Each token is divided by its own size: the first token of
a text can be ten thousand times larger than the others, and a common mean square would be nothing but that token.
A token's share is then also the same in whatever micro-batch it is.

Source: MOHAWK's second stage (arXiv 2408.10189) and RADLADS' first (arXiv 2505.03005), with this normalisation.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers.masking_utils import create_causal_mask

from regear.core.errors import IncompatibleModel, RecipeError
from regear.models.head import decoder
from regear.train.batch import Batch
from regear.train.objective_recipes import AlignRecipe, HiddenRecipe
from regear.train.objectives import Loss
from regear.train.states import run

# (layer, its input, its output), each [B, L, D].
Seen = Callable[[int, torch.Tensor, torch.Tensor], None]


def relative_error(student_ND: torch.Tensor, teacher_ND: torch.Tensor) -> torch.Tensor:
    """Σ_n mean_d (s − t)² / mean_d t² in float32 (float64 stays)."""
    dtype = torch.promote_types(teacher_ND.dtype, torch.float32)
    student, teacher = student_ND.to(dtype), teacher_ND.to(dtype)
    size = teacher.square().mean(-1).clamp_min(torch.finfo(dtype).tiny)
    return ((student - teacher).square().mean(-1) / size).sum()


def align(recipe: AlignRecipe, student: Any, teacher: Any, batch: Batch) -> Loss:
    """Each student layer's attention (or the whole layer) on the teacher's own input of it, against its output.

    The student's part runs as the teacher reaches that layer, so no list of the teacher's states is kept.

    Raises:
        IncompatibleModel: student and teacher have other numbers of layers or other attention.
    """
    wanted = _layers(recipe.layers, student, teacher)
    surroundings = _surroundings(student, batch)
    losses = []

    def compare(index: int, before: torch.Tensor, after: torch.Tensor) -> None:
        with torch.enable_grad():
            module = _part(student, index, recipe.part)
            found = _first(module(before, **surroundings))
            losses.append(relative_error(batch.counted(found), batch.counted(after)))

    with watched(teacher, wanted, recipe.part, compare), torch.no_grad():
        run(teacher, batch)
    return _summed("align", losses, batch)


def hidden(recipe: HiddenRecipe, student: Any, teacher: Any, batch: Batch) -> Loss:
    """The student's hidden states after each layer, on its own way, against the teacher's."""
    wanted = _layers(recipe.layers, student, teacher)
    states: dict[int, torch.Tensor] = {}
    losses = []

    def compare(index: int, before: torch.Tensor, after: torch.Tensor) -> None:
        with torch.enable_grad():
            losses.append(relative_error(states.pop(index), batch.counted(after)))

    def keep(index: int, before: torch.Tensor, after: torch.Tensor) -> None:
        states[index] = batch.counted(after)

    with watched(student, wanted, "layer", keep):
        run(student, batch)
    with watched(teacher, wanted, "layer", compare), torch.no_grad():
        run(teacher, batch)
    return _summed("hidden", losses, batch)


def check(recipe: AlignRecipe | HiddenRecipe, student: Any, teacher: Any) -> None:
    """Raise what the objective would raise of these models' layers, and where its loss reaches nothing that trains.

    Raises:
        IncompatibleModel, RecipeError: see there.
    """
    layers = _layers(recipe.layers, student, teacher)
    if isinstance(recipe, AlignRecipe):
        for index in layers:
            _part(teacher, index, recipe.part)
        reached = [_part(student, index, recipe.part) for index in layers]
    else:
        body = decoder(student)
        reached = [body.embed_tokens, *body.layers[: layers[-1] + 1]]
    if not any(parameter.requires_grad for module in reached for parameter in module.parameters()):
        what = f"{recipe.part} of " if isinstance(recipe, AlignRecipe) else ""
        raise RecipeError(
            f"objective {recipe.kind}: its loss, on {what}layers {layers[0]} to {layers[-1]}, depends on nothing that "
            "train names; name parameters of these layers, or give other layers"
        )


@contextmanager
def watched(model: Any, layers: Sequence[int], part: str, seen: Seen) -> Iterator[None]:
    """Call `seen` whenever one of the layers (or its attention) has run."""
    with ExitStack() as stack:
        for index in layers:

            def hook(_: nn.Module, args: tuple, named: dict[str, Any], output: Any, index: int = index) -> None:
                seen(index, args[0] if args else named["hidden_states"], _first(output))

            handle = _part(model, index, part).register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def _part(model: Any, index: int, part: str) -> nn.Module:
    layer = decoder(model).layers[index]
    if part == "layer":
        return layer
    if not hasattr(layer, "self_attn"):
        raise IncompatibleModel(f"layer {index} ({type(layer).__name__}) has no self_attn; align part=layer instead")
    return layer.self_attn


def _layers(wanted: list[int] | None, student: Any, teacher: Any) -> list[int]:
    count, other = (len(decoder(model).layers) for model in (student, teacher))
    if count != other:
        raise IncompatibleModel(f"the student has {count} layers and the teacher {other}; wanted as many")
    layers = sorted(set(range(count) if wanted is None else wanted))
    if not layers or layers[0] < 0 or layers[-1] >= count:
        raise RecipeError(f"layers {wanted}: wanted some of 0 to {count - 1}")
    return layers


def _surroundings(model: Any, batch: Batch) -> dict[str, Any]:
    """What a layer of this model is called with besides the hidden states."""
    body = decoder(model)
    positions = batch.positions_BL
    like = torch.empty(*positions.shape, 1, device=positions.device, dtype=body.norm.weight.dtype)
    mask = create_causal_mask(
        config=model.config, inputs_embeds=like, attention_mask=None, past_key_values=None, position_ids=positions
    )
    return {
        "position_embeddings": body.rotary_emb(like, position_ids=positions),
        "position_ids": positions,
        "attention_mask": mask,
    }


def _summed(name: str, losses: Sequence[torch.Tensor], batch: Batch) -> Loss:
    total = torch.stack(list(losses)).sum()
    return Loss(total, batch.count, {name: total.detach()})
