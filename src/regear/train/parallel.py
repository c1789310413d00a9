"""Processes: who reads what, sums over all, and the one function that spreads a model over them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.rendezvous import rendezvous

BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
PATIENCE = timedelta(hours=12)  # the others wait while the first process measures


@dataclass(frozen=True)
class World:
    """This process among all: `rank` of `size`."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def leads(self) -> bool:
        """Whether this process writes what all share."""
        return self.rank == 0

    def sum(self, value: float) -> float:
        """The sum of a number over all processes."""
        if self.size == 1:
            return value
        return float(self.sums(torch.tensor(value, dtype=torch.float64, device=self.device)))

    def sums(self, values: torch.Tensor) -> torch.Tensor:
        """The sums of several numbers over all processes, in place and where they are."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()


def processes() -> int:
    """How many processes `torchrun` started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def world(device: torch.device) -> Iterator[World]:
    """Join the processes that `torchrun` started; alone without it.

    What goes wrong is raised by the process that met it first; the others, which meet it too or lose the first, exit
    without a word.
    """
    size = processes()
    if size == 1:
        yield World()
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    dist.init_process_group(BACKENDS[device.type], store=store, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield World(rank, size, device.type)
    except Exception as error:
        if not _first(store):
            raise SystemExit(getattr(error, "exit_code", 3)) from None
        raise
    finally:
        dist.destroy_process_group()


def _first(store: Any) -> bool:
    """Whether no other process has failed before."""
    try:
        return store.add("failed", 1) == 1
    except RuntimeError:  # gone with the process that kept it
        return False


def parallelize(root: nn.Module, layers: list[nn.Module], world: World) -> None:
    """Shard parameters, gradients and optimiser state over all processes (FSDP2), one group a layer.

    Attention modules are groups of their own, so that an objective may call them alone.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(world.device, (world.size,))
    for layer in layers:
        attention = getattr(layer, "self_attn", None)
        if attention is not None:
            fully_shard(attention, mesh=mesh)
        fully_shard(layer, mesh=mesh)
    fully_shard(root, mesh=mesh)


def sync_gradients(root: nn.Module, wanted: bool) -> None:
    """Whether the next backward pass sums gradients over all processes, or keeps this one's own; nothing if alone."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(root, FSDPModule):
        root.set_requires_gradient_sync(wanted)


def gathered(model: nn.Module) -> dict[str, torch.Tensor]:
    """All tensors of a model, whole and on the CPU; none on processes other than the first."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    if not dist.is_initialized():
        return {name: value.cpu() for name, value in model.state_dict().items()}
    found: dict[str, Any] = get_model_state_dict(model, options=options)
    return found
