"""Training batches without end from files of any size, shuffled, and resumable to the token.

Rows → examples → shuffle buffer → packed rows → batches. Only the buffer is held. Every draw from it is fixed by seed,
epoch and count, so the state is a list of places in the files and resuming reads only those rows again.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from regear.core.errors import DataError
from regear.train.batch import Batch
from regear.train.examples import Examples
from regear.train.pack import Example, Packer, lay
from regear.train.rows import open_sources

NOTHING_TO_LEARN = "none of the rows has a token to train on within {} tokens; give others, or raise train.sequence"

Place = tuple[int, int, int]


class Stream:
    """Batches of `batch` rows of `sequence` tokens, epoch after epoch, the same for the same arguments.

    Args:
        files: text files, JSONL, parquet, or the word `builtin` for the documents of that `split`.
        sequence: tokens a row.
        batch: rows a batch; with `pairs`, rows 2i and 2i+1 are chosen and rejected, so it must be even.
        seed: of the order of files and of the shuffling.
        buffer: examples held for shuffling; 1 keeps the files' order.
        packing: whether examples share rows.
        end: append the end-of-text token to whole texts and string completions.
        pairs: preference pairs, each answer a row of its own.

    Raises:
        DataError: a file that is missing, or whose rows are not what is wanted; one line with file and row.
    """

    def __init__(
        self,
        files: Sequence[str | Path],
        tokenizer: Any,
        *,
        sequence: int,
        batch: int,
        seed: int = 0,
        buffer: int = 1024,
        packing: bool = True,
        end: bool = True,
        pairs: bool = False,
        split: str = "training",
    ) -> None:
        if sequence < 2 or batch < 1 or buffer < 1 or (pairs and batch % 2):
            raise DataError(
                f"sequence {sequence}, batch {batch}, buffer {buffer}: wanted at least 2, 1 and 1"
                + (", and an even batch for pairs" if pairs else "")
            )
        self.sequence, self.batch, self.seed, self.size, self.pairs = sequence, batch, seed, buffer, pairs
        self.sources = open_sources(files, split)
        self.examples = Examples(tokenizer, sequence, end=end, pairs=pairs)
        self.layouts = [self.examples.layout(source) for source in self.sources]
        self.packer = Packer(sequence, packing and not pairs)
        self.pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
        self.rank, self.world = 0, 1
        self.epoch, self.draws, self.skipped = 0, 0, 0
        self.last: Place | None = None
        self.buffer: list[list[Example]] = []
        self._groups = self._shuffled()

    def shard(self, rank: int, world: int) -> Self:
        """Serve process `rank` of `world`: each draws the same `world` × `batch` rows and takes its own `batch`.

        Together the processes read at every step what one process with `world` times the batch reads.
        """
        self.rank, self.world = rank, world
        return self

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        wanted = self.batch * self.world
        while len(self.packer.ready) < wanted:
            for example in next(self._groups):
                self.packer.add(example)
        rows, self.packer.ready = self.packer.ready[:wanted], self.packer.ready[wanted:]
        return lay(rows[self.rank * self.batch : (self.rank + 1) * self.batch], self.sequence, self.pad)

    def state(self) -> dict[str, Any]:
        """Where the stream stands, for JSON; the same on every process."""
        return {
            "of": self._identity(),
            "epoch": self.epoch,
            "draws": self.draws,
            "skipped": self.skipped,
            "last": self.last,
            "buffer": [group[0].where for group in self.buffer],
            "packer": self.packer.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state` was taken, on any number of processes.

        Raises:
            DataError: the state is of other files or settings.
        """
        if state["of"] != self._identity():
            changed = [key for key, value in self._identity().items() if state["of"].get(key) != value]
            raise DataError(
                f"the run stopped with other data ({', '.join(changed)} differ); give the same, or start anew"
            )
        self.epoch, self.draws, self.skipped = state["epoch"], state["draws"], state["skipped"]
        self.last = tuple(state["last"]) if state["last"] else None
        buffer = [tuple(where) for where in state["buffer"]]
        packed = [
            tuple(part[:3])
            for rows in (state["packer"]["open"], state["packer"]["ready"])
            for row in rows
            for part in row
        ]
        examples = self._again({*buffer, *packed})
        self.buffer = [self._group(examples, where) for where in buffer]
        self.packer.restore(state["packer"], examples)
        self._groups = self._shuffled()

    def _shuffled(self) -> Iterator[list[Example]]:
        while True:
            for group in self._read():
                self.last = group[-1].where
                self.buffer.append(group)
                if len(self.buffer) >= self.size:
                    yield self._draw()
            while self.buffer:
                yield self._draw()
            if not self.draws:
                raise DataError(NOTHING_TO_LEARN.format(self.sequence))
            self.epoch, self.draws, self.last = self.epoch + 1, 0, None

    def _draw(self) -> list[Example]:
        chosen = random.Random(f"{self.seed}/{self.epoch}/{self.draws}").randrange(len(self.buffer))
        self.draws += 1
        self.buffer[chosen], self.buffer[-1] = self.buffer[-1], self.buffer[chosen]
        return self.buffer.pop()

    def _read(self) -> Iterator[list[Example]]:
        """What is shuffled as one (an example, or both of a pair), in the epoch's order, after `last`."""
        order = list(range(len(self.sources)))
        random.Random(f"{self.seed}/{self.epoch}").shuffle(order)
        last = self.last
        for file in order[order.index(last[0]) if last else 0 :]:
            start = last[1] if last and last[0] == file else 0
            for position, row in self.sources[file].rows(start):
                made = self._made(file, position, row)
                if last and made and made[0].where[:2] == last[:2]:
                    made = [example for example in made if example.where > last]
                yield from ([made] if self.pairs else [[example] for example in made]) if made else []

    def _made(self, file: int, position: int, row: Any) -> list[Example]:
        source = self.sources[file]
        try:
            made = list(self.examples.of(row, self.layouts[file]))
        except ValueError as error:
            raise DataError(f"{source.where(position)}: {error}") from None
        useful = all(any(example.targets[1:]) for example in made)
        self.skipped += not useful
        return [replace(example, where=(file, position, i)) for i, example in enumerate(made)] if useful else []

    def _again(self, places: set[Place]) -> dict[Place, Example]:
        positions: dict[int, set[int]] = defaultdict(set)
        for file, position, _ in places:
            positions[file].add(position)
        skipped = self.skipped
        made = {
            example.where: example
            for file, wanted in positions.items()
            for position, row in self.sources[file].pick(wanted).items()
            for example in self._made(file, position, row)
            if self.pairs or example.where in places
        }
        self.skipped = skipped
        return made

    def _group(self, examples: dict[Place, Example], where: Place) -> list[Example]:
        return [examples[where[0], where[1], i] for i in range(2)] if self.pairs else [examples[where]]

    def _identity(self) -> dict[str, Any]:
        return {
            "files": [[Path(source.name).name, source.size] for source in self.sources],
            "sequence": self.sequence,
            "seed": self.seed,
            "buffer": self.size,
            "packing": self.packer.packing,
            "end": bool(self.examples.end),
            "pairs": self.pairs,
        }
