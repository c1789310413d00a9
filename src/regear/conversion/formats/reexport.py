"""An MLA checkpoint into another format: the same function, tensor by tensor, measured again on both sides.

The way back, from a strict export to `regear_mla`, is what healing starts from: strict weights are too small to train.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from regear.conversion.base import Conversion, Plan, Texts
from regear.conversion.formats.facts import server_facts
from regear.conversion.head import BLOCK, CHUNK_BYTES, CHUNK_ENTRIES
from regear.conversion.layers import BATCH_TOKENS
from regear.conversion.recipes import MlaConvertRecipe
from regear.conversion.sizing import BASE_BYTES
from regear.core.errors import CheckpointError, IncompatibleModel, RecipeError
from regear.core.files import read_json
from regear.core.report import Plot, Section
from regear.core.run import Progress
from regear.models.families import describe
from regear.models.formats.canonical import Geometry, layer_of, source_head_dim
from regear.models.formats.read import canonical
from regear.models.formats.strict import STRICT
from regear.models.formats.view import Checkpoint
from regear.models.formats.write import in_format, output_dtype, write
from regear.models.store import Store
from regear.models.tensorfile import DTYPES

SETTINGS = ("format", "latent_pad", "dtype")
# What rounding every weight once more may change; a larger change is a fault, not noise. In nats a token.
LARGEST_KL = {torch.float32: 1e-3, torch.bfloat16: 0.05}


class Reexport(Conversion[MlaConvertRecipe]):
    """See the module's docstring."""

    def __init__(self, store: Store, recipe: MlaConvertRecipe, device: str = "auto") -> None:
        chosen = recipe.convert
        own = store.config.get("model_type")
        if own == chosen.format == "regear_mla" and chosen.latent_pad is None:
            raise IncompatibleModel(
                "this model is already a regear MLA checkpoint; give the model it was made from, or another "
                f"convert.format ({', '.join(STRICT)})"
            )
        implied = {"to", "rope", *(["allocate"] if chosen.allocate == "uniform" else [])}
        if unused := sorted(chosen.model_fields_set - {*SETTINGS, *implied}):
            raise RecipeError(
                f"convert.{unused[0]} has no effect on a checkpoint that is already MLA; wanted only "
                f"{', '.join(f'convert.{name}' for name in SETTINGS)}"
            )
        self.base = canonical(store)
        self.target = in_format(self.base, chosen.format, chosen.latent_pad)
        wanted = None if chosen.dtype == "source" else getattr(torch, chosen.dtype)
        self.stored = DTYPES[store.dtypes["model.layers.0.self_attn.kv_a_proj_with_mqa.weight"]]
        self.dtype = output_dtype(self.stored, chosen.format, wanted)
        # Only the parts around attention are of use here, and there the checkpoint is Llama-shaped.
        around = {"model_type": "llama", "head_dim": source_head_dim(self.base.config)}
        super().__init__(store, describe(self.base.config | around), recipe, device)

    @property
    def format(self) -> str:
        return self.recipe.convert.format

    def settings(self) -> dict[str, Any]:
        return {key: value for key in SETTINGS if (value := getattr(self.recipe.convert, key)) is not None}

    def plan(self) -> Plan:
        counts = [sum(torch.Size(s).numel() for s in x.shapes.values()) for x in (self.store, self.target)]
        floats = [cached_floats(x.config) for x in (self.store, self.target)]
        geometry = Geometry.of(self.base.config)
        return Plan(
            kv_floats_before=floats[0],
            kv_floats_after=floats[1],
            parameters_before=counts[0],
            parameters_after=counts[1],
            output_bytes=counts[1] * self.dtype.itemsize,
            memory_bytes=_memory((self.store, self.target), self.base.config, self.recipe.evaluation.tokens),
            scratch_bytes=0,
            cache_bytes=0,
            facts={
                "mean_rank": floats[1] / geometry.layers,
                "width": floats[0] // geometry.layers,
                "layers": geometry.layers,
            },
        )

    def check_texts(self, texts: Texts, warn: Callable[[str], None]) -> None:
        if self.dtype != self.stored and self.recipe.convert.dtype == "source":
            warn(f"{self.format} cannot be float16: its latents would underflow; writing {str(self.dtype)[6:]}")

    def prepare(self, texts: Texts, place: Path, progress: Progress) -> dict[str, Any]:
        made = self.store.directory / "regear.json"
        before = read_json(made) if made.exists() else {}
        kept = {key: before[key] for key in ("source", "format", "to", "recipe", "chosen") if key in before}
        return {"from": kept, "added_parameters": self.plan().parameters_after - self.plan().parameters_before}

    def write(self, staging: Path, progress: Progress) -> None:
        write(self.target, staging, self.dtype, progress)

    def accept(self, measured: dict[str, Any]) -> None:
        """Refuse a result that differs by more than rounding.

        Raises:
            CheckpointError: it does.
        """
        limit = LARGEST_KL.get(self.dtype, 0.05)
        if not measured["kl"] <= limit:
            raise CheckpointError(
                f"the re-exported model differs by {measured['kl']:.3g} nats a token, more than rounding can "
                f"({limit}); the checkpoint is damaged, or this is a fault of regear: please report it"
            )

    def explain(self) -> tuple[list[Section], list[Plot]]:
        return [server_facts(self.target.config)], []


def _memory(checkpoints: Sequence[Checkpoint], config: dict[str, Any], tokens: int) -> int:
    """Resident bytes at the peak, about: one layer in float32 twice, its activations, states to compare, logits.

    Args:
        checkpoints: what is read and what is written.
        config: of the canonical checkpoint between them.
        tokens: how many are compared on.
    """
    geometry, inner = Geometry.of(config), config["intermediate_size"]
    if config.get("expert_layers"):
        inner = max(inner, config["num_experts_per_tok"] * config["moe_intermediate_size"])
    queries = geometry.heads * (geometry.nope + geometry.rope)
    batch = BATCH_TOKENS * (4 * inner + 8 * geometry.hidden + 4 * queries)
    logits = 2 * CHUNK_BYTES + 4 * 8 * BLOCK * CHUNK_ENTRIES
    layer = max(map(_largest_layer, checkpoints))
    return BASE_BYTES + 4 * (2 * layer + batch + 3 * tokens * geometry.hidden) + logits


def _largest_layer(checkpoint: Checkpoint) -> int:
    """Numbers in the largest decoder layer, every expert of it included."""
    sizes: Counter[int] = Counter()
    for name, shape in checkpoint.shapes.items():
        if name.startswith("model.layers."):
            sizes[layer_of(name)] += math.prod(shape)
    return max(sizes.values())


def cached_floats(config: dict[str, Any]) -> int:
    """Floats a token in the cache, summed over layers, by the config of any of the formats."""
    if config["model_type"] in STRICT:
        return int(config["num_hidden_layers"] * (config["kv_lora_rank"] + config["qk_rope_head_dim"]))
    geometry = Geometry.of(config)
    return sum(geometry.ranks) + geometry.layers * geometry.rope
