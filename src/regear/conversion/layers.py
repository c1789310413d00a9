"""A checkpoint run one decoder layer at a time through its own modelling code, whatever its size.

The skeleton is built without weights from the checkpoint's config by transformers' Auto classes; a layer's tensors
are read when it is its turn, checked by name and shape, and dropped after. Shape letters: B windows, T positions,
D hidden width.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache

from regear.conversion.head import Head
from regear.models.experts import apart, join
from regear.models.load import load_config
from regear.models.store import Store

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
# A layer takes so many tokens at a time: what it computes in between is several times as wide as its input.
BATCH_TOKENS = 2048


class Layers:
    """The parts of a checkpoint, built on demand and loaded strictly, in float32."""

    def __init__(self, store: Store, device: torch.device | str = "cpu") -> None:
        self.store, self.device = store, torch.device(device)
        config = load_config(store.directory)
        config._attn_implementation = "sdpa"
        with torch.device("meta"):
            self.skeleton: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        self.skeleton.eval().requires_grad_(False)
        self.config, self.count = config, len(self.skeleton.model.layers)
        self.tied = bool(config.tie_word_embeddings)
        self.rotary = type(self.skeleton.model.rotary_emb)(config).to(self.device)

    def require(self) -> None:
        """Check that the checkpoint holds exactly what its own modelling code wants.

        Raises:
            CheckpointError: a missing, misshapen or unexpected tensor, by name.
        """
        wanted: dict[str, tuple[int, ...]] = {}
        for name, tensor in self.skeleton.state_dict().items():
            wanted |= apart(name, tuple(tensor.shape))
        if self.tied:
            wanted.pop(HEAD, None)
        self.store.require(wanted)

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor in float32."""
        return self.store.read(name).to(self.device, torch.float32)

    def _load(self, skeleton: nn.Module, prefix: str) -> nn.Module:
        module = copy.deepcopy(skeleton)
        held = skeleton.state_dict()
        tensors = {name: join(prefix + name, tuple(held[name].shape), self.tensor) for name in held}
        module.load_state_dict(tensors, strict=True, assign=True)
        return module.requires_grad_(False)

    def layer(self, index: int) -> nn.Module:
        """One decoder layer with its weights."""
        return self._load(self.skeleton.model.layers[index], f"model.layers.{index}.")

    def head(self) -> Head:
        """Final norm and language-model head."""
        norm = self._load(self.skeleton.model.norm, NORM.removesuffix("weight"))
        return Head(self.store, norm, EMBEDDING if self.tied else HEAD, self.device)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Hidden states before the first layer; only the rows that occur are read."""
        found = self.store.gather(EMBEDDING, ids.flatten().cpu()).to(self.device, torch.float32)
        return found.unflatten(0, ids.shape)

    @torch.no_grad()
    def final(self, ids_BT: torch.Tensor, cache: DynamicCache | None = None) -> torch.Tensor:
        """Normed final states, [B, T, D], by the model's own forward pass; pads on the right change nothing.

        Args:
            cache: filled on the way, if given; for no more tokens than a layer takes at a time.
        """
        model = copy.deepcopy(self.skeleton.model)
        model.rotary_emb, model.norm = self.rotary, self.head().norm
        rows = max(1, BATCH_TOKENS // ids_BT.shape[1])
        model.layers = nn.ModuleList(_Turn(self, index, rows) for index in range(self.count))
        hidden = self.embed(ids_BT)
        return model(inputs_embeds=hidden, past_key_values=cache, use_cache=cache is not None).last_hidden_state

    def cache_size(self, length: int = 8) -> dict[str, int]:
        """Floats and bytes of one token's cache entries, summed over layers, from the tensors of a real cache."""
        cache = DynamicCache(config=self.config)
        self.final(torch.arange(length).remainder(self.config.vocab_size).unsqueeze(0), cache)
        layers: Any = cache.layers
        tensors = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
        return {
            "floats": sum(t.numel() for t in tensors) // length,
            "bytes": sum(t.numel() * t.element_size() for t in tensors) // length,
        }


class _Turn(nn.Module):
    """Stands where a decoder layer does: has its weights while it is its turn."""

    def __init__(self, layers: Layers, index: int, rows: int) -> None:
        super().__init__()
        self.layers, self.index, self.rows = layers, index, rows
        self.attention_type = getattr(layers.skeleton.model.layers[index], "attention_type", None)

    def forward(self, hidden_BTD: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        layer = self.layers.layer(self.index)
        for part in hidden_BTD.split(self.rows):  # in place: a second set of states would double the memory
            output = layer(part, **kwargs)
            part.copy_(output[0] if isinstance(output, tuple) else output)
        return hidden_BTD


def pad(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Token rows as one table, padded on the right, [B, T]."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
