"""Processes that start with torch already imported: alone, or joined as torchrun joins them."""

import faulthandler
import multiprocessing
import os
import socket
import sys
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["regear.healing.job", "regear.conversion.convert", "tests.train.small"])
LIMIT = 240  # seconds


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def joined(rank: int, size: int, port: int) -> dict[str, str]:
    """The environment of one process of several on this machine."""
    values = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=size, MASTER_ADDR="localhost", MASTER_PORT=port)
    return {name: str(value) for name, value in values.items()} | {"GLOO_SOCKET_IFNAME": "lo"}


def _child(environment, said, work, args):
    os.environ.update(environment)
    with open(said, "w") as file:
        os.dup2(file.fileno(), 2)
    faulthandler.enable(2)
    sys.exit(work(*args))


def start(place: Path, work, *args, size: int = 1) -> tuple[list[int], list[str]]:
    """Run `work(*args)` in new processes; their exit codes, and what each wrote to standard error."""
    port = free_port()
    environments = [joined(rank, size, port) if size > 1 else {} for rank in range(size)]
    said = [place / f"said-{rank}-{port}" for rank in range(size)]
    processes = [
        CONTEXT.Process(target=_child, args=(environment, file, work, args))
        for environment, file in zip(environments, said, strict=True)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LIMIT)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes], [file.read_text() for file in said]
