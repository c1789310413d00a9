"""A teacher's predictions, written down once and read by any number of trainings.

Of every prediction that counts the K likeliest tokens are kept, with their log-probabilities, and the log of the mass
of all others together (`ops.terms.TopTeacher`). A parquet row holds one packed row of training text, and is found
again by a digest of its tokens: micro-batches, processes and resumed runs need no count of their own, and a row that
was never written is refused. The cache is made of parts that appear by one rename each, so what a kill leaves is whole.
"""

import hashlib
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import log_softmax

from regear.core.errors import DataError, RecipeError, writing
from regear.core.files import aside, publish, read_json, write_json
from regear.core.run import Progress, silent
from regear.models.head import head
from regear.ops.terms import TopTeacher
from regear.train.batch import Batch
from regear.train.parallel import World
from regear.train.states import predicting_states

FORWARD_ROWS = 4
GROUP_BYTES = 4 << 20  # of a parquet row group: what is read at a time
PART_BYTES = 32 << 20  # of a file: what a kill may lose
CHUNK = 256
RECORD = "cache.json"
COLUMNS = ("tokens", "logprobs", "tail")


class TeacherCache:
    """The predictions of one teacher on one stream of rows, in a directory.

    Args:
        place: the directory; made if it is not there.
        identity: what the predictions depend on, as JSON: teacher, tokenizer, texts, how rows are laid.
        kept: K, the tokens kept of every prediction.
        sequence: tokens a row.
        dtype: of log-probabilities. They are normalised again when read.

    Raises:
        RecipeError: pyarrow is missing, or the directory holds predictions of another identity.
    """

    def __init__(
        self, place: Path, identity: dict[str, Any], *, kept: int, sequence: int, dtype: str = "float16"
    ) -> None:
        self.place, self.kept, self.values = place, kept, np.dtype(dtype)
        self.arrow, self.parquet = _pyarrow()
        self.identity = {**identity, "kept": kept, "sequence": sequence, "dtype": dtype}
        row = FORWARD_ROWS * sequence * kept * (4 + self.values.itemsize)
        self.group = FORWARD_ROWS * max(1, GROUP_BYTES // row)
        self.part = self.group * max(1, PART_BYTES // (row * self.group // FORWARD_ROWS))
        self._read: dict[tuple[int, int], dict[str, list[np.ndarray]]] = {}
        self._next = 0
        self._check()

    def _check(self) -> None:
        record = self.place / RECORD
        if not record.exists() and next(self._parts(), None) is None:  # as a kill before the record leaves it
            return
        held = read_json(record) if record.exists() else {}
        if held != self.identity:
            differing = sorted(
                key for key in held.keys() | self.identity.keys() if held.get(key) != self.identity.get(key)
            )
            raise RecipeError(
                f"{self.place} holds a teacher's predictions of other {', '.join(differing)}; "
                "give another teacher.place, or remove it"
            )

    def write(
        self,
        rows: int,
        batches: Iterator[Batch],
        teacher: Callable[[], Any],
        world: World | None = None,
        progress: Progress = silent,
    ) -> None:
        """Make the cache hold at least the first `rows` rows of the stream; what it holds already is kept.

        Args:
            batches: the stream from its beginning, `FORWARD_ROWS` rows at a time, the same on every process.
            teacher: loads the model; called only if something is missing. Processes share the parts.
        """
        world = world or World()
        rows = -(-rows // FORWARD_ROWS) * FORWARD_ROWS
        missing = [
            start
            for number, start in enumerate(range(0, rows, self.part))
            if number % world.size == world.rank and self._held(start) < min(self.part, rows - start)
        ]
        if world.leads:
            write_json(self.place / RECORD, self.identity)
        world.wait()
        model = teacher() if missing else None
        at = 0
        for start in missing:
            for _ in range(at, start, FORWARD_ROWS):
                next(batches)
            at = min(start + self.part, rows)
            self._write_part(start, at, batches, model, lambda done: progress("teacher", done, rows))
        world.wait()
        self.__dict__.pop("_index", None)

    def _parts(self) -> Iterator[Path]:
        return self.place.glob("[0-9]*.parquet")

    def _path(self, start: int) -> Path:
        return self.place / f"{start:012d}.parquet"

    def _held(self, start: int) -> int:
        path = self._path(start)
        return int(self.parquet.read_metadata(path).num_rows) if path.exists() else 0

    def _write_part(
        self, start: int, stop: int, batches: Iterator[Batch], model: Any, tell: Callable[[int], None]
    ) -> None:
        path = self._path(start)
        temporary = aside(path)
        with writing(temporary):
            writer = None
            for first in range(start, stop, self.group):
                table = self._table(min(self.group, stop - first), batches, model)
                writer = writer or self.parquet.ParquetWriter(temporary, table.schema, compression="zstd")
                writer.write_table(table, row_group_size=self.group)
                tell(min(first + self.group, stop))
            if writer is not None:
                writer.close()
            publish(temporary, path)

    def _table(self, rows: int, batches: Iterator[Batch], model: Any) -> Any:
        columns: dict[str, list[Any]] = {"row": [], **{name: [] for name in COLUMNS}}
        for _ in range(0, rows, FORWARD_ROWS):
            batch = next(batches)
            found = predictions(model, batch.to(model.device), self.kept)
            ids = np.uint16 if head(model).shape[0] <= 1 << 16 else np.uint32
            columns["row"] += _digests(batch)
            counts = batch.predict_BL.sum(1).tolist()
            for name, table, dtype in (
                ("tokens", found.tokens_NK, ids),
                ("logprobs", found.logits_NK, self.values),
                ("tail", found.log_tail_N, self.values),
            ):
                columns[name] += [part.numpy().astype(dtype).ravel() for part in table.cpu().split(counts)]
        arrays = {"row": self.arrow.array(columns["row"], self.arrow.uint64())}
        return self.arrow.table(arrays | {name: self._lists(columns[name]) for name in COLUMNS})

    def _lists(self, parts: list[np.ndarray]) -> Any:
        ends = np.cumsum([0, *map(len, parts)], dtype=np.int32)
        return self.arrow.ListArray.from_arrays(ends, self.arrow.array(np.concatenate(parts)))

    def top(self, batch: Batch) -> TopTeacher:
        """The distributions of the predictions of `batch` that count, row after row.

        Raises:
            DataError: a row of it was never written.
        """
        rows = [self._row(self._find(digest)) for digest in _digests(batch)]
        ids, logs, tail = (np.concatenate([row[name] for row in rows]) for name in COLUMNS)
        device = batch.tokens_BL.device
        tail_N = torch.from_numpy(tail.astype(np.float32)).to(device)
        logs_NK = torch.from_numpy(logs.astype(np.float32)).to(device).view(len(tail), -1)
        tokens_NK = torch.from_numpy(ids.astype(np.int64)).to(device).view(len(tail), -1)
        whole_N = torch.cat([logs_NK, tail_N.unsqueeze(1)], 1).logsumexp(-1)
        return TopTeacher(logs_NK - whole_N.unsqueeze(1), tokens_NK, tail_N - whole_N)

    @cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        """The digest of every row, and the order that sorts them."""
        files = sorted(self._parts())
        rows = [self.parquet.read_table(path, columns=["row"])["row"].to_numpy() for path in files]
        held = np.concatenate(rows) if rows else np.empty(0, np.uint64)
        return held, np.argsort(held, kind="stable")

    def _find(self, digest: int) -> int:
        """The number of a row: mostly the next one; any other is searched for."""
        held, order = self._index
        at = self._next
        if at >= len(held) or held[at] != digest:
            place = int(np.searchsorted(held, np.uint64(digest), sorter=order))
            if place >= len(held) or held[order[place]] != digest:
                raise DataError(
                    f"{self.place} has no predictions for a row of this training; it was made of other text: remove it"
                )
            at = int(order[place])
        self._next = at + 1
        return at

    def _row(self, number: int) -> dict[str, np.ndarray]:
        start = number // self.part * self.part
        group, place = divmod(number - start, self.group)
        if (start, group) not in self._read:
            if len(self._read) > 1:
                self._read.pop(next(iter(self._read)))
            table = self.parquet.ParquetFile(self._path(start)).read_row_group(group, columns=list(COLUMNS))
            self._read[start, group] = {name: _rows(table[name].combine_chunks()) for name in COLUMNS}
        return {name: rows[place] for name, rows in self._read[start, group].items()}


@torch.no_grad()
def predictions(model: Any, batch: Batch, kept: int) -> TopTeacher:
    """A model's predictions that count as their likeliest tokens, in float32 (float64 stays)."""
    with torch.autocast(batch.tokens_BL.device.type, torch.bfloat16, enabled=batch.tokens_BL.is_cuda):
        hidden_ND = predicting_states(model, batch)
    dtype = torch.promote_types(torch.promote_types(hidden_ND.dtype, head(model).dtype), torch.float32)
    head_VD = head(model).to(dtype)
    logs, tokens, tails = [], [], []
    for hidden in hidden_ND.to(dtype).split(CHUNK):
        all_CV = log_softmax(hidden @ head_VD.T, -1)
        top = all_CV.topk(min(kept, all_CV.shape[1]), -1)
        logs.append(top.values)
        tokens.append(top.indices)
        tails.append(all_CV.scatter_(1, top.indices, -torch.inf).logsumexp(-1))
    return TopTeacher(torch.cat(logs), torch.cat(tokens), torch.cat(tails))


def _digests(batch: Batch) -> list[int]:
    """One number for the tokens, positions and counted predictions of each row."""
    origin = batch.origin
    tables = [table.cpu().numpy() for table in (origin.tokens_BL, origin.positions_BL, origin.predict_BL)]
    found = []
    for parts in zip(*tables, strict=True):
        state = hashlib.blake2b(digest_size=8)
        for part in parts:
            state.update(part.tobytes())
        found.append(int.from_bytes(state.digest(), "little"))
    return found


def _rows(lists: Any) -> list[np.ndarray]:
    values, ends = lists.values.to_numpy(), lists.offsets.to_numpy()
    return [values[a:b] for a, b in pairwise(ends)]


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise RecipeError("teacher.cache needs pyarrow: pip install 'regear[train]'") from None
    return pyarrow, pyarrow.parquet
