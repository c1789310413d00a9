"""Which parameters train, which decay, and the rate of every step."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn

from regear.core.errors import RecipeError
from regear.train.optim import adamw, groups, rate, select
from tests.train.small import make, recipe_of


def model_with(*shapes):
    """A module that has parameters of these dotted names and shapes."""
    root = nn.Module()
    for name, *shape in shapes:
        *path, last = name.split(".")
        place = root
        for part in path:
            if not hasattr(place, part):
                place.add_module(part, nn.Module())
            place = getattr(place, part)
        place.register_parameter(last, nn.Parameter(torch.zeros(*shape)))
    return root


DECAYING = [
    ("layers.0.mlp.gate_proj.weight", 4, 2),
    ("layers.0.self_attn.q_proj.weight", 2, 2),
    ("layers.0.mixer.in_proj.weight", 2, 2),
    ("layers.0.D_proj.weight", 2, 2),
    ("embed_tokens.weight", 9, 2),
]
PLAIN = [
    ("layers.0.input_layernorm.weight", 2),
    ("layers.0.self_attn.q_norm.weight", 2, 2),
    ("layers.0.self_attn.q_proj.bias", 2),
    ("layers.0.mlp.gate.weight", 4, 2),
    ("layers.0.mixer.A_log", 2, 2),
    ("layers.0.mixer.dt_bias", 2),
    ("layers.0.mixer.D", 2, 2),
]


def test_norms_biases_gates_and_state_space_parameters_never_decay():
    model = model_with(*DECAYING, *PLAIN, ("frozen.weight", 2, 2))
    model.frozen.weight.requires_grad_(False)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found: dict[float, set[str]] = {}
    for group in groups(model, recipe_of(weight_decay=0.1, relative=False)):
        found.setdefault(group["weight_decay"], set()).update(names[p] for p in group["params"])
    assert found == {0.1: {row[0] for row in DECAYING}, 0.0: {row[0] for row in PLAIN}}


def test_relative_rates_are_shares_of_each_parameters_size():
    """Adam moves every entry by the rate: without a share of its size, small factors are torn and large ones stand."""
    model = model_with(("small.weight", 4, 4), ("large.weight", 4, 4), ("zero.bias", 4))
    for name, value in (("small", 0.01), ("large", 3.0)):
        torch.nn.init.constant_(model.get_submodule(name).weight, value)
    torch.nn.init.zeros_(model.zero.bias)
    relative, plain = (groups(model, recipe_of(relative=share)) for share in (True, False))
    assert [round(group["scale"], 6) for group in relative] == [0.01, 3.0, 1e-3]
    assert {group["scale"] for group in plain} == {1.0}


def test_a_step_decays_every_parameter_by_the_same_share():
    model = model_with(("small.weight", 4, 4), ("large.weight", 4, 4), ("zero.bias", 4))
    for name, value in (("small", 0.01), ("large", 3.0)):
        torch.nn.init.constant_(model.get_submodule(name).weight, value)
    for relative in (True, False):
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        optimiser = adamw(model, recipe_of(weight_decay=0.5, relative=relative))
        for group in optimiser.param_groups:
            group["lr"] = 0.1 * group["scale"]
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimiser.step()
        for name in ("small.weight", "large.weight"):
            torch.testing.assert_close(model.get_parameter(name), before[name] * (1 - 0.1 * 0.5))


def test_parameters_of_one_decay_and_rate_are_one_group():
    found = groups(make(), recipe_of(relative=False))
    assert sorted(group["weight_decay"] for group in found) == [0.0, 0.01]
    assert sum(len(group["params"]) for group in found) == len(list(make().parameters()))


def test_freeze_wins_over_train():
    model = make()
    chosen = select(model, ["*.self_attn.*", "*norm.weight"], ["*.layers.1.*"])
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert chosen == trainable
    attention = [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkvo"]
    norms = [f"model.layers.0.{name}_layernorm.weight" for name in ("input", "post_attention")]
    assert chosen == [*attention, *norms, "model.norm.weight"]


@pytest.mark.parametrize(
    ("train", "freeze", "message"),
    [
        (["*.self_atn.*"], [], "'\\*.self_atn.\\*' \\(did you mean 'self_attn'\\?\\)"),
        (["*.self_attn.*", "nothing.like.it"], [], "'nothing.like.it'"),
        (["*.mlp.*"], ["model.*"], "nothing is left to train"),
    ],
)
def test_patterns_that_choose_nothing_are_refused(train, freeze, message):
    with pytest.raises(RecipeError, match=message):
        select(make(), train, freeze)


def test_the_cosine_rises_falls_by_halves_and_ends_near_the_floor():
    recipe = recipe_of(schedule="cosine", warmup=3, floor=0.2)
    assert [rate(step, 103, recipe) for step in range(3)] == [0.25, 0.5, 0.75]
    assert rate(3, 103, recipe) == pytest.approx(1, abs=1e-3)
    assert rate(52, 102, recipe) == pytest.approx(0.2 + 0.8 / 2, abs=1e-2)
    assert rate(102, 103, recipe) == pytest.approx(0.2, abs=1e-3)


def test_wsd_is_flat_until_its_last_share_then_straight():
    recipe = recipe_of(schedule="wsd", warmup=4, decay=0.2, floor=0.0)
    assert {rate(step, 100, recipe) for step in range(4, 80)} == {1.0}
    falls = [rate(step, 100, recipe) for step in range(80, 100)]
    assert falls == pytest.approx([1 - i / 21 for i in range(1, 21)])


def test_constant_stays():
    assert {rate(step, 50, recipe_of(schedule="constant", warmup=0)) for step in range(50)} == {1.0}


@given(
    steps=st.integers(1, 200),
    warmup=st.integers(0, 250),
    schedule=st.sampled_from(["cosine", "wsd", "constant"]),
    floor=st.floats(0, 1),
    decay=st.floats(0.01, 1),
)
def test_a_rate_rises_once_then_never_and_no_step_is_wasted(steps, warmup, schedule, floor, decay):
    recipe = recipe_of(schedule=schedule, warmup=warmup, floor=floor, decay=decay)
    found = [rate(step, steps, recipe) for step in range(steps)]
    assert all(0 < share <= 1 for share in found)
    top = found.index(max(found))
    assert found[: top + 1] == sorted(found[: top + 1])
    assert found[top:] == sorted(found[top:], reverse=True)
