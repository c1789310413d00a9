"""Stages in order, each on what the one before left: progressive conversion and align → KL → SFT → DPO are lists.

A finished stage leaves one file of the weights it trained. Every stage, the first after a restart as any other, starts
from the model on disk and those files, so that a run that was cut off ends with the same bytes.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from regear.core.files import read_json, write_json
from regear.models.head import check_head
from regear.models.store import write_shard
from regear.train import layerwise, lora
from regear.train.loop import Hooks, Source, Stage, Trained
from regear.train.objective_recipes import AlignRecipe, DistilRecipe, HiddenRecipe
from regear.train.objectives import objective
from regear.train.optim import check_frozen, select
from regear.train.parallel import World, gathered
from regear.train.recipes import StageRecipe
from regear.train.states import common_layers
from regear.train.teacher import TeacherCache


@dataclass(frozen=True)
class Job:
    """What all stages share.

    Args:
        student: loads the model to train, as it was before the first stage.
        teacher: loads the model to learn from, or None where no stage has one.
        place: where steps and finished stages are kept.
        cached: predictions written beforehand for a stage, or None for a stage that runs the teacher.
    """

    student: Callable[[], Any]
    teacher: Callable[[], Any] | None
    source: Callable[[StageRecipe], Source]
    place: Path
    world: World
    hooks: Callable[[Any], Hooks]
    seed: int
    device: torch.device
    cached: Callable[[StageRecipe], TeacherCache | None] = lambda _: None

    def taught_by(self, recipe: StageRecipe) -> Any:
        """What a stage learns from: nothing, written predictions, or a model that does not change."""
        if self.teacher is None or recipe.objective.teacher == "none":
            return None
        written = self.cached(recipe)
        if written is not None:
            return written
        teacher = self.teacher()
        check_head(teacher)
        return teacher.requires_grad_(False)


def run_stages(job: Job, recipes: Sequence[StageRecipe]) -> list[dict[str, Any]]:
    """Train all stages that are not finished; returns steps, tokens, seconds and trained parameters of each."""
    return [
        read_json(_record(job.place, number)) if _record(job.place, number).exists() else _run(job, recipe, number)
        for number, recipe in enumerate(recipes)
    ]


def check(job: Job, student: Any, teacher: Any, recipes: Sequence[StageRecipe]) -> None:
    """Find what is wrong with any stage before the first one trains: names, adapters, layers, data, heads.

    Raises:
        RecipeError, IncompatibleModel, DataError: what that stage would raise.
    """
    check_head(student)
    if any(recipe.objective.teacher != "none" for recipe in recipes):
        check_head(teacher)
    check_names(student, teacher, recipes)
    for recipe in recipes:
        job.source(recipe)


def check_names(student: Any, teacher: Any, recipes: Sequence[StageRecipe]) -> None:
    """The part of `check` that needs no weights: names, adapters, layers that the loss reaches.

    Raises:
        RecipeError, IncompatibleModel: what a stage would raise.
    """
    for recipe in recipes:
        names = select(student, recipe.train, recipe.freeze)
        check_frozen(student, recipe.freeze)
        if recipe.lora is not None:
            lora.targets(student, names)
        if isinstance(recipe.objective, AlignRecipe | HiddenRecipe):
            layerwise.check(recipe.objective, student, teacher)
        if isinstance(recipe.objective, DistilRecipe) and recipe.objective.hidden:
            common_layers(student, teacher)


def trained_model(job: Job, stages: int) -> Any:
    """The model as the first `stages` stages left it."""
    model = job.student()
    held = model.state_dict()
    for number in range(stages):
        for name, value in load_file(_weights(job.place, number)).items():
            held[name].copy_(value)
    return model


def _run(job: Job, recipe: StageRecipe, number: int) -> dict[str, Any]:
    student = trained_model(job, number)
    teacher = job.taught_by(recipe)
    names = select(student, recipe.train, recipe.freeze)
    if recipe.lora is not None:
        # Adapters start the same on every process and after a stop.
        torch.manual_seed((job.seed * 1_000_003 + number) % (1 << 64))
        lora.inject(student, recipe.lora, names)
    if recipe.gradient_checkpointing:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    count = sum(p.numel() for p in student.parameters() if p.requires_grad)
    check_head(student)
    trained, source = Trained(student, teacher, objective(recipe.objective)), job.source(recipe)
    steps = Stage(
        recipe,
        number,
        trained,
        source,
        job.place / "steps",
        job.world,
        job.hooks(student),
        job.seed,
        job.device,
    )
    result = {"stage": number, "objective": recipe.objective.kind, "parameters": count, **steps.run()}
    skipped = source.state().get("skipped", 0)
    if skipped and job.world.leads:
        print(
            f"regear: warning: stage {number + 1} skipped {skipped} rows of its text, which hold nothing to train on "
            f"within {recipe.sequence} tokens; raise train.sequence or mend them",
            file=sys.stderr,
        )
    weights = gathered(student)
    if recipe.lora is not None:
        weights = lora.merged(weights, recipe.lora)
    if job.world.leads:
        write_shard(_weights(job.place, number), {name: weights[name] for name in names})
        write_json(_record(job.place, number), result)
    job.world.wait()
    return result


def _record(place: Path, number: int) -> Path:
    return place / f"stage-{number:03d}.json"


def _weights(place: Path, number: int) -> Path:
    return place / f"stage-{number:03d}.safetensors"
