"""The recipe of `regear heal`; no torch here."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from regear.core.recipe import Recipe
from regear.tasks.recipes import TextRecipe
from regear.train.recipes import DataRecipe, StageRecipe, TeacherRecipe

DEFAULT_TOKENS = 250_000


class HealRecipe(Recipe):
    """What to train (`train`, or several `stages` that each start from `train`'s values), on what, measured on what.

    `evaluation` is text like the training text that training never reads; `elsewhere` is of a kind it never reads.
    A kill loses at most `save_minutes` of training (0: saves every step); they do not change the result.
    """

    seed: int = Field(0, ge=0)
    train: StageRecipe = Field(default_factory=lambda: StageRecipe.model_validate({}))
    stages: list[StageRecipe] = Field(default_factory=list)
    teacher: TeacherRecipe = Field(default_factory=lambda: TeacherRecipe.model_validate({}))
    data: DataRecipe = Field(default_factory=lambda: DataRecipe.model_validate({}))
    evaluation: TextRecipe = Field(default_factory=lambda: TextRecipe.model_validate({"tokens": 32768}))
    elsewhere: TextRecipe = Field(default_factory=lambda: TextRecipe.model_validate({"tokens": 16384}))
    held_out_windows: int = Field(8, ge=0)
    held_out_every: int = Field(0, ge=0)
    save_minutes: float = Field(5.0, ge=0)
    dtype: Literal["source", "bfloat16", "float32"] = "source"

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, values: Any) -> Any:
        """Each stage starts from `train`; a length given nowhere is the default."""
        if not isinstance(values, dict):
            return values
        train = values.get("train") or {}
        stages = values.get("stages") or []
        if not isinstance(train, dict) or not isinstance(stages, list) or not all(isinstance(x, dict) for x in stages):
            return values
        if not stages and not {"tokens", "minutes"} & set(train):
            return {**values, "train": {**train, "tokens": DEFAULT_TOKENS}}
        return {**values, "stages": [{**train, **stage} for stage in stages]}

    @model_validator(mode="after")
    def _long_enough(self) -> "HealRecipe":
        for stage in self.parts():
            if stage.tokens is None and stage.minutes is None:
                raise ValueError("a stage needs tokens or minutes (or both: whichever ends first)")
            self.teacher.check(stage)
        return self

    def named(self) -> dict[str, Any]:
        """What a checkpoint records, all that its bytes depend on: file names without their places."""
        found = self.model_dump(mode="json", exclude={"save_minutes"})
        for use in ("evaluation", "elsewhere"):
            found[use] = getattr(self, use).named()
        del found["teacher"]["place"]
        found["data"]["text"] = [Path(name).name for name in self.data.text]
        return found

    def parts(self) -> list[StageRecipe]:
        """The stages in order; without any, `train` is the only one."""
        return self.stages or [self.train]
