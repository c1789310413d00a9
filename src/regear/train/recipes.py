"""Recipes of training; no torch here, so that they can be checked and listed at once."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from regear.core.errors import RecipeError
from regear.core.recipe import Recipe
from regear.train.objective_recipes import KlRecipe, Objective

FROZEN = ("*.kv_a_layernorm.*",)  # what no stage trains unless it says otherwise
Share = Annotated[float, Field(ge=0, lt=1)]


class LoraRecipe(Recipe):
    """Low-rank adapters instead of whole weights; merged into the weights at the end of the stage."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)


class StageRecipe(Recipe):
    """One stage of training: what trains, on which loss, for how long, at what rate.

    `train` and `freeze` are name patterns (`*` matches anything); what `freeze` names never trains. `batch` counts rows
    of `sequence` tokens in one step over all processes, `micro_batch` those that one process holds at a time.
    `lr` is a share of each parameter's root mean square where `relative`; a step decays every parameter by its share
    `lr` · `weight_decay` all the same. `precision` is that of products while training; weights, gradients and moments
    are float32 in any case.
    """

    objective: Objective = Field(default_factory=lambda: KlRecipe.model_validate({}))
    tokens: int | None = Field(None, ge=1)
    minutes: float | None = Field(None, gt=0)
    lr: float = Field(1e-3, gt=0)
    relative: bool = True
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup: int = Field(10, ge=0)
    floor: float = Field(0.0, ge=0, le=1)
    decay: float = Field(0.2, gt=0, le=1)
    batch: int = Field(4, ge=1)
    micro_batch: int = Field(4, ge=1)
    sequence: int = Field(256, ge=2)
    train: list[str] = Field(default_factory=lambda: ["*.self_attn.*"])
    freeze: list[str] = Field(default_factory=lambda: list(FROZEN))
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[Share, Share] = (0.9, 0.95)
    clip: float = Field(1.0, gt=0)
    lora: LoraRecipe | None = None
    gradient_checkpointing: bool = False
    precision: Literal["auto", "bfloat16", "float32"] = "auto"

    @field_validator("train", "freeze", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits(self) -> "StageRecipe":
        if self.batch % self.micro_batch and self.batch > self.micro_batch:
            raise ValueError(f"batch {self.batch} is not a multiple of micro_batch {self.micro_batch}")
        if self.objective.pairs and self.batch % 2:
            raise ValueError(f"pairs take two rows each: batch must be even, found {self.batch}")
        if self.objective.pairs and self.micro_batch % 2:
            raise ValueError(f"pairs take two rows each: micro_batch must be even, found {self.micro_batch}")
        if not self.train:
            raise ValueError("train names nothing; give name patterns, such as '*.self_attn.*'")
        return self

    def half(self, device: str) -> bool:
        """Whether products are in bfloat16: on a GPU unless told otherwise, on a CPU where told to."""
        return self.precision == "bfloat16" or (self.precision == "auto" and device != "cpu")

    def steps(self) -> int | None:
        """Steps that `tokens` allow; None where only a time is given."""
        return None if self.tokens is None else max(1, self.tokens // (self.batch * self.sequence))

    def rows(self, processes: int) -> int:
        """Rows of one step that each process reads.

        Raises:
            RecipeError: they cannot be shared evenly.
        """
        unit = processes * (2 if self.objective.pairs else 1)
        if self.batch % unit:
            raise RecipeError(
                f"train.batch: {self.batch} rows cannot be shared by {processes} processes; wanted a multiple of {unit}"
            )
        return self.batch // processes


class DataRecipe(Recipe):
    """Training data: files or `builtin`; how examples are shuffled and laid into rows."""

    text: list[str] = Field(default_factory=lambda: ["builtin"])
    shuffle: int = Field(4096, ge=1)
    packing: bool = True
    end_of_text: bool = True

    @field_validator("text", mode="before")
    @classmethod
    def _one_file(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class TeacherRecipe(Recipe):
    """How the teacher is asked: beside the student, or once beforehand for its `cache` likeliest tokens a prediction.

    Stages that need more of the teacher than predictions (`align`, `hidden`, `dpo`, `distil` with `hidden`) run it all
    the same. `place` is a folder for the predictions instead of the cache's own; they are kept, and serve other
    students.
    """

    cache: int | None = Field(None, ge=1)
    dtype: Literal["float16", "float32"] = "float16"
    place: str | None = None

    def serves(self, stage: StageRecipe) -> bool:
        """Whether a stage reads predictions that were written beforehand."""
        return self.cache is not None and stage.objective.teacher == "distribution"

    def check(self, stage: StageRecipe) -> None:
        """Raises ValueError where a stage cannot be taught from what was written beforehand."""
        if not self.serves(stage):
            return
        if stage.tokens is None:
            raise ValueError(
                "teacher.cache needs to know how much to write: give train.tokens, with minutes or without"
            )
        if getattr(stage.objective, "temperature", 1.0) != 1.0:
            raise ValueError(
                "teacher.cache keeps predictions of temperature 1; leave the temperature, or the cache, out"
            )
