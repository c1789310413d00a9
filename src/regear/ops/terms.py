"""What a token's loss may be, on the logits of a few tokens: values, and gradients in the logits in closed form.

With q the student's distribution, p the teacher's, both of logits divided by a temperature T, and z the student's:

    ce = −log q[target]                          d/dz = q − [target]         T = 1
    kl = T² Σ p (log p − log q)                  d/dz = T (q − p)
    reverse_kl = T² k, k = Σ q (log q − log p)   d/dz = T q (log q − log p − k)

T² keeps the gradient's size as T grows (Hinton et al., arXiv 1503.02531).

Shape letters: N tokens, C tokens of a chunk, V vocabulary, D hidden width, K tokens kept of a teacher's distribution.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch.nn.functional import log_softmax

from regear.ops import linear

# A teacher's tail of less mass than e to this counts as this much, so that the reverse divergence stays finite.
TAIL_FLOOR = -100.0


class Term(NamedTuple):
    """One summand of a loss: `ce`, `kl` (teacher ‖ student) or `reverse_kl` (student ‖ teacher)."""

    name: str
    coefficient: float = 1.0
    temperature: float = 1.0


def factor(head_VD: torch.Tensor, hidden_ND: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The head as `product` takes it: bfloat16 beside bfloat16 states on a GPU, else `dtype`."""
    return head_VD.to(torch.bfloat16 if hidden_ND.is_cuda and hidden_ND.dtype == torch.bfloat16 else dtype)


