"""A model in memory back to disk, in the form of the checkpoint it came from."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from regear.core.errors import CheckpointError, writing
from regear.core.files import write_text
from regear.models.store import Store, plan_shards, shard_names, write_index
from regear.models.tensorfile import DTYPES, write_tensors


class InMemory:
    """A model's tensors as a checkpoint to read: a config, the shapes of what is wanted, and tensors by name."""

    def __init__(self, config: dict[str, Any], shapes: dict[str, tuple[int, ...]], tensors: dict[str, Any]) -> None:
        self.config, self.shapes, self.tensors = config, shapes, tensors
        if lost := sorted(set(shapes) - set(tensors)):
            raise CheckpointError(f"the model has no tensor {lost[0]}; it cannot be written in its source's form")

    def read(self, name: str) -> torch.Tensor:
        """One tensor."""
        return self.tensors[name].detach().cpu()  # type: ignore[no-any-return]

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        """The same tensor, whole."""
        yield self.read(name)


def save_like(store: Store, tensors: dict[str, Any], staging: Path, dtype: torch.dtype | None = None) -> None:
    """Write tensors under a source's names, with its config and modelling code.

    Args:
        store: the source.
        tensors: by the source's names.
        staging: an existing directory.
        dtype: of all floating-point weights; by default each keeps its own.

    Raises:
        CheckpointError: a tensor of the source is not there, or the disk is full.
    """
    held = InMemory(store.config, dict(store.shapes), tensors)
    kinds = {name: dtype or DTYPES[store.dtypes[name]] for name in held.shapes}
    sizes = {name: torch.Size(shape).numel() * kinds[name].itemsize for name, shape in held.shapes.items()}
    shards = plan_shards(sizes)
    names = shard_names(len(shards))
    for file, members in zip(names, shards, strict=True):
        write_tensors(staging / file, {name: (kinds[name], held.shapes[name]) for name in members}, held.pieces)
    write_index(staging, dict(zip(names, shards, strict=True)), sum(sizes.values()))
    config = dict(store.config)
    if dtype is not None:
        config["dtype"] = str(dtype).removeprefix("torch.")
    write_text(staging / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    for path in sorted(store.directory.glob("*.py")):
        with writing(staging / path.name):
            shutil.copyfile(path, staging / path.name)
