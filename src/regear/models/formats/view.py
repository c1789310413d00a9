"""A checkpoint seen through a map of its tensors: nothing is read before it is asked for, and then one tensor."""

from collections.abc import Callable, Iterable, Iterator, Sequence
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

    def pieces(self, name: str) -> Iterable[torch.Tensor]:
        """The same tensor in groups of whole rows, in order."""
        ...


@dataclass(frozen=True)
class Entry:
    """How one tensor comes about.

    Args:
        shape: of the tensor.
        sources: the tensors it is made from.
        make: the making; None copies the one source.
        by_rows: whether rows can be made from the sources' rows, so that a large table is never whole in memory.
    """

    shape: Shape
    sources: tuple[str, ...]
    make: Callable[..., torch.Tensor] | None = None
    by_rows: bool = False


class View:
    """A checkpoint made from another's tensors by `entries`, under a config of its own; made in float32."""

    def __init__(self, base: Checkpoint, config: dict[str, Any], entries: dict[str, Entry]) -> None:
        self.base, self.config, self.entries = base, config, entries
        self.shapes = {name: entry.shape for name, entry in entries.items()}

    def read(self, name: str) -> torch.Tensor:
        """One tensor."""
        entry = self.entries[name]
        return _made(entry, [self.base.read(source) for source in entry.sources])

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        """The same tensor in groups of whole rows, in order."""
        entry = self.entries[name]
        if entry.make is not None and not entry.by_rows:
            yield self.read(name)
            return
        for found in zip(*(self.base.pieces(source) for source in entry.sources), strict=True):
            yield _made(entry, found)


def _made(entry: Entry, found: Sequence[torch.Tensor]) -> torch.Tensor:
    return found[0] if entry.make is None else entry.make(*(tensor.float() for tensor in found))
