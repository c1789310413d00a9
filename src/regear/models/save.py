"""A model in memory back to disk, in the form of the checkpoint it came from."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from regear.core.errors import CheckpointError, writing
from regear.core.files import write_text
from regear.models.experts import split
from regear.models.store import FLOATS, RECOMPUTED, Store, plan_shards, shard_names, write_index
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


def as_stored(store: Store, tensors: dict[str, Any]) -> dict[str, Any]:
    """A model's tensors by the names of the checkpoint it was loaded from, without what every loader recomputes.

    Args:
        tensors: the model's, as its `state_dict` names them; on the meta device a check before training.

    Raises:
        CheckpointError: a tensor of the checkpoint has another shape in the model, or none there, or a quantised type.
    """
    held = {**split(tensors), **tensors}
    found = {}
    for name, shape in store.shapes.items():
        if name not in held and name.endswith(RECOMPUTED):
            continue
        kind = store.dtypes[name]
        if name not in held or tuple(held[name].shape) != shape:
            there = f"of shape {tuple(held[name].shape)}" if name in held else "absent"
            raise CheckpointError(
                f"tensor {name} of shape {shape} is {there} in the loaded model, which could not be written back in "
                "the form it came in; load and save it with transformers first"
            )
        if kind not in (FLOATS if held[name].is_floating_point() else DTYPES):
            raise CheckpointError(
                f"tensor {name} is stored as {kind}; wanted one of {', '.join(FLOATS)}: unquantise it"
            )
        found[name] = held[name]
    return found


def save_like(store: Store, tensors: dict[str, Any], staging: Path, dtype: torch.dtype | None = None) -> None:
    """Write a model's tensors under its checkpoint's names, with its config and modelling code.

    Args:
        store: the checkpoint it was loaded from.
        tensors: by the model's names.
        staging: an existing directory.
        dtype: of all floating-point weights; by default each keeps its own.

    Raises:
        CheckpointError: see `as_stored`; or the disk is full.
    """
    found = as_stored(store, tensors)
    held = InMemory(store.config, {name: store.shapes[name] for name in found}, found)
    own = {name: DTYPES[store.dtypes[name]] for name in found}
    kinds = {name: dtype if dtype and kind.is_floating_point else kind for name, kind in own.items()}
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
