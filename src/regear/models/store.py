"""Safetensors, tensor by tensor: reading a checkpoint strictly and writing one atomically."""

import math
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from regear.core.errors import CheckpointError
from regear.core.files import read_json, write_json
from regear.core.recipe import closest
from regear.models.tensorfile import BYTES, TensorFile, layout_of, whole, write_tensors

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "consolidated*.pt*")
# Buffers that old checkpoints carry and every loader recomputes.
RECOMPUTED = ("rotary_emb.inv_freq", "self_attn.rotary_emb.inv_freq")
SHARD_BYTES = 1 << 30
# A tensor that is copied, or gone through, is read so many bytes at a time.
PIECE_BYTES = 32 << 20
# Finite or not is asked of so many numbers at a time: the answer takes memory too.
CHECKED = 1 << 22


class Store:
    """The tensors of one model directory, read on demand; headers are checked when it is opened.

    Raises:
        CheckpointError: the directory, a shard or the index is missing, truncated, pickled or inconsistent.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        if not directory.is_dir():
            raise CheckpointError(f"no model directory {directory}; give a directory, a hub id or an embedded name")
        self.config: dict[str, Any] = read_json(directory / "config.json")
        self.files = self._locate()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._handles: dict[str, TensorFile] = {}
        for file in sorted(set(self.files.values())):
            self._read_header(file)
        absent = sorted(set(self.files) - set(self.shapes))
        if absent:
            raise CheckpointError(f"{INDEX} names {absent[0]} and {len(absent) - 1} more that no shard of it holds")

    def _locate(self) -> dict[str, str]:
        """Tensor name → file name, by the index or the single file."""
        index, single = self.directory / INDEX, self.directory / SINGLE
        if index.exists():
            files = read_json(index).get("weight_map")
            if not isinstance(files, dict) or not files:
                raise CheckpointError(f"{index} has no weight_map; restore it from the model's source")
            for file in sorted(set(files.values())):
                if not (self.directory / file).exists():
                    raise CheckpointError(f"shard {file} is missing from {self.directory}; fetch the model again")
            return files
        if single.exists():
            return dict.fromkeys(TensorFile(single).entries, SINGLE)
        pickles = [path.name for pattern in PICKLES for path in self.directory.glob(pattern)]
        if pickles:
            raise CheckpointError(
                f"{self.directory} holds pickle weights ({pickles[0]}), which can run code when read; wanted "
                "safetensors: load it where you trust it and save_pretrained(..., safe_serialization=True)"
            )
        raise CheckpointError(f"no {SINGLE} or {INDEX} in {self.directory}; wanted a Hugging Face model directory")

    def _read_header(self, file: str) -> None:
        found = self._handles[file] = TensorFile(self.directory / file)
        for name, entry in found.entries.items():
            self.shapes[name], self.dtypes[name] = entry.shape, entry.dtype

    def require(self, wanted: dict[str, tuple[int, ...]]) -> None:
        """Check that the checkpoint holds exactly the `wanted` tensors, so that none is lost or misread.

        Raises:
            CheckpointError: a missing, misshapen or unexpected tensor, by name.
        """
        odd = sorted({dtype for name, dtype in self.dtypes.items() if name in wanted and dtype not in FLOATS})
        if odd:
            raise CheckpointError(f"weights are stored as {odd[0]}; wanted one of {', '.join(FLOATS)}: unquantise them")
        for name, shape in wanted.items():
            if name not in self.shapes:
                joined = name.partition(".experts.")[0] + ".experts.gate_up_proj"
                if joined in self.shapes:
                    raise CheckpointError(
                        f"the experts are stored joined ({joined}); wanted each expert's matrices apart, as "
                        "transformers' save_pretrained writes them: load the model there and save it again"
                    )
                raise CheckpointError(
                    f"tensor {name} is missing{closest(name, self.shapes)}; the checkpoint is incomplete"
                )
            if self.shapes[name] != shape:
                raise CheckpointError(f"tensor {name} has shape {self.shapes[name]}; config.json wants {shape}")
        extra = [name for name in self.shapes if name not in wanted and not name.endswith(RECOMPUTED)]
        # A tied model may still carry a copy of its embeddings.
        extra = [name for name in extra if name != "lm_head.weight" or "lm_head.weight" in wanted]
        if extra:
            raise CheckpointError(
                f"tensor {extra[0]} and {len(extra) - 1} more are not part of a {self.config.get('model_type')} model; "
                "nothing would carry them over"
            )

    def read(self, name: str) -> torch.Tensor:
        """One tensor, as stored.

        Raises:
            CheckpointError: it holds NaN or infinity, or cannot be read.
        """
        return self.rows(name)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) of a tensor; every other way to read one goes through here.

        Raises:
            CheckpointError: they hold NaN or infinity, or cannot be read.
        """
        file = self.files.get(name)
        if file is None:
            raise CheckpointError(f"cannot read tensor {name}: {self.directory} has none of this name")
        tensor = self._handles[file].rows(name, start, stop)
        if tensor.is_floating_point() and not all(map(_finite, tensor.reshape(-1).split(CHECKED))):
            raise CheckpointError(f"tensor {name} holds NaN or infinity; the source weights are damaged")
        return tensor

    def pieces(self, name: str, limit: int = PIECE_BYTES) -> Iterator[torch.Tensor]:
        """A tensor in groups of whole rows of about `limit` bytes, in order."""
        shape = self.shapes[name]
        if not shape:
            yield self.read(name)
            return
        step = max(1, limit // max(1, self.bytes_of([name]) // max(1, shape[0])))
        for start in range(0, shape[0], step):
            yield self.rows(name, start, min(start + step, shape[0]))

    def gather(self, name: str, rows_N: torch.Tensor) -> torch.Tensor:
        """Some rows of a table, [N, ...], each read once; the rest of the table is left on disk."""
        wanted, place = rows_N.unique(return_inverse=True)
        starts = [0, *(torch.nonzero(wanted.diff() != 1).flatten() + 1).tolist(), len(wanted)]
        runs = [wanted[a:b] for a, b in pairwise(starts) if b > a]
        return torch.cat([self.rows(name, int(run[0]), int(run[-1]) + 1) for run in runs])[place]

    def bytes_of(self, names: Iterable[str]) -> int:
        """Stored size of some tensors, from the headers."""
        return sum(math.prod(self.shapes[name]) * BYTES[self.dtypes[name]] for name in names)


# Types that weights may have; the others are of quantised models.
FLOATS = ("F64", "F32", "F16", "BF16")


def _finite(part: torch.Tensor) -> bool:
    return bool(torch.isfinite(part).all())


def plan_shards(sizes: dict[str, int], limit: int = SHARD_BYTES) -> list[list[str]]:
    """Group tensor names, in order, into shards of at most `limit` bytes (a larger tensor stands alone)."""
    shards: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not shards or size > room:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= size
    return shards


def shard_names(count: int) -> list[str]:
    """File names in Hugging Face's convention."""
    if count == 1:
        return [SINGLE]
    return [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def write_shard(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write tensors in memory as one shard: aside, durable, then under its name.

    Raises:
        CheckpointError: the disk is full; nothing is left behind.
    """
    write_tensors(path, layout_of(tensors), whole(tensors))


def write_index(directory: Path, shards: dict[str, list[str]], total_bytes: int) -> None:
    """Write the index that maps tensors to shards; a single shard needs none."""
    if len(shards) > 1:
        weight_map = {name: file for file, names in shards.items() for name in names}
        write_json(directory / INDEX, {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})
