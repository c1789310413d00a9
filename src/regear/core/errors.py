"""The error tree. Every message says what was found, what was wanted, and what to do, in one line."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DISK_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


class RegearError(Exception):
    """A mistake the caller can mend; the command line prints it and exits with `exit_code`."""

    exit_code = 2


class RecipeError(RegearError):
    """A wrong option, recipe key or combination."""


class IncompatibleModel(RegearError):
    """A model that the requested change cannot hold."""


class CheckpointError(RegearError):
    """A model directory, or an output, that is missing, damaged, unwritable or already there."""


class DataError(RegearError):
    """A text or task file that is missing, unreadable or too short."""


class BackendError(RegearError):
    """A part below regear failed; not the caller's mistake."""

    exit_code = 3


def one_line(message: object) -> str:
    """The message on one line, as the command line prints it."""
    return " ".join(str(message).split())


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full disk or an unwritable place into one clear `CheckpointError`, and remove the half-written file."""
    try:
        yield
    except BaseException as error:
        path.unlink(missing_ok=True)
        # safetensors raises its own exception type, with the system's words inside.
        full = isinstance(error, OSError) and error.errno in DISK_FULL
        full = full or any(f"os error {code}" in str(error) for code in DISK_FULL)
        if full:
            raise CheckpointError(
                f"no room to write {path.name} in {path.parent}: {one_line(error)}; "
                "free some space or choose another output, then run the same command again"
            ) from error
        if isinstance(error, PermissionError):
            raise CheckpointError(f"may not write in {path.parent}; choose another output directory") from error
        raise
