"""Direct preference optimisation (arXiv 2305.18290, eq. 7), with the teacher as the reference policy.

loss = −log σ(β [(log π(chosen) − log ρ(chosen)) − (log π(rejected) − log ρ(rejected))]), a pair; π the student, ρ the
teacher, each the sum over an answer's tokens.
"""

from typing import Any

import torch
from torch.nn.functional import logsigmoid

from regear.core.errors import DataError
from regear.models.head import head
from regear.ops.fused import token_logprobs
from regear.train.batch import Batch
from regear.train.objective_recipes import DpoRecipe
from regear.train.objectives import Loss
from regear.train.states import predicting_states


def dpo(recipe: DpoRecipe, student: Any, teacher: Any, batch: Batch) -> Loss:
    """Rows 2i and 2i + 1 are the chosen and the rejected answer of pair i; the count is of pairs.

    Raises:
        DataError: an odd number of rows, or a row where nothing counts.
    """
    rows = len(batch.tokens_BL)
    if rows % 2 or batch.answered < rows:
        raise DataError(f"found {rows} rows, {batch.answered} with an answer; wanted chosen and rejected in turn")
    with torch.no_grad():
        reference = answer_logprobs(teacher, batch)
    chosen, rejected = (answer_logprobs(student, batch) - reference).view(-1, 2).unbind(1)
    margins = recipe.beta * (chosen - rejected)
    total = -logsigmoid(margins).sum()
    logged = {"dpo": total, "accuracy": (margins > 0).sum(), "margin": margins.sum()}
    return Loss(total, len(margins), {name: value.detach() for name, value in logged.items()})


def answer_logprobs(model: Any, batch: Batch) -> torch.Tensor:
    """The log-probability of what counts in each row, [B], in nats."""
    logs = token_logprobs(predicting_states(model, batch), head(model), batch.targets_N)
    return logs.new_zeros(len(batch.tokens_BL)).index_add(0, batch.rows_N, logs)
