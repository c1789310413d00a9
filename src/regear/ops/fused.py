"""Language-model losses straight from last hidden states: no table of all tokens' logits is ever held.

A chunk of tokens at a time, the logits are made, the losses of `ops.terms` taken, and their gradients folded into those
of the hidden states and the head at once. All of it in float32 (float64 stays); on a GPU
bfloat16 states are multiplied as they are, and added up in float32.

Shape letters: N tokens, V vocabulary, D hidden width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from regear.ops.terms import Teacher, Term, chunk_losses, factor, product

# Logits held at a time. On a CPU 24 MiB of them: what is larger, glibc takes from the system anew every time, and the
# page faults cost as much as the products.
CPU_LOGITS, DEVICE_LOGITS = 6 << 20, 64 << 20


def fused_loss(
    hidden_ND: torch.Tensor,
    head_VD: torch.Tensor,
    weights_N: torch.Tensor | None = None,
    *,
    terms: Sequence[Term | tuple[str, float, float]],
    targets_N: torch.Tensor | None = None,
    teacher: Teacher | None = None,
    chunk: int | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Σ_n w_n Σ_terms c · term_n, and each term's detached Σ_n w_n term_n without its coefficient, in nats.

    Differentiable in the hidden states and, where it asks for a gradient, in the head. Tokens of weight 0 cost
    nothing, and whatever they hold is never read. The caller divides by the number of tokens that counted.

    Args:
        weights_N: one constant weight a token, 0 to leave it out; None is 1 for all, and asks nothing of the device.
        terms: at least one; `ce` needs `targets_N` and temperature 1, the others `teacher`.
        chunk: tokens whose logits are held at a time; by default as many as the device takes well.

    Raises:
        ValueError: an unknown term or one given twice, a term without what it needs, or a teacher that does not fit.
    """
    wanted = [Term(*term) for term in terms]
    _check(wanted, weights_N, targets_N, teacher)
    if teacher is not None:
        teacher.check(len(hidden_ND), len(head_VD), wanted)
    if weights_N is not None and not (kept := weights_N != 0).all():
        hidden_ND, weights_N = hidden_ND[kept], weights_N[kept]
        targets_N = None if targets_N is None else targets_N[kept]
        teacher = None if teacher is None else teacher.rows(kept)
    total, sums = _Fused.apply(
        hidden_ND, head_VD, weights_N, targets_N, teacher, wanted, chunk, torch.is_grad_enabled()
    )
    return total, {term.name: value for term, value in zip(wanted, sums, strict=True)}


def token_logprobs(
    hidden_ND: torch.Tensor, head_VD: torch.Tensor, targets_N: torch.Tensor, chunk: int | None = None
) -> torch.Tensor:
    """log q[target] of each token in nats, [N]; the logits are made again in the backward pass, a chunk at a time."""
    return _TokenLogprobs.apply(hidden_ND, head_VD, targets_N, chunk)


def chunk_tokens(head_VD: torch.Tensor) -> int:
    """How many tokens' logits are held at a time."""
    return max(1, (CPU_LOGITS if head_VD.device.type == "cpu" else DEVICE_LOGITS) // len(head_VD))


def _check(
    terms: Sequence[Term], weights: torch.Tensor | None, targets: torch.Tensor | None, teacher: Teacher | None
) -> None:
    names = [term.name for term in terms]
    if not names or len(set(names)) < len(names) or not set(names) <= {"ce", "kl", "reverse_kl"}:
        raise ValueError(f"found terms {names}; wanted some of ce, kl and reverse_kl, each once")
    if any(term.temperature <= 0 or (term.name == "ce" and term.temperature != 1) for term in terms):
        raise ValueError(f"found {[tuple(term) for term in terms]}; wanted temperatures above 0, and 1 for ce")
    if "ce" in names and targets is None:
        raise ValueError("ce needs targets_N")
    if set(names) - {"ce"} and teacher is None:
        raise ValueError("a divergence needs a teacher")
    if weights is not None and weights.requires_grad:
        raise ValueError("weights_N are constants; found some that require a gradient")


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        head_VD: torch.Tensor,
        weights_N: torch.Tensor | None,
        targets_N: torch.Tensor | None,
        teacher: Teacher | None,
        terms: Sequence[Term],
        chunk: int | None,
        training: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wants = tuple(training and needed for needed in ctx.needs_input_grad[:2])
        losses, *gradients = _sweep(hidden_ND, head_VD, weights_N, targets_N, teacher, terms, chunk, wants)
        ctx.save_for_backward(*gradients)
        sums = (
            losses.sum(1) if weights_N is None else (losses * weights_N).sum(1)
        )  # no matrix product, which autocast would round
        ctx.mark_non_differentiable(sums)
        return (sums * sums.new_tensor([term.coefficient for term in terms])).sum(), sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        hidden, head = (g if g is None else g * upstream.to(g.dtype) for g in ctx.saved_tensors)
        return hidden, head, None, None, None, None, None, None


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: torch.Tensor, head_VD: torch.Tensor, targets_N: torch.Tensor, chunk: int | None
    ) -> torch.Tensor:
        ctx.save_for_backward(hidden_ND, head_VD, targets_N)
        ctx.chunk = chunk
        losses, *_ = _sweep(hidden_ND, head_VD, None, targets_N, None, [Term("ce")], chunk, (False, False))
        return -losses[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_N: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_ND, head_VD, targets_N = ctx.saved_tensors
        wants = ctx.needs_input_grad[:2]
        _, *gradients = _sweep(hidden_ND, head_VD, -upstream_N, targets_N, None, [Term("ce")], ctx.chunk, wants)
        return *gradients, None, None


def _sweep(
    hidden_ND: torch.Tensor,
    head_VD: torch.Tensor,
    weights_N: torch.Tensor | None,
    targets_N: torch.Tensor | None,
    teacher: Teacher | None,
    terms: Sequence[Term],
    chunk: int | None,
    wants: tuple[bool, ...],
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Losses [terms, N], and the gradients of their weighted sum in the hidden states and the head where wanted."""
    dtype = torch.promote_types(torch.promote_types(hidden_ND.dtype, head_VD.dtype), torch.float32)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        head = factor(head_VD, hidden_ND, dtype)
        teacher = None if teacher is None else teacher.cast(dtype)
        losses = head.new_empty(len(terms), len(hidden_ND), dtype=dtype)
        to_hidden = torch.empty_like(hidden_ND) if wants[0] else None
        to_head = torch.zeros_like(head, dtype=dtype) if wants[1] else None
        chunk = chunk or chunk_tokens(head)
        for start in range(0, len(hidden_ND), chunk):
            part = slice(start, start + chunk)
            hidden, weights = hidden_ND[part], None if weights_N is None else weights_N[part].to(dtype).unsqueeze(1)
            logits = product(hidden, head.T, dtype)
            gradient = torch.zeros_like(logits) if any(wants) else None
            targets = None if targets_N is None else targets_N[part]
            ours = None if teacher is None else teacher.rows(part)
            losses[:, part] = chunk_losses(logits, targets, ours, terms, gradient)
            if gradient is not None and to_hidden is not None:
                back = product(gradient.to(head.dtype), head, dtype)
                to_hidden[part] = back if weights is None else back.mul_(weights)
            if gradient is not None and to_head is not None:
                inputs = hidden.to(dtype)
                to_head.addmm_(gradient.T, inputs if weights is None else inputs * weights)
    return losses, to_hidden, None if to_head is None else to_head.to(head_VD.dtype)
