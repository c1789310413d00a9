"""A checkpoint in a format of its own, on disk: config, shards, and the modelling code where it must travel along."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from regear.core.errors import IncompatibleModel, writing
from regear.core.run import Progress
from regear.models.formats.canonical import padded
from regear.models.formats.strict import STRICT, folded
from regear.models.formats.view import Checkpoint
from regear.models.mla import modeling_regear_mla as modeling
from regear.models.store import plan_shards, shard_names, write_index
from regear.models.tensorfile import write_tensors

MODULE = "modeling_regear_mla"
CLASSES = {"AutoConfig": "Config", "AutoModel": "Model", "AutoModelForCausalLM": "ForCausalLM"}
AUTO_MAP = {auto: f"{MODULE}.RegearMla{kind}" for auto, kind in CLASSES.items()}


def in_format(checkpoint: Checkpoint, name: str, pad: int | None = None) -> Checkpoint:
    """A canonical decoupled checkpoint as `regear_mla`, `deepseek_v3` or `youtu` holds it.

    Args:
        checkpoint: decoupled `regear_mla`: its config, and its tensors as they are read.
        pad: width of every latent, with zeros; None leaves `regear_mla` as it is and gives the others the widest.

    Raises:
        IncompatibleModel, CheckpointError, RecipeError: see `strict.folded` and `canonical.padded`.
    """
    if name in STRICT:
        return folded(checkpoint, name, pad)
    return checkpoint if pad is None else padded(checkpoint, pad)


def output_dtype(stored: torch.dtype, name: str, wanted: torch.dtype | None = None) -> torch.dtype:
    """The dtype to write: the `wanted` one, else the source's, else bfloat16 where float16 cannot be.

    Raises:
        IncompatibleModel: float16 was asked of a strict format, whose latents lie a million times lower.
    """
    if name not in STRICT:
        return wanted or stored
    if wanted == torch.float16:
        raise IncompatibleModel(f"{name} cannot be written in float16: its latents would underflow; use bfloat16")
    return torch.bfloat16 if wanted is None and stored == torch.float16 else wanted or stored


def write(checkpoint: Checkpoint, staging: Path, dtype: torch.dtype, progress: Progress) -> None:
    """Write weights and config into `staging`; shards that a killed run finished are kept.

    Raises:
        CheckpointError: the disk is full, or a source tensor holds NaN or infinity.
    """
    sizes = {name: torch.Size(shape).numel() * dtype.itemsize for name, shape in checkpoint.shapes.items()}
    shards = plan_shards(sizes)
    names = shard_names(len(shards))
    for number, (file, members) in enumerate(zip(names, shards, strict=True), 1):
        if not (staging / file).exists():
            layout = {name: (dtype, checkpoint.shapes[name]) for name in members}
            write_tensors(staging / file, layout, checkpoint.pieces)
        progress("write", number, len(shards))
    write_index(staging, dict(zip(names, shards, strict=True)), sum(sizes.values()))
    with writing(staging / "config.json"):
        _config(checkpoint.config, dtype).save_pretrained(staging)
    if checkpoint.config["model_type"] == "regear_mla":
        with writing(staging / f"{MODULE}.py"):
            shutil.copyfile(str(modeling.__file__), staging / f"{MODULE}.py")


def _config(values: dict[str, Any], dtype: torch.dtype) -> Any:
    """A config of transformers' own class, so that what it says is what will be read."""
    values = values | {"dtype": str(dtype).removeprefix("torch.")}
    if values["model_type"] == "regear_mla":
        values |= {"architectures": ["RegearMlaForCausalLM"], "auto_map": AUTO_MAP}
    return AutoConfig.for_model(**values)
