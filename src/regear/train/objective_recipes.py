"""The training objectives by name and what each can be told; no torch here, so that they can be checked and listed."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from regear.core.recipe import Recipe, closest
from regear.core.registry import Row, Table

Wanted = Literal["none", "distribution", "model"]


class ObjectiveRecipe(Recipe):
    """Base of all: what it asks of a teacher, if anything.

    `distribution`: a model or a cache of its predictions; `model`: the model itself, run beside the student.
    `pairs`: whether it reads preference pairs, and counts them instead of tokens.
    """

    kind: str
    asks: ClassVar[Wanted] = "none"
    pairs: ClassVar[bool] = False

    @property
    def teacher(self) -> Wanted:
        """What these settings ask of a teacher: `asks`, or nothing where they leave it nothing to say."""
        return self.asks

    def at(self, share: float) -> Self:
        """These settings where the learning rate is this share of its highest."""
        return self


class CeRecipe(ObjectiveRecipe):
    """Cross-entropy on the text."""

    kind: Literal["ce"] = "ce"


class KlRecipe(ObjectiveRecipe):
    """KL(teacher ‖ student): the student covers whatever the teacher may say."""

    asks = "distribution"
    kind: Literal["kl"] = "kl"
    temperature: float = Field(1.0, gt=0)


class ReverseKlRecipe(ObjectiveRecipe):
    """KL(student ‖ teacher): the student says nothing that the teacher would not."""

    asks = "distribution"
    kind: Literal["reverse_kl"] = "reverse_kl"
    temperature: float = Field(1.0, gt=0)


class DistilRecipe(ObjectiveRecipe):
    """`ce` · cross-entropy + `beta` · T² KL(teacher ‖ student) + `reverse` · T² KL(student ‖ teacher), a token.

    `hidden` · the objective `hidden` is added: states after each layer say more of a token than its prediction does.
    It falls with the learning rate, since predictions alone say where training is to end.
    """

    asks = "distribution"
    kind: Literal["distil"] = "distil"
    ce: float = Field(1.0, ge=0)
    beta: float = Field(1.0, ge=0)
    reverse: float = Field(0.0, ge=0)
    hidden: float = Field(0.0, ge=0)
    temperature: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _something(self) -> "DistilRecipe":
        if not self.ce + self.beta + self.reverse:
            only = "; for hidden states alone there is the objective hidden" if self.hidden else ""
            raise ValueError(f"ce, beta and reverse are all 0, which leaves nothing to learn of predictions{only}")
        return self

    @property
    def teacher(self) -> Wanted:
        if self.hidden:
            return "model"
        return self.asks if self.beta or self.reverse else "none"

    def at(self, share: float) -> Self:
        return self.model_copy(update={"hidden": share * self.hidden})


class AlignRecipe(ObjectiveRecipe):
    """Each layer alone, on the teacher's own input: its attention's output, or the whole layer's."""

    asks = "model"
    kind: Literal["align"] = "align"
    part: Literal["attention", "layer"] = "attention"
    layers: list[int] | None = None


class HiddenRecipe(ObjectiveRecipe):
    """The student's own hidden states after each layer."""

    asks = "model"
    kind: Literal["hidden"] = "hidden"
    layers: list[int] | None = None


class DpoRecipe(ObjectiveRecipe):
    """Preference pairs, with the teacher as the reference."""

    asks = "model"
    pairs = True
    kind: Literal["dpo"] = "dpo"
    beta: float = Field(0.1, gt=0)


OBJECTIVES = Table(
    "objective",
    [
        Row("ce", CeRecipe, "regear.train.objectives:cross_entropy", "cross-entropy on the text"),
        Row("kl", KlRecipe, "regear.train.objectives:kl", "KL(teacher ‖ student) of every prediction"),
        Row("reverse_kl", ReverseKlRecipe, "regear.train.objectives:reverse_kl", "KL(student ‖ teacher)"),
        Row("distil", DistilRecipe, "regear.train.objectives:distil", "cross-entropy, KLs, hidden states, weighted"),
        Row("align", AlignRecipe, "regear.train.layerwise:align", "each layer alone on the teacher's inputs, L2"),
        Row("hidden", HiddenRecipe, "regear.train.layerwise:hidden", "hidden states after each layer, L2"),
        Row("dpo", DpoRecipe, "regear.train.preference:dpo", "preference pairs against the teacher"),
    ],
)


def _read(value: Any) -> Any:
    """`kl` is short for `{kind: kl}`."""
    if isinstance(value, str):
        value = {"kind": value}
    if isinstance(value, dict) and value.get("kind") not in OBJECTIVES.rows:
        kind = value.get("kind")
        guess = closest(str(kind), OBJECTIVES.rows)
        raise ValueError(f"unknown objective {kind!r}{guess}; known: {', '.join(OBJECTIVES.rows)}")
    return value


# The type of a stage recipe's `objective`.
Objective = Annotated[
    CeRecipe | KlRecipe | ReverseKlRecipe | DistilRecipe | AlignRecipe | HiddenRecipe | DpoRecipe,
    Field(discriminator="kind"),
    BeforeValidator(_read),
]
