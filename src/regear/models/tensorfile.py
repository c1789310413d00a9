"""One safetensors file, read and written piece by piece.

A file is never mapped: mapped pages count as resident memory, so a large model would seem (and on a small machine be)
held whole. The layout is that of safetensors 0.4 and later: eight bytes of header length, a JSON header padded with
spaces to a multiple of eight, then the data without gaps, the widest type first and then by name.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from regear.core.errors import CheckpointError, writing
from regear.core.files import aside, publish

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
BYTES = {name: dtype.itemsize for name, dtype in DTYPES.items()} | {"F8_E4M3": 1, "F8_E5M2": 1}
# safetensors' own order of types: the widest first.
ORDER = ["I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL"]
HEADER_LIMIT = 100_000_000


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: its type's name, its shape, and the bytes [start, stop) of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class TensorFile:
    """A safetensors file, its header checked when it is opened.

    Raises:
        CheckpointError: the file is missing, damaged or truncated.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.handle = open(path, "rb", buffering=0)  # noqa: SIM115 - read from for as long as this object lives
            self.size = os.fstat(self.handle.fileno()).st_size
            self.entries = self._parse()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path.name} is damaged or truncated ({error}); fetch or copy it again") from None

    def _parse(self) -> dict[str, Entry]:
        length = int.from_bytes(self._bytes(0, 8), "little")
        if not 2 <= length <= min(HEADER_LIMIT, self.size - 8):
            raise ValueError(f"{self.size} bytes, of which {length} for the header")
        table: dict[str, Any] = json.loads(self._bytes(8, 8 + length))
        table.pop("__metadata__", None)
        entries = {name: _entry(name, row, 8 + length) for name, row in table.items()}
        place = 8 + length
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
            if entry.start != place:
                raise ValueError(f"tensor {name} starts at byte {entry.start}, not {place}")
            place = entry.stop
        if place != self.size:
            raise ValueError(f"{self.size} bytes where the header wants {place}")
        return entries

    def _bytes(self, start: int, stop: int) -> bytearray:
        content = bytearray(stop - start)
        self._fill(memoryview(content), start)
        return content

    def _fill(self, view: memoryview, start: int) -> None:
        done = 0
        while done < len(view):
            read = os.preadv(self.handle.fileno(), [view[done:]], start + done)
            if read == 0:
                raise ValueError(f"{self.size} bytes, the end is missing")
            done += read

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) along the first axis of a tensor, as stored; all of it by default (of a scalar, always).

        Raises:
            CheckpointError: the tensor cannot be read, or its type is not one torch has.
        """
        entry = self.entries.get(name)
        if entry is None or entry.dtype not in DTYPES:
            kind = "absent" if entry is None else f"stored as {entry.dtype}"
            raise CheckpointError(f"cannot read tensor {name} of {self.path.name}: it is {kind}")
        shape, width = entry.shape, entry.stop - entry.start
        if shape:
            stop = shape[0] if stop is None else stop
            width, shape = width // max(shape[0], 1), (stop - start, *shape[1:])
        place = entry.start + start * width
        found = torch.empty(shape, dtype=DTYPES[entry.dtype])
        if found.numel():
            try:
                self._fill(found.reshape(-1).view(torch.uint8).numpy().data, place)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"cannot read tensor {name} of {self.path.name}: {error}") from None
        return found

    def all(self) -> dict[str, torch.Tensor]:
        """Every tensor."""
        return {name: self.rows(name) for name in self.entries}


def _entry(name: str, row: dict[str, Any], base: int) -> Entry:
    dtype, shape, (start, stop) = str(row["dtype"]), tuple(row["shape"]), row["data_offsets"]
    if any(not isinstance(n, int) or n < 0 for n in (*shape, start, stop)) or stop < start:
        raise ValueError(f"tensor {name} has shape {shape} at {start} to {stop}")
    if dtype in BYTES and math.prod(shape) * BYTES[dtype] != stop - start:
        raise ValueError(f"tensor {name} of {dtype} {shape} takes {stop - start} bytes")
    return Entry(dtype, shape, base + start, base + stop)


Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]


def write_tensors(
    path: Path, layout: Layout, content: Callable[[str], Iterable[torch.Tensor]], *, durable: bool = True
) -> None:
    """Write a file aside, tensor by tensor, and give it its name; byte for byte what safetensors would write.

    Args:
        layout: type and shape of every tensor.
        content: a tensor by name, in pieces along its first axis that add up to it; asked for in the file's order.
        durable: whether the file must survive the machine, not only the process.

    Raises:
        CheckpointError: the disk is full; nothing is left behind.
    """
    names = sorted(layout, key=lambda name: (ORDER.index(NAMES[layout[name][0]]), name))
    temporary = aside(path)
    with writing(temporary):
        with open(temporary, "wb", buffering=0) as handle:
            _put(handle.fileno(), memoryview(_header(names, layout)))
            for name in names:
                dtype, shape = layout[name]
                wanted = math.prod(shape) * dtype.itemsize
                for piece in content(name):
                    raw = piece.detach().to("cpu", dtype).contiguous().reshape(-1).view(torch.uint8)
                    wanted -= len(raw)
                    _put(handle.fileno(), raw.numpy().data)
                if wanted:
                    raise ValueError(f"tensor {name}: {wanted} bytes fewer than its shape {shape} wants")
        if durable:
            publish(temporary, path)
        else:
            os.replace(temporary, path)
    path.chmod(0o644)


def _header(names: Iterable[str], layout: Layout) -> bytes:
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name in names:
        dtype, shape = layout[name]
        stop = place + math.prod(shape) * dtype.itemsize
        table[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [place, stop]}
        place = stop
    raw = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def _put(file: int, view: memoryview) -> None:
    while len(view):
        view = view[os.write(file, view) :]


def layout_of(tensors: dict[str, torch.Tensor]) -> Layout:
    """The layout of tensors in memory."""
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def whole(tensors: dict[str, torch.Tensor]) -> Callable[[str], Iterator[torch.Tensor]]:
    """Tensors in memory as the content of `write_tensors`."""

    def content(name: str) -> Iterator[torch.Tensor]:
        yield tensors[name]

    return content
