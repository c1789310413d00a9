"""Where a checkpoint comes from: digests of its source, and the fingerprint that decides whether a run may resume."""

import subprocess
from pathlib import Path
from typing import Any

from regear.core.files import digest, sha256

MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.py")


def model_files(directory: Path) -> list[Path]:
    """The files that define a model, in a fixed order."""
    return sorted({path for pattern in MODEL_FILES for path in directory.glob(pattern)})


def model_digest(directory: Path) -> str:
    """One digest over every file that defines the model; names count, the directory's place does not."""
    return digest({path.name: sha256(path) for path in model_files(directory)})


def fingerprint(parts: dict[str, Any]) -> str:
    """The identity of a result: model, texts, recipe, versions, thread count. Equal parts give equal bytes."""
    return digest(parts)


def git_commit(directory: Path, *paths: str) -> str:
    """The checkout's commit, with `+` when files (of `paths`, if given) differ from it, or `unknown`."""
    git = ["git", "-C", str(directory)]
    status = [*git, "status", "--porcelain", "--", *paths]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(status, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+" if changed.strip() else "")
