"""Files that appear whole or not at all, and their digests."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from regear.core.errors import CheckpointError, writing


def home() -> Path:
    """Where models, texts and calibrations are cached: `$REGEAR_HOME`, else `~/.cache/regear`."""
    return Path(os.environ.get("REGEAR_HOME") or Path.home() / ".cache" / "regear")


def aside(path: Path) -> Path:
    """The temporary name beside `path` under which it is written before the rename."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def publish(temporary: Path, path: Path) -> None:
    """Make a file that was written aside durable, then give it its name in one step."""
    with open(temporary, "rb") as handle:
        os.fsync(handle.fileno())
    os.replace(temporary, path)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def can_write(path: Path) -> bool:
    """Whether a file could be written here, as far as can be seen without writing: to be asked before long work."""
    above = path.parent
    while not above.exists() and above != above.parent:
        above = above.parent
    return not path.is_dir() and above.is_dir() and os.access(above, os.W_OK | os.X_OK)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically, creating its folder."""
    temporary = aside(path)
    with writing(temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        publish(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to `path` atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as sorted, indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        CheckpointError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"no {path.name} in {path.parent}; wanted a Hugging Face model directory") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); restore it from its source") from None


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest(value: Any) -> str:
    """The SHA-256 of any JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
