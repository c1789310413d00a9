"""vLLM's server on a port of this machine, until a block ends."""

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.engines.engine import python
from tests.processes import free_port

SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
FLAGS = ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "8", "--max-model-len", "256"]


@contextmanager
def vllm_server(model: Path, name: str, log: Path, limit: float = 300) -> Iterator[str]:
    """Its address, once it answers; `log` holds what it says."""
    port = free_port()
    # Not the command `vllm`: it asks for the version of a package `vllm`, and the CPU's is called otherwise.
    command = [str(python()), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), *FLAGS]
    command += ["--served-model-name", name, "--host", "127.0.0.1", "--port", str(port)]
    settings = os.environ | SETTINGS
    settings.pop("PYTHONPATH", None)
    with log.open("wb") as said:
        # A session of its own: the server's children end with it.
        process = subprocess.Popen(command, stdout=said, stderr=said, env=settings, start_new_session=True)
    try:
        deadline = time.monotonic() + limit
        while not _ready(f"http://127.0.0.1:{port}/health"):
            ended = process.poll() is not None
            assert not ended, f"vLLM ended: {log.read_text(errors='replace')[-3000:]}"
            assert time.monotonic() < deadline, f"vLLM is not up: {log.read_text(errors='replace')[-3000:]}"
            time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False
