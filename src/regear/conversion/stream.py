"""A source model run one decoder layer at a time, so that peak memory is one layer and the windows' hidden states.

Shape letters: B windows, T positions, D hidden width, V vocabulary.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from regear.measure.perplexity import Scores
from regear.models.families import SourceSpec
from regear.models.load import load_config
from regear.models.store import Store
from regear.ops.divergence import token_kl, token_nll

BATCH_WINDOWS = 4


@dataclass(frozen=True)
class Batch:
    """Windows padded on the right. Shapes: ids, real (False at pads), weight: [B, T]."""

    ids: torch.Tensor
    real: torch.Tensor
    weight: torch.Tensor


def batches(rows: Sequence[Sequence[int]], weights: Sequence[float], size: int = BATCH_WINDOWS) -> list[Batch]:
    """Group token rows, in order, into padded batches. Causal attention never looks at a pad on the right."""
    result = []
    for start in range(0, len(rows), size):
        group = rows[start : start + size]
        longest = max(map(len, group))
        ids = torch.tensor([list(row) + [0] * (longest - len(row)) for row in group])
        real = torch.tensor([[i < len(row) for i in range(longest)] for row in group])
        weight = torch.tensor(weights[start : start + size]).unsqueeze(1) * real
        result.append(Batch(ids, real, weight))
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


class Source:
    """The layers of a checkpoint, built on demand from a weightless skeleton and loaded strictly."""

    def __init__(self, store: Store, spec: SourceSpec, device: torch.device | str = "cpu") -> None:
        self.store, self.spec, self.device = store, spec, torch.device(device)
        config = load_config(store.directory)
        config._attn_implementation = "sdpa"
        with torch.device("meta"):
            self.skeleton: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        self.skeleton.eval().requires_grad_(False)
        self.rotary = type(self.skeleton.model.rotary_emb)(config).to(self.device)

    def tensor(self, name: str) -> torch.Tensor:
        """One source tensor in float32."""
        return self.store.read(name).to(self.device, torch.float32)

    def _load(self, skeleton: nn.Module, prefix: str, names: Sequence[str]) -> nn.Module:
        module = copy.deepcopy(skeleton)
        module.load_state_dict({name: self.tensor(prefix + name) for name in names}, strict=True, assign=True)
        return module.requires_grad_(False)

    def layer(self, index: int) -> nn.Module:
        """One decoder layer with its weights."""
        names = list(self.spec.layer_tensors())
        return self._load(self.skeleton.model.layers[index], f"model.layers.{index}.", names)

    def embed(self, data: Sequence[Batch]) -> list[torch.Tensor]:
        """Hidden states before the first layer, [B, T, D] a batch."""
        table = self.tensor("model.embed_tokens.weight")
        return [nn.functional.embedding(batch.ids.to(self.device), table) for batch in data]

    def head(self) -> nn.Module:
        """Final norm and language-model head."""
        norm = self._load(self.skeleton.model.norm, "model.norm.", ["weight"])
        name = "model.embed_tokens.weight" if self.spec.tied else "lm_head.weight"
        head = nn.Linear(self.spec.hidden, self.spec.vocabulary, bias=False, device="meta")
        head.load_state_dict({"weight": self.tensor(name)}, assign=True)
        return nn.Sequential(norm, head).requires_grad_(False)

    def run(self, layer: nn.Module, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """One layer's output, [B, T, D]."""
        positions = torch.arange(hidden_BTD.shape[1], device=self.device).unsqueeze(0)
        rotary = self.rotary(hidden_BTD, positions)
        output = layer(hidden_BTD, attention_mask=None, position_ids=positions, position_embeddings=rotary)
        return output[0] if isinstance(output, tuple) else output


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
    original = source.embed(data)
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
    head = source.head()
    results = [Scores() for _ in variants]
    for position, batch in enumerate(data):
        for row in range(len(batch.ids)):
            length = int(batch.real[row].sum())
            targets = batch.ids[row, 1:length].to(source.device)
            reference = head(original[position][row, : length - 1])
            for result, moved in zip(results, hidden, strict=True):
                logits = reference if moved is None else head(moved[position][row, : length - 1])
                result.nll.append(float(token_nll(logits, targets).double().sum()))
                result.tokens.append(length - 1)
                result.kl.append(0.0 if moved is None else float(token_kl(reference, logits).double().sum()))
    return results
