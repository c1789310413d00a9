"""Examples laid into rows of a fixed number of tokens.

An example as long as a row is a row of its own, so that long documents keep their whole context. Shorter ones share
rows. Text that no open row has room for is cut at the row's end: its rest goes on in the next row as a document of its
own, and the prediction across the cut is lost. Examples that must stay whole (a prompt and its answer) go where the
least room is left, and what stays empty is padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from regear.train.batch import Batch

OPEN_ROWS = 8


@dataclass(frozen=True)
class Example:
    """Token ids, and for each whether it is to be predicted from those before it.

    `whole`: never cut. `where`: file, position of the row, piece of the row.
    """

    ids: Sequence[int]
    targets: Sequence[bool]
    whole: bool = False
    where: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class Segment:
    """The tokens `start` to `stop` of an example, as one document of a row."""

    example: Example
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


PackedRow = list[Segment]


class Packer:
    """Takes examples, gives full rows.

    Args:
        sequence: tokens a row.
        packing: whether examples share rows; else every example is a row, padded on the right.
    """

    def __init__(self, sequence: int, packing: bool = True) -> None:
        self.sequence, self.packing = sequence, packing
        self.open: list[PackedRow] = []
        self.ready: list[PackedRow] = []

    def add(self, example: Example) -> None:
        """Lay one example of at most `sequence` tokens; rows that are done wait in `ready`."""
        segment = Segment(example, 0, len(example.ids))
        if not self.packing or len(segment) == self.sequence:
            self.ready.append([segment])
            return
        fitting = [row for row in self.open if self._room(row) >= len(segment)]
        if fitting:
            min(fitting, key=self._room).append(segment)
        elif example.whole or not self.open:
            self.open.append([segment])
        else:
            self._cut(segment)
        self._close()

    def _cut(self, segment: Segment) -> None:
        row = self.open[0]
        middle = segment.start + self._room(row)
        row.append(Segment(segment.example, segment.start, middle))
        if segment.stop - middle > 1:  # a single token predicts nothing
            self.open.append([Segment(segment.example, middle, segment.stop)])

    def _close(self) -> None:
        full = [row for row in self.open if not self._room(row)]
        self.open = [row for row in self.open if self._room(row)]
        while len(self.open) > OPEN_ROWS:
            full.append(self.open.pop(min(range(len(self.open)), key=lambda i: self._room(self.open[i]))))
        self.ready += full

    def _room(self, row: PackedRow) -> int:
        return self.sequence - sum(map(len, row))

    def state(self) -> dict[str, Any]:
        """The rows held, as places in the files."""
        return {
            name: [[[*part.example.where, part.start, part.stop] for part in row] for row in rows]
            for name, rows in (("open", self.open), ("ready", self.ready))
        }

    def restore(self, state: dict[str, Any], examples: dict[tuple[int, int, int], Example]) -> None:
        """Hold what `state` names, made of these examples."""
        for name in ("open", "ready"):
            rows = [[Segment(examples[f, r, p], start, stop) for f, r, p, start, stop in row] for row in state[name]]
            setattr(self, name, rows)


def lay(rows: Sequence[PackedRow], sequence: int, pad: int) -> Batch:
    """Rows as one batch of `sequence` tokens each, padded on the right; the padding is a document of its own."""
    shape = (len(rows), sequence)
    tokens, positions = torch.full(shape, pad), torch.zeros(shape, dtype=torch.int64)
    predict = torch.zeros(shape, dtype=torch.bool)
    for b, row in enumerate(rows):
        at = 0
        for part in row:
            end = at + len(part)
            tokens[b, at:end] = torch.tensor(part.example.ids[part.start : part.stop])
            positions[b, at:end] = torch.arange(len(part))
            predict[b, at : end - 1] = torch.tensor(part.example.targets[part.start + 1 : part.stop], dtype=torch.bool)
            at = end
        positions[b, at:] = torch.arange(sequence - at)
    return Batch(tokens, positions, predict)
