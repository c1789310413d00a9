"""Processes: who reads what, sums over all, and the one function that spreads a model over them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict


@dataclass(frozen=True)
class World:
    """This process among all: `rank` of `size`."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes what all share."""
        return self.rank == 0

    def sum(self, value: float) -> float:
        """The sum of a number over all processes."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        if torch.cuda.is_available():
            total = total.cuda()
        dist.all_reduce(total)
        return float(total)

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()


def processes() -> int:
    """How many processes `torchrun` started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def world() -> Iterator[World]:
    """Join the processes that `torchrun` started; alone without it."""
    size = processes()
    if size == 1:
        yield World()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield World(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()


def parallelize(root: nn.Module, layers: list[nn.Module]) -> None:
    """Shard parameters, gradients and optimiser state over all processes (FSDP2), one group a layer.

    Attention modules are groups of their own, so that an objective may call them alone.
    """
    from torch.distributed.fsdp import fully_shard

    for layer in layers:
        attention = getattr(layer, "self_attn", None)
        if attention is not None:
            fully_shard(attention)
        fully_shard(layer)
    fully_shard(root)


def gathered(model: nn.Module) -> dict[str, torch.Tensor]:
    """All tensors of a model, whole and on the CPU, whether it is spread over processes or not."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    if not dist.is_initialized():
        return model.state_dict()
    found: dict[str, Any] = get_model_state_dict(model, options=options)
    return found
