"""Training objectives on predictions. Each is a function (recipe, student, teacher, batch) → `Loss`.

Totals are sums over the predictions that count, so that micro-batches and processes add up; whoever steps divides by
the count of all of them. (A mean over padded positions, or a sum divided by rows, would make a recipe's weights mean
something else for every length.)
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from regear.core.errors import RecipeError
from regear.models.head import head
from regear.ops.fused import fused_loss
from regear.ops.terms import DenseTeacher, Teacher, Term, TopTeacher
from regear.train.batch import Batch
from regear.train.objective_recipes import (
    OBJECTIVES,
    CeRecipe,
    DistilRecipe,
    KlRecipe,
    ObjectiveRecipe,
    ReverseKlRecipe,
)
from regear.train.states import common_layers, compared, dense_teacher, predicting_states


@dataclass(frozen=True)
class Loss:
    """`total`, to be differentiated, is a sum over `count` units; `logged` holds detached sums over the same units."""

    total: torch.Tensor
    count: int
    logged: dict[str, torch.Tensor]


@runtime_checkable
class CachedTeacher(Protocol):
    """A teacher whose predictions were written down before."""

    def top(self, batch: Batch) -> TopTeacher:
        """The distributions of the predictions of `batch` that count, row after row."""
        ...


class Objective(Protocol):
    """(student, teacher or None, batch, the learning rate as a share of its highest) → loss."""

    def __call__(self, student: Any, teacher: Any, batch: Batch, share: float = 1.0) -> Loss: ...


def objective(recipe: ObjectiveRecipe) -> Objective:
    """The objective of a recipe.

    The models are Hugging Face causal language models that `models.head.check_head` accepts; a `CachedTeacher` will do
    where the recipe's `teacher` is `distribution`. The batches of `dpo` hold chosen and rejected answers in turn.

    Raises:
        RecipeError: when called with no teacher, or a cached one, where it needs one.
    """
    compute = OBJECTIVES[recipe.kind].load()

    def call(student: Any, teacher: Any, batch: Batch, share: float = 1.0) -> Loss:
        cached = isinstance(teacher, CachedTeacher)
        if recipe.teacher != "none" and teacher is None:
            raise RecipeError(f"objective {recipe.kind} found no teacher; name one with --teacher")
        if recipe.teacher == "model" and cached:
            raise RecipeError(f"objective {recipe.kind} runs the teacher itself; found cached predictions")
        return compute(recipe.at(share), student, teacher, batch)

    return call


def cross_entropy(recipe: CeRecipe, student: Any, teacher: Any, batch: Batch) -> Loss:
    """−log q[next token], a token."""
    return _token_loss([Term("ce")], student, None, batch)


def kl(recipe: KlRecipe, student: Any, teacher: Any, batch: Batch) -> Loss:
    """T² KL(teacher ‖ student), a token."""
    return _token_loss([Term("kl", 1.0, recipe.temperature)], student, teacher, batch)


def reverse_kl(recipe: ReverseKlRecipe, student: Any, teacher: Any, batch: Batch) -> Loss:
    """T² KL(student ‖ teacher), a token (M1, arXiv 2504.10449)."""
    return _token_loss([Term("reverse_kl", 1.0, recipe.temperature)], student, teacher, batch)


def distil(recipe: DistilRecipe, student: Any, teacher: Any, batch: Batch) -> Loss:
    """Cross-entropy and both divergences, each a mean a token, weighted (MambaInLlama, arXiv 2408.15237, by token).

    With `hidden` the student's states after each layer are drawn to the teacher's as well.
    """
    terms = [
        Term("ce", recipe.ce),
        Term("kl", recipe.beta, recipe.temperature),
        Term("reverse_kl", recipe.reverse, recipe.temperature),
    ]
    terms = [term for term in terms if term.coefficient]
    if not recipe.hidden:
        return _token_loss(terms, student, teacher, batch)
    ours_ND, theirs_ND, errors = compared(student, teacher, batch, common_layers(student, teacher))
    loss = _loss(terms, student, batch, ours_ND, DenseTeacher(theirs_ND, head(teacher)))
    return Loss(loss.total + recipe.hidden * errors, loss.count, {**loss.logged, "hidden": errors.detach()})


def _token_loss(terms: list[Term], student: Any, teacher: Any, batch: Batch) -> Loss:
    target: Teacher | None = None
    if any(term.name != "ce" for term in terms):
        target = teacher.top(batch) if isinstance(teacher, CachedTeacher) else dense_teacher(teacher, batch)
    return _loss(terms, student, batch, predicting_states(student, batch), target)


def _loss(terms: list[Term], student: Any, batch: Batch, hidden_ND: torch.Tensor, target: Teacher | None) -> Loss:
    total, logged = fused_loss(hidden_ND, head(student), terms=terms, targets_N=batch.targets_N, teacher=target)
    return Loss(total, batch.count, logged)
