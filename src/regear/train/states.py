"""A causal model's hidden states: the last, from which the losses make logits a few at a time, and every layer's."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from regear.core.errors import IncompatibleModel, RecipeError
from regear.models.head import decoder, head
from regear.ops.terms import DenseTeacher
from regear.train.batch import Batch

# (layer, its input, its output), each [B, L, D].
Seen = Callable[[int, torch.Tensor, torch.Tensor], None]


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


def relative_error(student_ND: torch.Tensor, teacher_ND: torch.Tensor) -> torch.Tensor:
    """mean_d (s − t)² / mean_d t² of each, [N], in float32 (float64 stays)."""
    dtype = torch.promote_types(teacher_ND.dtype, torch.float32)
    student, teacher = student_ND.to(dtype), teacher_ND.to(dtype)
    size = teacher.square().mean(-1).clamp_min(torch.finfo(dtype).tiny)
    return (student - teacher).square().mean(-1) / size


def compared(
    student: Any, teacher: Any, batch: Batch, layers: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Both models' last hidden states that count, [N, D], and Σ log(1 + `relative_error`) of those after each layer.

    The student goes its own way; of it a list of states is kept (autograd keeps them anyway), of the teacher none. The
    logarithm is for tokens that are a sink of attention in the student alone: their states are a thousand times larger,
    and a step would be for nothing but them.
    """
    states: dict[int, torch.Tensor] = {}
    errors: list[torch.Tensor] = []

    def keep(index: int, before: torch.Tensor, after: torch.Tensor) -> None:
        states[index] = batch.counted(after)

    def compare(index: int, before: torch.Tensor, after: torch.Tensor) -> None:
        with torch.enable_grad():
            errors.append(relative_error(states.pop(index), batch.counted(after)).log1p().sum())

    with watched(student, layers, "layer", keep):
        ours = predicting_states(student, batch)
    with watched(teacher, layers, "layer", compare), torch.no_grad():
        theirs = predicting_states(teacher, batch)
    return ours, theirs, torch.stack(errors).sum()


def common_layers(student: Any, teacher: Any, wanted: list[int] | None = None) -> list[int]:
    """The numbers of the layers to compare, all or those wanted, in order.

    Raises:
        IncompatibleModel: other numbers of layers, or hidden states of other widths.
        RecipeError: a layer that is not there.
    """
    count, other = (len(decoder(model).layers) for model in (student, teacher))
    if count != other:
        raise IncompatibleModel(f"the student has {count} layers and the teacher {other}; wanted as many")
    width, theirs = (model.config.hidden_size for model in (student, teacher))
    if width != theirs:
        raise IncompatibleModel(f"the student's states are {width} wide and the teacher's {theirs}; wanted the same")
    layers = sorted(set(range(count) if wanted is None else wanted))
    if not layers or layers[0] < 0 or layers[-1] >= count:
        raise RecipeError(f"layers {wanted}: wanted some of 0 to {count - 1}")
    return layers


@contextmanager
def watched(model: Any, layers: Sequence[int], part: str, seen: Seen) -> Iterator[None]:
    """Call `seen` whenever one of the layers (or its attention) has run."""
    with ExitStack() as stack:
        for index in layers:

            def hook(_: nn.Module, args: tuple, named: dict[str, Any], output: Any, index: int = index) -> None:
                seen(index, args[0] if args else named["hidden_states"], first_of(output))

            handle = part_of(model, index, part).register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def part_of(model: Any, index: int, part: str) -> nn.Module:
    """A layer (`layer`) or its attention (`attention`)."""
    layer = decoder(model).layers[index]
    if part == "layer":
        return layer
    if not hasattr(layer, "self_attn"):
        raise IncompatibleModel(f"layer {index} ({type(layer).__name__}) has no self_attn; align part=layer instead")
    return layer.self_attn


def first_of(output: Any) -> torch.Tensor:
    """The states among what a module gives."""
    return output[0] if isinstance(output, tuple) else output
