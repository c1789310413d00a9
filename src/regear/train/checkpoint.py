"""Durable steps: what trains, its optimiser, the place in the data; written aside, then renamed."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from regear.core.files import read_json, write_json
from regear.train.parallel import World

STATE = "state.json"
OPTIONS = StateDictOptions(ignore_frozen_params=True, strict=False)


def save(place: Path, model: nn.Module, optimiser: torch.optim.Optimizer, state: dict[str, Any], world: World) -> None:
    """Make `place` hold a step; one of another number of processes can be read by any."""
    aside = place.with_name(f".{place.name}.tmp")
    if world.leads:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    world.wait()
    weights, moments = get_state_dict(model, optimiser, options=OPTIONS)
    dcp_save({"model": weights, "optimiser": moments}, checkpoint_id=str(aside), no_dist=world.size == 1)
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


def load(place: Path, model: nn.Module, optimiser: torch.optim.Optimizer, world: World) -> None:
    """Put a saved step back into the model and its optimiser."""
    weights, moments = get_state_dict(model, optimiser, options=OPTIONS)
    held: dict[str, Any] = {"model": weights, "optimiser": moments}
    dcp_load(held, checkpoint_id=str(place), no_dist=world.size == 1)
    set_state_dict(
        model, optimiser, model_state_dict=held["model"], optim_state_dict=held["optimiser"], options=OPTIONS
    )
