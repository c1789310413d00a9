"""A file of records that only grows, and that a process may be killed over at any byte."""

import fcntl
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from regear.core.errors import DataError
from regear.core.files import aside, sync_folder

MAGIC = b"regear journal 1\n"
LENGTH, SUM = struct.Struct("<Q"), struct.Struct("<I")
HEAD = LENGTH.size + SUM.size


class Journal:
    """Records of bytes at `path`: length, CRC-32 of length and content, content. One process at a time holds it open.

    A record that was cut off at the end is dropped on opening.

    Raises:
        DataError: the file is held by another process, is no journal, is damaged before its end, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failed = False
        with self._careful():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.handle: BinaryIO = open(path, "a+b", buffering=0)  # noqa: SIM115 - it is the lock
            try:
                self._begin()
            except BaseException:
                self.handle.close()
                raise

    def _begin(self) -> None:
        """Lock the file and cut its end back to whole records."""
        self._lock(self.handle)
        if not os.path.samestat(os.fstat(self.handle.fileno()), os.stat(self.path)):
            raise DataError(f"{self.path} was replaced by another process; open it again when that has ended")
        for left in self.path.parent.glob(f".{self.path.name}.*.tmp"):
            left.unlink()
        self.handle.seek(0)
        found = self.handle.read(len(MAGIC))
        if not MAGIC.startswith(found):
            raise DataError(
                f"{self.path} begins with {found!r}; wanted a journal, or a path where there is no file yet"
            )
        if found != MAGIC:
            self.handle.truncate(0)
            _write(self.handle, MAGIC)
        self.size = len(MAGIC)
        for record in self.records():
            self.size += HEAD + len(record)
        self.handle.truncate(self.size)
        self.sync()
        sync_folder(self.path.parent)

    def _lock(self, handle: BinaryIO) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{self.path} is held open by another process; end that one, or choose another path"
            ) from None

    def records(self) -> Iterator[bytes]:
        """The content of every record, in order, up to one that was cut off.

        Raises:
            DataError: a record is damaged, and others follow it.
        """
        size, at = os.fstat(self.handle.fileno()).st_size, len(MAGIC)
        while size - at >= HEAD:
            self.handle.seek(at)
            head = _read(self.handle, HEAD)
            (length,), (wanted,) = LENGTH.unpack(head[: LENGTH.size]), SUM.unpack(head[LENGTH.size :])
            if length > size - at - HEAD:
                return
            content = _read(self.handle, length)
            if _sum(content) != wanted:
                # The system may have made room at the end without writing to it before the power went.
                if at + HEAD + length == size or not (any(head) or any(content) or any(self.handle.read())):
                    return
                raise DataError(f"{self.path} is damaged at byte {at} of {size}; restore it from a copy, or begin anew")
            yield content
            at += HEAD + length

    def append(self, content: bytes) -> None:
        """One more record, whole or not at all; on disk for sure after `sync`.

        Raises:
            DataError: it cannot be written.
        """
        with self._careful():
            try:
                _write(self.handle, _framed(content))
            except OSError:
                self.handle.truncate(self.size)
                raise
        self.size += HEAD + len(content)

    def sync(self) -> None:
        """Wait until the disk has every record.

        Raises:
            DataError: the system could not write them; nothing more is taken then.
        """
        with self._careful():
            try:
                os.fsync(self.handle.fileno())
            except OSError:
                self.failed = True  # what the system held may be lost, though a second try would succeed
                raise

    def replace(self, contents: Iterable[bytes]) -> None:
        """Hold these records instead, in one step.

        Raises:
            DataError: they cannot be written; the old ones stay.
        """
        temporary = aside(self.path)
        with self._careful():
            try:
                size = self._write_aside(temporary, contents)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
        self.size = size

    def _write_aside(self, temporary: Path, contents: Iterable[bytes]) -> int:
        temporary.unlink(missing_ok=True)
        handle: BinaryIO = open(temporary, "a+b", buffering=0)  # noqa: SIM115 - it becomes the journal
        try:
            self._lock(handle)
            size = _write(handle, MAGIC)
            for content in contents:
                size += _write(handle, _framed(content))
            os.fsync(handle.fileno())
            os.replace(temporary, self.path)
        except BaseException:
            handle.close()
            raise
        self.handle.close()
        self.handle = handle
        sync_folder(self.path.parent)
        return size

    def close(self) -> None:
        """Let others open it."""
        self.handle.close()

    @contextmanager
    def _careful(self) -> Iterator[None]:
        if self.failed:
            raise DataError(f"{self.path} could not be written before; mend the disk and open it again")
        try:
            yield
        except OSError as error:
            raise DataError(f"cannot write {self.path}: {error.strerror}; check the path and the room") from None


def _framed(content: bytes) -> bytes:
    return LENGTH.pack(len(content)) + SUM.pack(_sum(content)) + content


def _sum(content: bytes) -> int:
    return zlib.crc32(content, zlib.crc32(LENGTH.pack(len(content))))


def _read(handle: BinaryIO, size: int) -> bytes:
    """So many bytes; the system gives at most 2 GiB at once."""
    parts = []
    while size and (part := handle.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _write(handle: BinaryIO, content: bytes) -> int:
    """All of it; how many bytes it was."""
    left = memoryview(content)
    while left:
        left = left[handle.write(left) :]
    return len(content)
