"""Rows of training files, read one at a time from any place: text files, JSONL, parquet, the built-in texts.

A row's position is a number that its file alone understands (a byte offset, a row number), so that a stopped stream
can go back to the very rows it held.
"""

import json
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from regear.core.errors import DataError, one_line
from regear.tasks.text import BUILTIN, read_documents

Row = dict[str, Any]
READ_ROWS = 256
# Files that would be trained on as they lie on the disk if they were taken for plain text.
NOT_TEXT = {".json", ".csv", ".tsv", ".arrow", ".feather", ".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".7z"}
NOT_TEXT |= {".pdf", ".docx", ".epub", ".bin", ".npy", ".pt", ".safetensors"}


class Source(ABC):
    """One file of rows."""

    name: str
    size: int

    @abstractmethod
    def rows(self, start: int = 0) -> Iterator[tuple[int, Row]]:
        """Every row from the position `start` on, with its position."""

    @abstractmethod
    def where(self, position: int) -> str:
        """The row as a person would find it: the file and the line or row, counted from 1."""

    def share(self, position: int) -> float:
        """The share of the file before a position."""
        return position / self.size

    def pick(self, positions: Iterable[int]) -> dict[int, Row]:
        """The rows at these positions, and no others read."""
        return {position: next(self.rows(position))[1] for position in positions}


class TextFile(Source):
    """A text file as one row `{text}`."""

    def __init__(self, path: Path) -> None:
        self.path, self.name, self.size = path, str(path), _size(path)

    def rows(self, start: int = 0) -> Iterator[tuple[int, Row]]:
        yield 0, {"text": read_documents([self.path], "training")[0].text}

    def where(self, position: int) -> str:
        return self.name


class BuiltinText(Source):
    """One document of a built-in split as one row `{text}`."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self.text, self.size = name, text, len(text)

    def rows(self, start: int = 0) -> Iterator[tuple[int, Row]]:
        yield 0, {"text": self.text}

    def where(self, position: int) -> str:
        return self.name


class JsonLines(Source):
    """A JSON object a line; the position is the line's byte offset. Blank lines are passed over."""

    def __init__(self, path: Path) -> None:
        self.path, self.name, self.size = path, str(path), _size(path)

    def rows(self, start: int = 0) -> Iterator[tuple[int, Row]]:
        with open(self.path, "rb") as file:
            file.seek(start)
            while line := file.readline():
                position = file.tell() - len(line)
                if line.strip():
                    yield position, self._parse(line, position)

    def where(self, position: int) -> str:
        line = 1
        with open(self.path, "rb") as file:
            while file.tell() < position and file.readline():
                line += 1
        return f"{self.name}, line {line}"

    def _parse(self, line: bytes, position: int) -> Row:
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise DataError(f"{self.where(position)}: not UTF-8 (byte {error.start}); convert the file") from None
        except ValueError as error:
            raise DataError(f"{self.where(position)}: not JSON ({error}); wanted one object a line") from None
        if not isinstance(row, dict):
            raise DataError(f"{self.where(position)}: found {type(row).__name__}, wanted a JSON object")
        return row


class Parquet(Source):
    """A parquet file; the position is the row's number. Read by record batches, not whole."""

    def __init__(self, path: Path) -> None:
        self.path, self.name, self.size = path, str(path), _size(path)
        with self._open() as file:
            meta = file.metadata
            self.ends = list(accumulate(meta.row_group(i).num_rows for i in range(meta.num_row_groups)))

    def rows(self, start: int = 0) -> Iterator[tuple[int, Row]]:
        with self._open() as file:
            for group in range(bisect_right(self.ends, start), len(self.ends)):
                for position, row in self._group(file, group):
                    if position >= start:
                        yield position, row

    def where(self, position: int) -> str:
        return f"{self.name}, row {position + 1}"

    def share(self, position: int) -> float:
        return position / self.ends[-1]

    def pick(self, positions: Iterable[int]) -> dict[int, Row]:
        wanted = set(positions)
        with self._open() as file:
            groups = sorted({bisect_right(self.ends, position) for position in wanted})
            return {at: row for group in groups for at, row in self._group(file, group) if at in wanted}

    def _group(self, file: Any, group: int) -> Iterator[tuple[int, Row]]:
        position = self.ends[group - 1] if group else 0
        for batch in file.iter_batches(batch_size=READ_ROWS, row_groups=[group]):
            for row in batch.to_pylist():
                yield position, row
                position += 1

    def _open(self) -> Any:
        try:
            import pyarrow
            from pyarrow.parquet import ParquetFile
        except ImportError:
            raise DataError(
                f"{self.name}: reading parquet needs pyarrow; install regear[train], or give JSONL"
            ) from None
        try:
            return ParquetFile(self.path)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{self.name}: not a readable parquet file ({one_line(error)})") from None


def _size(path: Path) -> int:
    if path.is_dir():
        raise DataError(f"{path} is a directory; wanted a text, JSONL or parquet file")
    try:
        with open(path, "rb"):
            size = path.stat().st_size
    except FileNotFoundError:
        raise DataError(f"no training file {path}; give an existing file") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; give a readable file") from None
    if not size:
        raise DataError(f"{path} is empty; wanted rows or text")
    return size


def _format(path: Path) -> Callable[[Path], Source]:
    suffix = path.suffix.lower()
    if suffix in NOT_TEXT:
        raise DataError(f"{path}: {suffix} files are not read; give JSONL, parquet or plain text")
    formats: dict[str, Callable[[Path], Source]] = {".jsonl": JsonLines, ".parquet": Parquet}
    return formats.get(suffix, TextFile)


def open_sources(files: Sequence[str | Path], split: str = "training") -> list[Source]:
    """One source a file; the word `builtin` stands for the documents of that split of the built-in texts.

    Raises:
        DataError: no file, or one is missing, empty, unreadable or of a format that is not read.
    """
    if not files:
        raise DataError("no training text; give files, or the word builtin")
    sources: list[Source] = []
    for file in files:
        if str(file) == BUILTIN:
            documents = read_documents([BUILTIN], split)
            sources += [BuiltinText(f"{BUILTIN}:{split}, document {i}", d.text) for i, d in enumerate(documents, 1)]
            continue
        path = Path(file).expanduser()
        sources.append(_format(path)(path))
    return sources
