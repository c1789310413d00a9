"""A checkpoint seen through a map of its tensors: nothing is read before it is asked for, and then one tensor."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

Shape = tuple[int, ...]


class Checkpoint(Protocol):
    """A config and tensors by name; `models.store.Store` is one, and so is every `View`."""

    config: dict[str, Any]
    shapes: dict[str, Shape]

    def read(self, name: str) -> torch.Tensor:
        """One tensor."""
        ...


@dataclass(frozen=True)
class Entry:
    """How one tensor comes about: its shape, the tensors it is made from, and the making (None: a copy)."""

    shape: Shape
    sources: tuple[str, ...]
    make: Callable[..., torch.Tensor] | None = None


class View:
    """A checkpoint made from another's tensors by `entries`, under a config of its own."""

    def __init__(self, base: Checkpoint, config: dict[str, Any], entries: dict[str, Entry]) -> None:
        self.base, self.config, self.entries = base, config, entries
        self.shapes = {name: entry.shape for name, entry in entries.items()}

    def read(self, name: str) -> torch.Tensor:
        """One tensor; what is computed is computed, and returned, in float32."""
        entry = self.entries[name]
        found = [self.base.read(source) for source in entry.sources]
        return found[0] if entry.make is None else entry.make(*(tensor.float() for tensor in found))
