"""A causal model's last hidden states, from which the losses make logits a few at a time."""

from typing import Any

import torch

from regear.models.head import decoder, head
from regear.ops.terms import DenseTeacher
from regear.train.batch import Batch


def run(model: Any, batch: Batch) -> torch.Tensor:
    """Last hidden states after the final norm, [B, L, D].

    Positions that restart make transformers mask other documents of the row. A row without them is given none, so that
    the plain causal kernel runs.
    """
    positions = None if batch.plain else batch.positions_BL
    return decoder(model)(input_ids=batch.tokens_BL, position_ids=positions, use_cache=False).last_hidden_state


def predicting_states(model: Any, batch: Batch) -> torch.Tensor:
    """The last hidden states whose predictions count, [N, D]."""
    return batch.counted(run(model, batch))


@torch.no_grad()
def dense_teacher(model: Any, batch: Batch) -> DenseTeacher:
    """A model's predictions that count, as constants."""
    return DenseTeacher(predicting_states(model, batch), head(model))
