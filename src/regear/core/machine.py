"""What this machine is, and the one guard that must run before torch loads.

Some hosts advertise AMX but do not grant it; oneDNN then dies with SIGILL on the first bf16 product. The kernel
tells: `arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA)` fails there. Only those machines are capped, others keep AMX.
"""

import ctypes
import importlib.metadata
import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

SYS_ARCH_PRCTL = 158
ARCH_REQ_XCOMP_PERM = 0x1023
XFEATURE_XTILEDATA = 18
ISA_WITHOUT_AMX = "AVX512_CORE_FP16"
PACKAGES = ("regear", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pydantic", "gguf")


def cpu_flags() -> set[str]:
    """The feature flags of the first processor, as Linux prints them; empty elsewhere."""
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("flags"):
                    return set(line.partition(":")[2].split())
    except OSError:
        pass
    return set()


def amx_granted() -> bool:
    """Whether the kernel lets this process use AMX tiles."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    return syscall(SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0


def guard_cpu() -> None:
    """Cap oneDNN where AMX is advertised but not granted. Must run before torch is imported."""
    if "ONEDNN_MAX_CPU_ISA" not in os.environ and "amx_tile" in cpu_flags() and not amx_granted():
        os.environ["ONEDNN_MAX_CPU_ISA"] = ISA_WITHOUT_AMX


def peak_rss_bytes() -> int:
    """The most resident memory this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_memory_bytes() -> int | None:
    """Memory that can still be taken, or None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def cpu_model() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers; read from metadata, nothing imported."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def describe() -> dict[str, Any]:
    """The machine and its software, as bug reports and benchmarks record it."""
    return {
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cpu": cpu_model(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "load": round(os.getloadavg()[0], 2),
            "available_memory_bytes": available_memory_bytes(),
        },
        "versions": versions(),
        "onednn_max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA", "unset"),
    }
