"""The decoupled `regear_mla` checkpoint that every format is written from and read back to."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch

from regear.core.errors import CheckpointError, IncompatibleModel, RecipeError
from regear.models.formats import fold
from regear.models.formats.view import Checkpoint, Entry, Shape, View

NEUTRAL_EPS = 2.0**26


@dataclass(frozen=True)
class Geometry:
    """The widths of a decoupled checkpoint, in floats, and what scales its scores."""

    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    heads: int
    head_dim: int
    nope: int
    rope: int
    value: int
    ranks: tuple[int, ...]
    eps: float
    norm_eps: float
    tied: bool
    softmax_scale: float

    @classmethod
    def of(cls, config: dict[str, Any]) -> Self:
        """Read from the config of a decoupled `regear_mla` checkpoint.

        Raises:
            IncompatibleModel: another model, or exact RoPE.
        """
        if config.get("model_type") != "regear_mla" or config.get("rope_mode") != "decoupled":
            raise IncompatibleModel(
                f"this {config.get('model_type')} checkpoint has {config.get('rope_mode', 'exact')} RoPE, and no other "
                "format holds its keys; convert the original model again with convert.rope=decoupled"
            )
        return cls(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            heads=config["num_attention_heads"],
            head_dim=source_head_dim(config),
            nope=config["nope_dim"],
            rope=config["rope_dim"],
            value=config["value_dim"],
            ranks=tuple(rank for rank, _, _ in config["latent_ranks"]),
            eps=config["rms_norm_eps"],
            norm_eps=config.get("latent_norm_eps", NEUTRAL_EPS),
            tied=bool(config.get("tie_word_embeddings")),
            softmax_scale=config.get("softmax_scale") or source_head_dim(config) ** -0.5,
        )

    def tensors(self) -> dict[str, Shape]:
        """Every tensor of a dense checkpoint without biases or query norm, by name."""
        shapes: dict[str, Shape] = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for layer in range(self.layers):
            shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in self._layer(self.ranks[layer]).items()}
        shapes["model.norm.weight"] = (self.hidden,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocabulary, self.hidden)
        return shapes

    def _layer(self, rank: int) -> dict[str, Shape]:
        return {
            "self_attn.q_proj.weight": (self.heads * (self.nope + self.rope), self.hidden),
            "self_attn.kv_a_proj_with_mqa.weight": (rank + self.rope, self.hidden),
            "self_attn.kv_a_layernorm.weight": (rank,),
            "self_attn.kv_b_proj.weight": (self.heads * (self.nope + self.value), rank),
            "self_attn.o_proj.weight": (self.hidden, self.heads * self.value),
            "mlp.gate_proj.weight": (self.intermediate, self.hidden),
            "mlp.up_proj.weight": (self.intermediate, self.hidden),
            "mlp.down_proj.weight": (self.hidden, self.intermediate),
            "input_layernorm.weight": (self.hidden,),
            "post_attention_layernorm.weight": (self.hidden,),
        }


def source_head_dim(config: dict[str, Any]) -> int:
    """The width of the original model's heads; a decoupled config's `head_dim` is what servers attend at."""
    return int(config.get("source_head_dim") or config["head_dim"])


def layer_of(name: str) -> int:
    """`model.layers.3.…` → 3."""
    return int(name.split(".")[2])


def require(shapes: dict[str, Shape], wanted: dict[str, Shape]) -> None:
    """Check that exactly the `wanted` tensors are there.

    Raises:
        CheckpointError: one is missing, misshapen or unknown, by name.
    """
    for name in sorted(wanted.keys() | shapes.keys()):
        if shapes.get(name) != wanted.get(name):
            raise CheckpointError(
                f"tensor {name}: found {shapes.get(name, 'none')}, the config wants {wanted.get(name, 'none')}; "
                "the checkpoint is damaged or was changed after its conversion"
            )


def padded(checkpoint: Checkpoint, width: int | None) -> Checkpoint:
    """The same model with every layer's latents padded with zeros to `width`, or to the widest layer's.

    Raises:
        RecipeError: `width` is below a layer's rank.
    """
    geometry = Geometry.of(checkpoint.config)
    rank = width or max(geometry.ranks)
    if rank < max(geometry.ranks):
        raise RecipeError(f"convert.latent_pad={rank} is below the widest latent, {max(geometry.ranks)}; give more")
    if set(geometry.ranks) == {rank}:
        return checkpoint
    entries = {name: Entry(shape, (name,)) for name, shape in checkpoint.shapes.items()}
    for name, (rows, *rest) in checkpoint.shapes.items():
        part = name.split("self_attn.")[-1]
        if part.startswith("kv_a_proj_with_mqa."):
            entries[name] = Entry((rank + geometry.rope, *rest), (name,), partial(_rows, geometry.rope, rank))
        elif part == "kv_a_layernorm.weight":
            neutral = torch.full((rank,), geometry.norm_eps**0.5)
            entries[name] = Entry((rank,), (name,), lambda norm, full=neutral: torch.cat([norm, full[len(norm) :]]))
        elif part == "kv_b_proj.weight":
            entries[name] = Entry((rows, rank), (name,), partial(fold.pad_up, rank=rank))
    config = checkpoint.config | {"latent_ranks": [[rank] * 3] * geometry.layers}
    return View(checkpoint, config, entries)


def _rows(rope: int, rank: int, tensor: torch.Tensor) -> torch.Tensor:
    """Padding of a matrix's rows, or of a bias."""
    table = tensor if tensor.dim() == 2 else tensor[:, None]
    found = fold.pad_latents(table, rope, rank)
    return found if tensor.dim() == 2 else found[:, 0]
