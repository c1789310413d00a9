"""Durable steps: what trains, its optimiser, the place in the data; written aside, then renamed."""

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from regear.core.errors import CheckpointError, one_line, writing
from regear.core.files import read_json, write_json
from regear.train.parallel import World

STATE = "state.json"
MOMENTS = ("exp_avg", "exp_avg_sq")


def save(place: Path, model: nn.Module, optimiser: torch.optim.Optimizer, state: dict[str, Any], world: World) -> None:
    """Make `place` hold a step; one of another number of processes can be read by any.

    Raises:
        CheckpointError: the disk is full, or the step cannot be written for another reason; the step before is kept.
    """
    aside = place.with_name(f".{place.name}.tmp")
    if world.leads:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    world.wait()
    try:
        with _quiet(), _told(place, "written"):
            dcp_save(_tensors(model, optimiser), checkpoint_id=str(aside), no_dist=world.size == 1)
    except Exception:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    if world.leads:
        write_json(aside / STATE, state)
        os.replace(aside, place)
        for older in place.parent.iterdir():
            if older != place:
                shutil.rmtree(older, ignore_errors=True)
    world.wait()


def latest(folder: Path) -> Path | None:
    """The newest finished step of a run, or None."""
    found = [place for place in folder.glob("[0-9]*") if (place / STATE).exists()]
    return max(found, key=lambda place: place.name, default=None)


def state_of(place: Path) -> dict[str, Any]:
    """What a step recorded beside the tensors."""
    return dict(read_json(place / STATE))


def load(place: Path, model: nn.Module, optimiser: torch.optim.AdamW, world: World) -> None:
    """Put a saved step back into the model and its new optimiser, in place.

    Raises:
        CheckpointError: it is damaged.
    """
    stored = FileSystemReader(str(place)).read_metadata().state_dict_metadata
    for name, parameter in _trained(model).items():
        if f"step.{name}" in stored:  # a parameter that no gradient has reached has no moments
            moments = {key: torch.zeros_like(parameter, requires_grad=False) for key in MOMENTS}
            optimiser.state[parameter] = {"step": torch.zeros(()), **moments}
    with _quiet(), _told(place, "read"):
        dcp_load(_tensors(model, optimiser), checkpoint_id=str(place), no_dist=world.size == 1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch warns of a single process, which is the usual case here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


@contextmanager
def _told(place: Path, done: str) -> Iterator[None]:
    """Torch's own exception, which `except Exception` lets pass, as one line."""
    try:
        yield
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        if isinstance(cause, OSError) and done == "written":
            with writing(place):
                raise cause from None
        raise CheckpointError(
            f"step {place.name} of {place.parent} cannot be {done} ({one_line(cause)[:200]}); run the same command "
            "again, after removing this step if it is damaged"
        ) from None


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _tensors(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """What trains, and what the optimiser keeps of each, by name; the same memory, so that loading fills it."""
    found: dict[str, Any] = {}
    for name, parameter in _trained(model).items():
        found[f"weight.{name}"] = parameter.detach()
        found |= {f"{key}.{name}": value for key, value in optimiser.state.get(parameter, {}).items()}
    return found
