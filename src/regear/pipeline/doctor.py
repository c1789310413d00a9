"""`regear doctor`: try each thing that regear needs, and say what works."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from regear.core.errors import one_line
from regear.core.files import home, write_text
from regear.core.machine import amx_granted, available_memory_bytes, cpu_flags


def examine() -> list[dict[str, Any]]:
    """One row a check: name, whether it works, detail, whether regear needs it."""
    checks: list[tuple[str, bool, Callable[[], str]]] = [
        ("torch", True, _torch),
        ("transformers", True, _transformers),
        ("gguf", True, lambda: __import__("gguf").__name__),
        ("cache writable", True, _cache),
        ("memory", True, _memory),
        ("bf16 products", False, _bf16),
        ("GPU", False, _gpu),
        ("pip (for the embedded model and texts)", False, _pip),
    ]
    return [_try(name, needed, check) for name, needed, check in checks]


def _try(name: str, needed: bool, check: Callable[[], str]) -> dict[str, Any]:
    try:
        return {"check": name, "works": True, "detail": check(), "needed": needed}
    except Exception as error:
        return {"check": name, "works": False, "detail": one_line(error) or type(error).__name__, "needed": needed}


def _torch() -> str:
    import torch

    torch.ones(2, 2) @ torch.ones(2, 2)
    return f"{torch.__version__}, {torch.get_num_threads()} threads"


def _transformers() -> str:
    import transformers

    import regear.models  # noqa: F401

    return transformers.__version__


def _cache() -> str:
    place = home()
    with tempfile.TemporaryDirectory(dir=_made(place)) as folder:
        write_text(Path(folder) / "probe", "x")
    return str(place)


def _made(place: Path) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    return place


def _memory() -> str:
    found = available_memory_bytes()
    return "unknown" if found is None else f"{found / 2**30:.1f} GiB available"


def _bf16() -> str:
    """In a process of its own: on some machines this is a fatal signal, not an exception."""
    code = "import regear, torch; a = torch.ones(256, 256, dtype=torch.bfloat16); print(float((a @ a)[0, 0]))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    amx = "granted" if amx_granted() else "advertised, not granted" if "amx_tile" in cpu_flags() else "absent"
    if result.returncode:
        raise RuntimeError(f"exit {result.returncode} (AMX {amx}); set ONEDNN_MAX_CPU_ISA=AVX512_CORE_FP16")
    return f"AMX {amx}, ONEDNN_MAX_CPU_ISA={os.environ.get('ONEDNN_MAX_CPU_ISA', 'unset')}"


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        raise LookupError("none; everything runs on the CPU")
    return torch.cuda.get_device_name()


def _pip() -> str:
    result = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, text=True, check=True)
    return result.stdout.split(" from ")[0]
