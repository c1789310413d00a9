"""What training will cost, from the shapes of the models alone: operations a token, memory, and this machine's rate.

A matrix of P weights costs 2P operations a token forward, 2P for the gradient of its input where anything below it
trains, and 2P for its own where it trains. Attention over L positions costs 2L (d_q + d_v) forward, summed over heads,
and twice that backward: counted over all L, though a causal kernel may skip half.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import nn

from regear.models.head import decoder
from regear.ops.fused import CPU_LOGITS, DEVICE_LOGITS
from regear.ops.linear import product
from regear.train.recipes import StageRecipe

# Measured on a two-core x86 CPU in float32, sequence 256 to 512; the figure for GPUs is an estimate.
EFFICIENCY = {"cpu": 0.55, "cuda": 0.35}
PROBE_SECONDS = 0.5
PROBE_WIDTH = 1024
LOSS_TABLES = 6  # tables of a chunk's logits that the fused loss holds at once
# The parts of a decoder layer in the order they run; what is not named runs inside the attention.
FLOW: tuple[tuple[str, ...], ...] = (
    ("input_layernorm",),
    ("q_proj", "k_proj", "v_proj", "kv_a_proj", "kv_a_proj_with_mqa"),
    (),
    ("o_proj",),
    ("post_attention_layernorm",),
    ("gate", "gate_proj", "up_proj", "gate_up_proj"),
    ("down_proj",),
    ("post_feedforward_layernorm",),
)
INSIDE, OUTPUT = 2, 3


class Matrix(NamedTuple):
    """One weight of a layer: its place in `FLOW`, the share of it that a token uses, outputs, inputs, if it trains."""

    flow: int
    weights: float
    out: int
    into: int
    trains: bool


@dataclass(frozen=True)
class Layer:
    """The weights of a decoder layer, where in `FLOW` the first that trains is, the widths its scores run over."""

    matrices: tuple[Matrix, ...]
    lowest: int | None
    attention: float

    @property
    def weights(self) -> float:
        return sum(matrix.weights for matrix in self.matrices)


@dataclass(frozen=True)
class Sizes:
    """A model's shapes, with which of its parameters train."""

    layers: tuple[Layer, ...]
    parameters: int
    trained: int
    hidden: int
    vocabulary: int
    head_trains: bool
    embedding_trains: bool

    @classmethod
    def of(cls, model: Any) -> Self:
        """Read from a model, which may be on the meta device; `requires_grad` says what trains."""
        held = list(model.parameters())
        head = model.get_output_embeddings().weight
        return cls(
            tuple(_layer(layer, _experts(model.config)) for layer in decoder(model).layers),
            sum(p.numel() for p in held),
            sum(p.numel() for p in held if p.requires_grad),
            head.shape[1],
            head.shape[0],
            head.requires_grad,
            model.get_input_embeddings().weight.requires_grad,
        )

    @property
    def head(self) -> float:
        """Operations of the logits of one prediction."""
        return 2 * self.vocabulary * self.hidden


def _experts(config: Any) -> tuple[int, float]:
    """How many experts a layer has, and the share of them that a token uses."""
    count = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 0
    return count, (getattr(config, "num_experts_per_tok", count) / count if count else 1.0)


