"""Objectives on hidden states: each layer alone on the teacher's inputs, or the student's own states.

The loss of a token is Σ_layers of e = mean_d (s − t)² / mean_d t², or of log(1 + e) on the student's own way. Each
token is divided by its own size: the first token of a text can be ten thousand times larger than the others, and a
common mean square would be nothing but that token. A token's share is then also the same in whatever micro-batch it is.

Source: MOHAWK's second stage (arXiv 2408.10189) and RADLADS' first (arXiv 2505.03005), with this normalisation.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.masking_utils import create_causal_mask

from regear.core.errors import RecipeError
from regear.models.head import decoder
from regear.train.batch import Batch
from regear.train.objective_recipes import AlignRecipe, HiddenRecipe
from regear.train.objectives import Loss
from regear.train.states import common_layers, compared, first_of, part_of, relative_error, run, watched


def align(recipe: AlignRecipe, student: Any, teacher: Any, batch: Batch) -> Loss:
    """Each student layer's attention (or the whole layer) on the teacher's own input of it, against its output.

    The student's part runs as the teacher reaches that layer, so no list of the teacher's states is kept.

    Raises:
        IncompatibleModel: student and teacher have other numbers of layers or other attention.
    """
    wanted = common_layers(student, teacher, recipe.layers)
    surroundings = _surroundings(student, batch)
    losses = []

    def compare(index: int, before: torch.Tensor, after: torch.Tensor) -> None:
        with torch.enable_grad():
            module = part_of(student, index, recipe.part)
            found = first_of(module(before, **surroundings))
            losses.append(relative_error(batch.counted(found), batch.counted(after)).sum())

    with watched(teacher, wanted, recipe.part, compare), torch.no_grad():
        run(teacher, batch)
    return _summed("align", losses, batch)


def hidden(recipe: HiddenRecipe, student: Any, teacher: Any, batch: Batch) -> Loss:
    """The student's hidden states after each layer, on its own way, against the teacher's."""
    *_, errors = compared(student, teacher, batch, common_layers(student, teacher, recipe.layers))
    return _summed("hidden", [errors], batch)


def check(recipe: AlignRecipe | HiddenRecipe, student: Any, teacher: Any) -> None:
    """Raise what the objective would raise of these models' layers, and where its loss reaches nothing that trains.

    Raises:
        IncompatibleModel, RecipeError: see there.
    """
    layers = common_layers(student, teacher, recipe.layers)
    if isinstance(recipe, AlignRecipe):
        for index in layers:
            part_of(teacher, index, recipe.part)
        reached = [part_of(student, index, recipe.part) for index in layers]
    else:
        body = decoder(student)
        reached = [body.embed_tokens, *body.layers[: layers[-1] + 1]]
    if not any(parameter.requires_grad for module in reached for parameter in module.parameters()):
        what = f"{recipe.part} of " if isinstance(recipe, AlignRecipe) else ""
        raise RecipeError(
            f"objective {recipe.kind}: its loss, on {what}layers {layers[0]} to {layers[-1]}, depends on nothing that "
            "train names; name parameters of these layers, or give other layers"
        )


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
