"""A source model and its variants run one decoder layer at a time; memory holds a layer and the hidden states.

Shape letters: B windows, T positions, D hidden width, N scored positions of all windows.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from regear.conversion.head import Head, token_losses
from regear.conversion.layers import BATCH_TOKENS, Layers, pad
from regear.core.errors import CheckpointError
from regear.measure.perplexity import Scores
from regear.models.families import SourceSpec
from regear.models.store import Store

BATCH_WINDOWS = 4


@dataclass(frozen=True)
class Batch:
    """Windows padded on the right. Shapes: ids, real (False at pads), weight: [B, T]."""

    ids: torch.Tensor
    real: torch.Tensor
    weight: torch.Tensor


def batches(rows: Sequence[Sequence[int]], weights: Sequence[float], size: int = BATCH_WINDOWS) -> list[Batch]:
    """Group token rows, in order, into padded batches of `size` rows, of fewer where they are long.

    Causal attention never looks at a pad on the right.
    """
    result: list[Batch] = []
    start = 0
    while start < len(rows):
        count = next(
            n for n in range(size, 0, -1) if n == 1 or n * max(map(len, rows[start : start + n])) <= BATCH_TOKENS
        )
        group = rows[start : start + count]
        ids = pad(group)
        real = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in group]).unsqueeze(1)
        weight = torch.tensor(weights[start : start + count]).unsqueeze(1) * real
        result.append(Batch(ids, real, weight))
        start += count
    return result


@dataclass(frozen=True)
class Edit:
    """Dense key and value weights (and biases) to run a layer with instead of its own."""

    key: torch.Tensor
    value: torch.Tensor
    key_bias: torch.Tensor | None = None
    value_bias: torch.Tensor | None = None


# What a layer runs with for a while: other key and value weights, another attention module with the same call, or
# (None) what it has. A variant of a model names it layer by layer, upwards, once a pass, so that no more than one
# layer's is held; None as a whole is the original.
Change = Edit | nn.Module | None
Variant = Callable[[int], Change]


class Source(Layers):
    """The layers of a source model, to be run as they are or edited."""

    def __init__(self, store: Store, spec: SourceSpec, device: torch.device | str = "cpu") -> None:
        super().__init__(store, device)
        self.spec = spec

    def run(self, layer: nn.Module, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """One layer's output, [B, T, D]."""
        positions = torch.arange(hidden_BTD.shape[1], device=self.device).unsqueeze(0)
        rotary = self.rotary(hidden_BTD, positions)
        output = layer(hidden_BTD, attention_mask=None, position_ids=positions, position_embeddings=rotary)
        return output[0] if isinstance(output, tuple) else output

    def phases(self, length: int) -> torch.Tensor:
        """What RoPE multiplies the pairs of a head by at each position, e^{iωt}, [T, d / 2]."""
        positions = torch.arange(length, device=self.device).unsqueeze(0)
        cos, sin = (part[0, :, : self.spec.head_dim // 2].cpu() for part in self.rotary(torch.zeros(1), positions))
        return torch.complex(cos, sin)


@contextmanager
def edited(layer: nn.Module, change: Change) -> Iterator[None]:
    """Run a layer with a change for a while."""
    if change is None:
        yield
        return
    if isinstance(change, nn.Module):
        kept = layer.self_attn
        layer.self_attn = change
        try:
            yield
        finally:
            layer.self_attn = kept
        return
    with _weights(layer, change):
        yield


@contextmanager
def _weights(layer: nn.Module, edit: Edit) -> Iterator[None]:
    """Run a layer with other key and value weights for a while."""
    attention: Any = layer.self_attn
    kept = [(m, m.weight, m.bias) for m in (attention.k_proj, attention.v_proj)]
    try:
        for module, weight, bias in (
            (attention.k_proj, edit.key, edit.key_bias),
            (attention.v_proj, edit.value, edit.value_bias),
        ):
            module.weight = nn.Parameter(weight.to(module.weight), requires_grad=False)
            module.bias = None if bias is None else nn.Parameter(bias.to(module.weight), requires_grad=False)
        yield
    finally:
        for module, weight, bias in kept:
            module.weight, module.bias = weight, bias


@torch.no_grad()
def losses(source: Source, data: Sequence[Batch], variants: Sequence[Variant | None]) -> list[Scores]:
    """Score several variants of a model on the same windows in one pass over its layers.

    A variant costs nothing below its first change. KL is measured from the original.
    """
    original = [source.embed(batch.ids) for batch in data]
    hidden: list[list[torch.Tensor] | None] = [None for _ in variants]
    for index in range(source.spec.layers):
        layer = source.layer(index)
        for number, variant in enumerate(variants):
            change = variant(index) if variant is not None else None
            moved = hidden[number]
            states = original if moved is None else moved
            if moved is not None or change is not None:
                with edited(layer, change):
                    hidden[number] = [source.run(layer, state) for state in states]
        original = [source.run(layer, state) for state in original]
        del layer, change  # before the next one is read
    head = source.head()
    states = [scored(head, data, original)]
    for moved in hidden:
        states.append(states[0] if moved is None else scored(head, data, moved))
    del original, hidden
    return scores([head] * len(states), states, data)[1:]


def scored(head: Head, data: Sequence[Batch], hidden: Sequence[torch.Tensor]) -> torch.Tensor:
    """Normed states of the positions that predict a token, row after row, [N, D]."""
    rows = [state[predicting(batch.real).to(state.device)] for batch, state in zip(data, hidden, strict=True)]
    return torch.cat([head.norm(row) for row in rows])


def predicting(real_BT: torch.Tensor) -> torch.Tensor:
    """Where a token has a next one, [B, T]."""
    return real_BT & torch.nn.functional.pad(real_BT[:, 1:], (0, 1))


def scores(heads: Sequence[Head], states: Sequence[torch.Tensor], data: Sequence[Batch]) -> list[Scores]:
    """Each model's scores by window, its KL taken from the first one.

    Args:
        states: of each model, normed, where `predicting` says, row after row, [N, D].

    Raises:
        CheckpointError: a model computes NaN or infinity.
    """
    lengths = [int(row.sum()) - 1 for batch in data for row in batch.real]
    targets = torch.cat([batch.ids[:, 1:][batch.real[:, 1:]] for batch in data])
    # The same states score the same: once is enough.
    places = {id(state): i for i, state in reversed(list(enumerate(states)))}
    kept = sorted(places.values())
    nll, kl = token_losses([heads[i] for i in kept], [states[i] for i in kept], targets)
    rows = [kept.index(places[id(state)]) for state in states]
    found = []
    for row in rows:
        losses_, kls = ([float(part.sum()) for part in table[row].split(lengths)] for table in (nll, kl))
        if not all(map(math.isfinite, losses_)):
            raise CheckpointError("the model computes NaN or infinity on this text; its weights are damaged")
        found.append(Scores(losses_, lengths, [], kls))
    return found
