"""`regear run`: a recipe of steps, each a verb; what one makes the next one takes.

    steps:
      - convert: {model: smollm2-135m-instruct, output: mla, changes: [convert.kv_ratio=1/3]}
      - heal: {output: healed}
      - audit: {text: [builtin], by: [kind], gates: gates.yaml}

A model that a step does not name is the output of the step before; a teacher, or the other side of an audit, the model
that the recipe began with. Every step resumes as its verb does; a gate that does not pass ends the run.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from regear.auditing import gates as gating
from regear.auditing.audit import audit
from regear.auditing.places import check_places
from regear.conversion.convert import convert
from regear.core.errors import RecipeError
from regear.core.recipe import Recipe, apply_changes, closest, read_yaml, validate
from regear.core.run import Progress, silent
from regear.healing.heal import heal
from regear.measure.evaluate import evaluate


class ConvertStep(Recipe):
    """The arguments of `regear convert`."""

    model: str | None = None
    output: str
    to: str | None = None
    config: str | None = None
    changes: list[str] = Field(default_factory=list)
    tasks: list[str] = Field(default_factory=list)


class HealStep(Recipe):
    """The arguments of `regear heal`."""

    model: str | None = None
    teacher: str | None = None
    output: str
    text: list[str] = Field(default_factory=list)
    config: str | None = None
    changes: list[str] = Field(default_factory=list)
    tasks: list[str] = Field(default_factory=list)


class EvalStep(Recipe):
    """The arguments of `regear eval`."""

    model: str | None = None
    against: str | None = None
    text: list[str] = Field(default_factory=lambda: ["builtin"])
    tasks: list[str] = Field(default_factory=list)
    windows: int | None = None
    items: int | None = None
    report: str | None = None


class AuditStep(Recipe):
    """The arguments of `regear audit`; `card`: the model's card carries what was found."""

    before: str | None = None
    after: str | None = None
    text: list[str] = Field(default_factory=list)
    tasks: list[str] = Field(default_factory=list)
    metric: list[str] = Field(default_factory=list)
    by: list[str] = Field(default_factory=list)
    depth: int = Field(1, ge=1, le=3)
    margin: dict[str, str | float] = Field(default_factory=dict)
    windows: int | None = None
    items: int | None = None
    gates: str | None = None
    ledger: str | None = None
    report: str | None = None
    card: bool = True


class Step(Recipe):
    """One verb and its arguments."""

    convert: ConvertStep | None = None
    heal: HealStep | None = None
    eval: EvalStep | None = None
    audit: AuditStep | None = None

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        for name in value if isinstance(value, dict) else ():
            if name not in cls.model_fields:
                known = ", ".join(cls.model_fields)
                raise ValueError(f"found step {name!r}{closest(str(name), cls.model_fields)}; wanted one of {known}")
        return value

    @model_validator(mode="after")
    def _one(self) -> "Step":
        named = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(named) != 1:
            known = ", ".join(type(self).model_fields)
            raise ValueError(f"found {len(named)} verbs in one step; wanted one of {known}")
        return self

    @property
    def verb(self) -> str:
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)


class ChainRecipe(Recipe):
    """Steps in order."""

    steps: list[Step] = Field(min_length=1)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _begins(self) -> "ChainRecipe":
        first = self.steps[0]
        if getattr(first, first.verb).model_dump().get("model", "") is None:
            raise ValueError(f"steps.0.{first.verb}.model: the first step has nothing before it; name a model")
        return self


def run(
    recipe: str | Path,
    *changes: str,
    device: str = "auto",
    progress: Progress = silent,
    announce: Callable[[str, dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Run every step of a recipe file, in order.

    Args:
        recipe: a YAML file with `steps:`.
        changes: `key=value` words over the recipe.
        device: `auto` is the GPU where there is one.
        progress: told a stage, the step done, and how many there are.
        announce: told every verb and its result as soon as it is done.

    Returns `steps` (each `{verb: its JSON object}`) and `gate`, the last audit's.

    Raises:
        RecipeError: the recipe is wrong; before any step begins.
    """
    values = read_yaml(Path(recipe))
    apply_changes(values, changes)
    chain = validate(ChainRecipe, values)
    _check_audits(chain)
    here = _Chain(chain.seed, device, progress)
    done: list[dict[str, Any]] = []
    gate = "none"
    for step in chain.steps:
        result = getattr(here, step.verb)(getattr(step, step.verb))
        done.append({step.verb: result})
        if announce is not None:
            announce(step.verb, result)
        if step.verb == "audit" and (gate := result["gate"]) in ("fail", "undetermined"):
            break
    return {"steps": done, "gate": gate}


def _check_audits(chain: ChainRecipe) -> None:
    """What an audit reads and writes besides models, so that hours of conversion do not end in a mistyped path."""
    for step in chain.steps:
        if step.audit is not None:
            check_places(ledger=step.audit.ledger, report=step.audit.report)
            if step.audit.gates is not None:
                gating.load(step.audit.gates)


class _Chain:
    """What the steps share: the model the recipe began with, and the last one made."""

    def __init__(self, seed: int, device: str, progress: Progress) -> None:
        self.seed, self.device, self.progress = seed, device, progress
        self.first: str | None = None
        self.latest: str | None = None

    def _model(self, named: str | None) -> str:
        model = named or self.latest
        if model is None:
            raise RecipeError("a step names no model and none was made before it; name one")
        self.first = self.first or model
        return model

    def convert(self, step: ConvertStep) -> dict[str, Any]:
        model = self._model(step.model)
        result = convert(
            model,
            step.output,
            *step.changes,
            to=step.to,
            config=step.config,
            tasks=step.tasks,
            seed=self.seed,
            device=self.device,
            progress=self.progress,
        )
        self.latest = step.output
        return result

    def heal(self, step: HealStep) -> dict[str, Any]:
        model = self._model(step.model)
        result = heal(
            model,
            step.teacher or self.first or model,
            step.output,
            *step.changes,
            text=step.text,
            config=step.config,
            tasks=step.tasks,
            seed=self.seed,
            device=self.device,
            progress=self.progress,
        )
        self.latest = step.output
        return result

    def eval(self, step: EvalStep) -> dict[str, Any]:
        named = step.model_dump(exclude={"model", "against", "report"})
        report = Path(step.report) if step.report else None
        model = self._model(step.model)
        return evaluate(
            model, against=step.against or self.first, **named, report=report, seed=self.seed, device=self.device
        )

    def audit(self, step: AuditStep) -> dict[str, Any]:
        after = self._model(step.after)
        named = step.model_dump(exclude={"before", "after", "text"}) | {"text": step.text or ["builtin"]}
        return audit(
            step.before or self.first or after,
            after,
            **named,
            seed=self.seed,
            device=self.device,
            progress=self.progress,
        )