def product(left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """left @ right in `dtype`; two bfloat16 tables on a GPU are multiplied as they are, and added up in `dtype`."""
    if left.is_cuda and left.dtype == right.dtype == torch.bfloat16:
        return torch.mm(left, right, out_dtype=dtype)
    return linear.product(left.to(dtype), right.to(dtype))


class Softened:
    """A chunk's distribution at one temperature: log q and q, [C, V]."""

    def __init__(self, logits_CV: torch.Tensor, temperature: float) -> None:
        self.temperature = temperature
        self.logs = log_softmax(logits_CV if temperature == 1 else logits_CV / temperature, -1)

    @cached_property
    def probabilities(self) -> torch.Tensor:
        """Made on first use: the value of a cross-entropy alone needs none."""
        return self.logs.exp()


@dataclass(frozen=True)
class DenseTeacher:
    """A teacher by its last hidden states [N, D'] and its head [V, D'], both constants."""

    hidden_ND: torch.Tensor
    head_VD: torch.Tensor

    def rows(self, kept: torch.Tensor | slice) -> "DenseTeacher":
        """The teacher of some of the tokens."""
        return DenseTeacher(self.hidden_ND[kept], self.head_VD)

    def check(self, tokens: int, vocabulary: int, terms: Sequence[Term]) -> None:
        """Raises ValueError for another number of tokens or another vocabulary."""
        found = (len(self.hidden_ND), len(self.head_VD))
        if found != (tokens, vocabulary):
            raise ValueError(f"the teacher has (tokens, vocabulary) {found}; the student {(tokens, vocabulary)}")

    def cast(self, dtype: torch.dtype) -> "DenseTeacher":
        """The teacher with its head, which every chunk reads, in the precision of the loss's products."""
        return DenseTeacher(self.hidden_ND.detach(), factor(self.head_VD.detach(), self.hidden_ND, dtype))

    def logits(self) -> torch.Tensor:
        """[C, V]."""
        return product(self.hidden_ND, self.head_VD.T, torch.promote_types(self.head_VD.dtype, torch.float32))

    def logs(self, logits_CV: torch.Tensor, student: Softened) -> torch.Tensor:
        """log p at the student's temperature, [C, V]."""
        return Softened(logits_CV, student.temperature).logs


@dataclass(frozen=True)
class TopTeacher:
    """A teacher by the log-probabilities [N, K] of some tokens [N, K] and the log of all others' mass together [N].

    The others are one outcome: divergences run over K + 1 outcomes. That equals a whole distribution whose tail has the
    shape of the student's own, with the same gradients. Temperature 1 only.
    """

    logits_NK: torch.Tensor
    tokens_NK: torch.Tensor
    log_tail_N: torch.Tensor

    def rows(self, kept: torch.Tensor | slice) -> "TopTeacher":
        """The teacher of some of the tokens."""
        return TopTeacher(self.logits_NK[kept], self.tokens_NK[kept], self.log_tail_N[kept])

    def check(self, tokens: int, vocabulary: int, terms: Sequence[Term]) -> None:
        """Raises ValueError for another number of tokens, and for temperatures that what is kept cannot be brought to.

        `vocabulary` is not known of kept tokens; the cache compares tokenizers.
        """
        if len(self.logits_NK) != tokens:
            raise ValueError(f"the teacher has {len(self.logits_NK)} tokens; the student {tokens}")
        for term in terms:
            if term.name != "ce" and term.temperature != 1:
                raise ValueError(
                    f"kept log-probabilities are of temperature 1; found {term.name} at {term.temperature}"
                )

    def cast(self, dtype: torch.dtype) -> "TopTeacher":
        """The teacher in the loss's precision."""
        return TopTeacher(self.logits_NK.detach().to(dtype), self.tokens_NK.long(), self.log_tail_N.detach().to(dtype))

    def logits(self) -> torch.Tensor:
        """The kept log-probabilities, [C, K]."""
        return self.logits_NK

    def logs(self, logits_CK: torch.Tensor, student: Softened) -> torch.Tensor:
        """log p with the tail in the shape of the student's, [C, V]."""
        rest = student.probabilities.scatter(1, self.tokens_NK, 0.0).sum(-1)
        rest = rest.clamp_min(torch.finfo(rest.dtype).tiny).log()
        shift = self.log_tail_N.clamp_min(TAIL_FLOOR) - rest
        return (student.logs + shift.unsqueeze(1)).scatter_(1, self.tokens_NK, logits_CK)


Teacher = DenseTeacher | TopTeacher


def chunk_losses(
    logits_CV: torch.Tensor,
    targets_C: torch.Tensor | None,
    teacher: Teacher | None,
    terms: Sequence[Term],
    gradient_CV: torch.Tensor | None,
) -> torch.Tensor:
    """Each term's loss of each token, [terms, C]; the gradient of Σ c · term is added to `gradient_CV` where given."""
    theirs = teacher.logits() if teacher is not None and any(term.name != "ce" for term in terms) else None
    losses = logits_CV.new_empty(len(terms), len(logits_CV))
    for temperature in dict.fromkeys(term.temperature for term in terms):
        student = Softened(logits_CV, temperature)
        here = [(i, term) for i, term in enumerate(terms) if term.temperature == temperature]
        logs = None
        if teacher is not None and theirs is not None and any(term.name != "ce" for _, term in here):
            logs = teacher.logs(theirs, student)
        for i, term in here:
            losses[i] = _LOSSES[term.name](student, targets_C if term.name == "ce" else logs, gradient_CV, term)
    return losses


def _dot(left_CV: torch.Tensor, right_CV: torch.Tensor) -> torch.Tensor:
    """Σ_v left · right, [C], without a table of products."""
    return torch.bmm(left_CV.unsqueeze(1), right_CV.unsqueeze(2)).flatten()


def _ce(student: Softened, targets_C: torch.Tensor, gradient_CV: torch.Tensor | None, term: Term) -> torch.Tensor:
    targets = targets_C.unsqueeze(1)
    if gradient_CV is not None:
        gradient_CV.add_(student.probabilities, alpha=term.coefficient)
        gradient_CV.scatter_add_(1, targets, gradient_CV.new_full(targets.shape, -term.coefficient))
    return -student.logs.gather(1, targets).squeeze(1)


def _kl(student: Softened, teacher_CV: torch.Tensor, gradient_CV: torch.Tensor | None, term: Term) -> torch.Tensor:
    probabilities = teacher_CV.exp()
    if gradient_CV is not None:
        scale = term.coefficient * term.temperature
        gradient_CV.add_(student.probabilities, alpha=scale).sub_(probabilities, alpha=scale)
    return _dot(probabilities, teacher_CV - student.logs) * term.temperature**2


def _reverse_kl(
    student: Softened, teacher_CV: torch.Tensor, gradient_CV: torch.Tensor | None, term: Term
) -> torch.Tensor:
    gap = student.logs - teacher_CV
    loss = _dot(student.probabilities, gap)
    if gradient_CV is not None:
        gap.sub_(loss.unsqueeze(1))
        gradient_CV.addcmul_(student.probabilities, gap, value=term.coefficient * term.temperature)
    return loss * term.temperature**2


_LOSSES: dict[str, Callable[..., torch.Tensor]] = {"ce": _ce, "kl": _kl, "reverse_kl": _reverse_kl}
