"""Durable steps: whole or not there, one at a time, and no larger than what trains."""

import resource

import pytest
import torch

from regear.core.errors import CheckpointError
from regear.train import checkpoint
from regear.train.optim import adamw, select
from regear.train.parallel import World
from tests.train.small import make, recipe_of, same, weights


def trained(pattern="*", seed=0):
    model = make(seed)
    select(model, [pattern], [])
    return model, adamw(model, recipe_of(relative=False))  # relative rates are of the weights a stage began with


def step(model, optimiser, only=None):
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and (only is None or only in name):
            parameter.grad = torch.full_like(parameter, 0.5)
    optimiser.step()


def test_weights_and_moments_come_back_even_where_no_gradient_came(tmp_path):
    model, optimiser = trained()
    step(model, optimiser, only="self_attn")
    checkpoint.save(tmp_path / "000-1", model, optimiser, {"step": 1}, World())
    other, new = trained(seed=3)
    checkpoint.load(tmp_path / "000-1", other, new, World())
    assert same(weights(model), weights(other))
    assert len(new.state) == len(optimiser.state) == 8
    for one, two in ((model, optimiser), (other, new)):
        step(one, two)
    assert same(weights(model), weights(other))


def test_a_frozen_head_is_not_stored(tmp_path):
    sizes = {}
    for pattern in ("*.self_attn.q_proj.*", "*"):
        model, optimiser = trained(pattern)
        step(model, optimiser)
        place = tmp_path / pattern.strip("*.")
        checkpoint.save(place / "1", model, optimiser, {}, World())
        sizes[pattern] = sum(file.stat().st_size for file in place.rglob("*.distcp"))
    count = sum(p.numel() for name, p in make().named_parameters() if "q_proj" in name)
    assert 12 * count < sizes["*.self_attn.q_proj.*"] < sizes["*"] / 3


def test_only_the_newest_finished_step_counts_and_is_kept(tmp_path):
    model, optimiser = trained()
    assert checkpoint.latest(tmp_path / "steps") is None
    for number in (9, 10):
        checkpoint.save(tmp_path / f"steps/000-{number:03d}", model, optimiser, {"step": number}, World())
    (tmp_path / "steps/.000-011.tmp").mkdir()
    found = checkpoint.latest(tmp_path / "steps")
    assert checkpoint.state_of(found) == {"step": 10}
    checkpoint.save(tmp_path / "steps/000-012", model, optimiser, {"step": 12}, World())
    assert [place.name for place in (tmp_path / "steps").iterdir()] == ["000-012"]


def test_a_full_disk_is_one_line_and_keeps_the_step_before(tmp_path):
    """A limit on file size stands for the disk."""
    model, optimiser = trained()
    checkpoint.save(tmp_path / "000-1", model, optimiser, {"step": 1}, World())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="no room to write 000-2") as caught:
            checkpoint.save(tmp_path / "000-2", model, optimiser, {"step": 2}, World())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert [place.name for place in tmp_path.iterdir()] == ["000-1"]


def test_a_damaged_step_is_one_line(tmp_path):
    model, optimiser = trained()
    checkpoint.save(tmp_path / "000-1", model, optimiser, {"step": 1}, World())
    for file in (tmp_path / "000-1").glob("*.distcp"):
        file.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"000-1 .* cannot be read"):
        checkpoint.load(tmp_path / "000-1", model, optimiser, World())
