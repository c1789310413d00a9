"""Token losses and divergences between two models' logits, in float32, a few positions at a time."""

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

CHUNK = 128


def token_nll(logits_TV: torch.Tensor, targets_T: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each target in nats, [T]."""
    return cross_entropy(logits_TV.float(), targets_T, reduction="none")


def token_kl(teacher_TV: torch.Tensor, student_TV: torch.Tensor) -> torch.Tensor:
    """KL(teacher ‖ student) at each position in nats, [T]; chunked, so no second [T, V] table is held."""
    parts = []
    for teacher, student in zip(teacher_TV.split(CHUNK), student_TV.split(CHUNK), strict=True):
        p, q = log_softmax(teacher.float(), -1), log_softmax(student.float(), -1)
        parts.append(kl_div(q, p, log_target=True, reduction="none").sum(-1))
    return torch.cat(parts)