def _layer(layer: nn.Module, experts: tuple[int, float]) -> Layer:
    named = list(layer.named_parameters())
    matrices = []
    for name, parameter in named:
        if parameter.ndim > 1:
            share = experts[1] if parameter.ndim == 3 and parameter.shape[0] == experts[0] else 1.0
            out, into = int(share * (parameter.numel() // parameter.shape[-1])), parameter.shape[-1]
            matrices.append(Matrix(_flow(name), share * parameter.numel(), out, into, parameter.requires_grad))
    queries = sum(p.shape[0] for name, p in named if name.endswith("q_proj.weight"))
    values = sum(p.shape[1] for name, p in named if name.endswith("o_proj.weight"))
    lowest = min((_flow(name) for name, p in named if p.requires_grad), default=None)
    return Layer(tuple(matrices), lowest, queries + values)


def _flow(name: str) -> int:
    parts = set(name.split("."))
    return next((i for i, names in enumerate(FLOW) if parts & set(names)), INSIDE)


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of one training token; a multiplication and an addition are two."""

    forward: float = 0.0
    backward: float = 0.0
    head: float = 0.0
    teacher: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.forward + self.backward + self.head + self.teacher


def operations(student: Sizes, teacher: Sizes | None, stage: StageRecipe, *, cached: bool = False) -> Operations:
    """What a token of a stage costs, every prediction counted.

    Args:
        teacher: None where the stage has none.
        cached: whether the teacher's predictions are read instead of made.
    """
    kind, length = stage.objective.kind, stage.sequence
    alone = kind == "align"
    student_layers = [_of_part(layer, stage) for layer in student.layers] if alone else list(student.layers)
    forward = sum(_forward(layer, length) for layer in student_layers)
    backward = _backward(student_layers, length, below=student.embedding_trains, alone=alone)
    if stage.lora is not None:
        adapters = adapter_parameters(student, stage)
        weights = 2 * sum(m.weights for layer in student_layers for m in layer.matrices if m.trains)
        forward, backward = forward + 2 * adapters, backward - weights + 4 * adapters
    if stage.gradient_checkpointing:
        backward += forward
    predicts = kind not in ("align", "hidden")
    passes = 2 + student.head_trains + (kind == "dpo")  # logits, their gradient in the states and in the head
    taught = 0.0
    if teacher is not None and not cached:
        taught = inference(teacher, length) - (0.0 if predicts else teacher.head)
    return Operations(forward, backward, passes * student.head if predicts else 0.0, taught)


def inference(model: Sizes, length: int) -> float:
    """Operations of one token of a forward pass with its logits."""
    return sum(_forward(layer, length) for layer in model.layers) + model.head


def _forward(layer: Layer, length: int) -> float:
    return 2 * layer.weights + 2 * length * layer.attention


def _of_part(layer: Layer, stage: StageRecipe) -> Layer:
    """What `align` runs of a student's layer."""
    if getattr(stage.objective, "part", "layer") == "layer":
        return layer
    kept = tuple(m for m in layer.matrices if m.flow <= OUTPUT)
    return Layer(kept, None if layer.lowest is None or layer.lowest > OUTPUT else layer.lowest, layer.attention)


def _backward(layers: Sequence[Layer], length: int, *, below: bool, alone: bool) -> float:
    """Gradients of weights where they train, and of inputs above the lowest that does (`alone`: in every layer)."""
    total = 0.0
    for layer in layers:
        lowest = -1 if below else len(FLOW) if layer.lowest is None else layer.lowest
        total += 2 * sum(m.weights for m in layer.matrices if m.flow > lowest)
        total += 4 * length * layer.attention * (lowest <= INSIDE)
        total += 2 * sum(m.weights for m in layer.matrices if m.trains)
        below = below or (layer.lowest is not None and not alone)
    return total


def adapter_parameters(student: Sizes, stage: StageRecipe) -> int:
    """Parameters of the adapters beside every matrix that was chosen to train."""
    if stage.lora is None:
        return 0
    chosen = [m for layer in student.layers for m in layer.matrices if m.trains]
    return sum(stage.lora.rank * (m.out + m.into) for m in chosen)


def trained_parameters(student: Sizes, stage: StageRecipe) -> int:
    """How many numbers the optimiser holds moments of."""
    return student.trained if stage.lora is None else adapter_parameters(student, stage)


def memory(
    student: Sizes, teacher_bytes: int, stage: StageRecipe, *, processes: int = 1, device: str = "cpu"
) -> dict[str, int]:
    """Bytes of one process, about: float32 weights, gradients and two moments, all shared out among processes.

    Args:
        teacher_bytes: of the teacher where it is held.
        device: of the kind that trains.
    """
    trained = trained_parameters(student, stage)
    rows = min(stage.micro_batch, max(1, stage.batch // processes)) * stage.sequence
    found = {
        "weights": 4 * student.parameters // processes,
        "gradients": 4 * trained // processes,
        "moments": 8 * trained // processes,
        "teacher": teacher_bytes,
        "activations": int(
            rows * activations(student, checkpointing=stage.gradient_checkpointing) * (2 if stage.half(device) else 4)
        ),
        "loss": 4 * LOSS_TABLES * max(student.vocabulary, CPU_LOGITS if device == "cpu" else DEVICE_LOGITS),
    }
    return {**found, "total": sum(found.values())}


def activations(student: Sizes, *, checkpointing: bool = False) -> float:
    """Numbers a token keeps for the backward pass in the layers that have one."""
    first = next((i for i, layer in enumerate(student.layers) if layer.lowest is not None), len(student.layers))
    held = [_held(layer, student.hidden) for layer in student.layers[0 if student.embedding_trains else first :]]
    if checkpointing:
        return len(held) * student.hidden + max(held, default=0.0)
    return sum(held)


def _held(layer: Layer, hidden: int) -> float:
    """The outputs of all matrices, the inputs of those that do not read the normed state, and what two norms keep."""
    inner = sum(m.into for m in layer.matrices if m.flow in (OUTPUT, FLOW.index(("down_proj",))))
    return sum(m.out for m in layer.matrices) + inner + 2 * hidden


def matrix_rate(device: torch.device, *, half: bool = False, seconds: float = PROBE_SECONDS) -> float:
    """Operations a second of large matrix products here, in bfloat16 (`half`) or float32."""
    dtype = torch.bfloat16 if half else torch.float32
    width = PROBE_WIDTH * (8 if device.type == "cuda" else 1)
    one = torch.ones(width, width, dtype=dtype, device=device)
    _finish(product(one, one))
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        _finish(product(one, one))
        done += 1
    return 2 * width**3 * done / (time.perf_counter() - started)


def _finish(value: torch.Tensor) -> None:
    if value.is_cuda:
        torch.cuda.synchronize(value.device)
