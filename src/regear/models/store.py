"""Safetensors, tensor by tensor: reading a checkpoint strictly and writing one atomically."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from regear.core.errors import CheckpointError, writing
from regear.core.files import aside, publish, read_json, write_json
from regear.core.recipe import closest

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "consolidated*.pt*")
# Buffers that old checkpoints carry and every loader recomputes.
RECOMPUTED = ("rotary_emb.inv_freq", "self_attn.rotary_emb.inv_freq")
SHARD_BYTES = 1 << 30


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
        self._handles: dict[str, Any] = {}
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
            return dict.fromkeys(self._open(SINGLE).keys(), SINGLE)
        pickles = [path.name for pattern in PICKLES for path in self.directory.glob(pattern)]
        if pickles:
            raise CheckpointError(
                f"{self.directory} holds pickle weights ({pickles[0]}), which can run code when read; wanted "
                "safetensors: load it where you trust it and save_pretrained(..., safe_serialization=True)"
            )
        raise CheckpointError(f"no {SINGLE} or {INDEX} in {self.directory}; wanted a Hugging Face model directory")

    def _open(self, file: str) -> Any:
        try:
            return safe_open(self.directory / file, "pt")
        except (SafetensorError, OSError) as error:
            size = (self.directory / file).stat().st_size
            raise CheckpointError(
                f"{file} is damaged or truncated ({size} bytes: {error}); fetch or copy it again"
            ) from None

    def _read_header(self, file: str) -> None:
        handle = self._handles[file] = self._open(file)
        for name in handle.keys():  # noqa: SIM118 - not a dict
            view = handle.get_slice(name)
            self.shapes[name] = tuple(view.get_shape())
            self.dtypes[name] = view.get_dtype()

    def require(self, wanted: dict[str, tuple[int, ...]]) -> None:
        """Check that the checkpoint holds exactly the `wanted` tensors, so that none is lost or misread.

        Raises:
            CheckpointError: a missing, misshapen or unexpected tensor, by name.
        """
        odd = sorted({dtype for name, dtype in self.dtypes.items() if name in wanted and dtype not in DTYPES})
        if odd:
            raise CheckpointError(f"weights are stored as {odd[0]}; wanted one of {', '.join(DTYPES)}: unquantise them")
        for name, shape in wanted.items():
            if name not in self.shapes:
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
        try:
            tensor: torch.Tensor = self._handles[self.files.get(name, SINGLE)].get_tensor(name)
        except (SafetensorError, KeyError, OSError) as error:
            raise CheckpointError(f"cannot read tensor {name}: {error}") from None
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(f"tensor {name} holds NaN or infinity; the source weights are damaged")
        return tensor

    def bytes_of(self, names: Iterable[str]) -> int:
        """Stored size of some tensors, from the headers."""
        return sum(_count(self.shapes[name]) * BYTES[self.dtypes[name]] for name in names)


BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
BYTES |= {"F8_E4M3": 1, "F8_E5M2": 1}
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


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
    """Write one shard aside, make it durable, and give it its name.

    Raises:
        CheckpointError: the disk is full; nothing is left behind.
    """
    temporary = aside(path)
    with writing(temporary):
        save_file({name: t.contiguous() for name, t in tensors.items()}, temporary, metadata={"format": "pt"})
        publish(temporary, path)
    path.chmod(0o644)


def write_index(directory: Path, shards: dict[str, list[str]], total_bytes: int) -> None:
    """Write the index that maps tensors to shards; a single shard needs none."""
    if len(shards) > 1:
        weight_map = {name: file for file, names in shards.items() for name in names}
        write_json(directory / INDEX, {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})
