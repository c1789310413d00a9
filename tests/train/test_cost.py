"""The plan's formulas against what torch counts and keeps, on tiny models with frozen parts."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from regear.train import lora
from regear.train.batch import Batch
from regear.train.cost import Sizes, activations, inference, memory, operations, trained_parameters
from regear.train.objectives import objective
from regear.train.optim import select
from regear.train.recipes import StageRecipe


@pytest.fixture(autouse=True)
def products_by_torch():
    """The counter knows torch's own products, and not oneDNN's."""
    with torch.backends.mkldnn.flags(enabled=False):
        yield


LENGTH, ROWS = 32, 2
TRAIN = {
    "attention": ["*.self_attn.*"],
    "all": ["*"],
    "one layer": ["*.layers.1.self_attn.*"],
    "output only": ["*.layers.1.self_attn.o_proj.*"],
    "norms": ["*norm*"],
    "mlp": ["*.mlp.*"],
}


def load(place):
    """With attention whose products torch counts."""
    return AutoModelForCausalLM.from_pretrained(place, attn_implementation="eager")


def batch():
    tokens = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH) % 250
    predict = torch.ones(ROWS, LENGTH, dtype=torch.bool)
    predict[:, -1] = False
    return Batch(tokens, torch.arange(LENGTH).expand(ROWS, LENGTH), predict)


def counted(student, teacher, stage):
    with FlopCounterMode(display=False) as counter:
        objective(stage.objective)(student, teacher, batch()).total.backward()
    return counter.get_total_flops()


def stage_of(**values):
    return StageRecipe(sequence=LENGTH, batch=ROWS, micro_batch=ROWS, **values)


def expected(student, teacher, stage):
    """Positions × operations; the last position of a row is not predicted."""
    found = operations(Sizes.of(student), None if teacher is None else Sizes.of(teacher), stage)
    heads = found.head + (Sizes.of(teacher).head if teacher is not None and found.head else 0.0)
    if Sizes.of(student).head_trains:  # the head's own gradient is added in place, which torch does not count
        heads += (LENGTH - 1) * Sizes.of(student).head
    return ROWS * (LENGTH * found.total - heads)


@pytest.mark.parametrize("train", TRAIN)
@pytest.mark.parametrize("family", ["llama", "llama-tied", "qwen3"])
def test_operations_are_those_that_torch_counts(tiny, family, train):
    student, teacher = load(tiny(family)), load(tiny(family)).requires_grad_(False)
    select(student, TRAIN[train], ["*.kv_a_layernorm.*"])
    stage = stage_of(train=TRAIN[train])
    assert counted(student, teacher, stage) == pytest.approx(expected(student, teacher, stage), rel=0.01)


@pytest.mark.parametrize("name", ["ce", "align", "hidden"])
def test_other_objectives_cost_what_they_run(tiny, name):
    student, teacher = load(tiny("llama")), load(tiny("llama")).requires_grad_(False)
    select(student, TRAIN["attention"], [])
    stage = stage_of(objective=name)
    given = None if name == "ce" else teacher
    assert counted(student, given, stage) == pytest.approx(expected(student, given, stage), rel=0.01)


def test_a_cached_teacher_costs_nothing_and_experts_count_as_used(tiny):
    model = Sizes.of(load(tiny("qwen3-moe")))
    stage = stage_of()
    beside, written = (operations(model, model, stage, cached=cached) for cached in (False, True))
    assert beside.total - written.total == beside.teacher == inference(model, LENGTH)
    dense = sum(p.numel() for p in load(tiny("qwen3-moe")).model.layers[0].parameters() if p.ndim > 1)
    assert model.layers[0].weights == dense
    assert sum(m.weights for m in model.layers[1].matrices if m.flow > 4) == 2 * 3 * 48 * 24 + 6 * 48  # and a router


def test_adapters_train_and_cost_little(tiny):
    student = load(tiny("llama"))
    stage = stage_of(lora={"rank": 2})
    names = select(student, stage.train, stage.freeze)
    planned = Sizes.of(student)
    teacher = load(tiny("llama")).requires_grad_(False)
    wanted = expected(student, teacher, stage)
    lora.inject(student, stage.lora, names)
    assert trained_parameters(planned, stage) == sum(p.numel() for p in student.parameters() if p.requires_grad)
    assert counted(student, teacher, stage) == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("train", ["attention", "all"])
def test_activations_are_about_what_autograd_keeps(tiny, train):
    student = AutoModelForCausalLM.from_pretrained(tiny("llama"))
    select(student, TRAIN[train], [])
    own = {p.untyped_storage().data_ptr() for p in student.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        student.get_decoder()(batch().tokens_BL)
    found = sum(kept.values()) / (4 * ROWS * LENGTH)
    assert found / 1.6 < activations(Sizes.of(student)) < 1.6 * found


def test_processes_share_weights_gradients_and_moments_but_not_activations(tiny):
    model = load(tiny("llama"))
    select(model, TRAIN["attention"], [])
    sizes = Sizes.of(model)
    one, two = (memory(sizes, 0, stage_of(), processes=n) for n in (1, 2))
    assert one["moments"] == 8 * sizes.trained == 2 * two["moments"]
    assert one["weights"] == 4 * sizes.parameters
    assert sum(value for key, value in one.items() if key != "total") == one["total"]
    assert two["activations"] == one["activations"] // 2  # a row each instead of both


def test_shapes_need_no_weights(tiny):
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny("llama")))
    select(empty, TRAIN["attention"], [])
    whole = copy.deepcopy(load(tiny("llama")))
    select(whole, TRAIN["attention"], [])
    assert Sizes.of(empty) == Sizes.of(whole)
