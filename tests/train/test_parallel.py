"""Two processes train what one trains, go on from each other's steps, and end together."""

import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from regear.core.errors import DataError, RecipeError
from regear.core.run import silent
from regear.train.loop import Hooks
from regear.train.optim import adamw
from regear.train.parallel import gathered, parallelize, world
from regear.train.stages import Job, run_stages, trained_model
from tests.processes import start
from tests.train.small import Rows, make, recipe_of, stage_of, weights

CASES = {
    "kl, every parameter, tied head": dict(objective={"kind": "kl"}),
    "ce, untied head": dict(objective={"kind": "ce"}),
    "align, most frozen": dict(objective={"kind": "align"}, train="*.self_attn.*", freeze="*.layers.0.*"),
    "align of whole layers": dict(objective={"kind": "align", "part": "layer"}, train="*.layers.*"),
    "hidden states": dict(objective={"kind": "hidden"}, clip=0.1),
    "recomputed activations": dict(objective={"kind": "kl"}, gradient_checkpointing=True),
}
STEPS, STOP = 4, 2


def train(place, name, here=None, end=None):
    """The metrics and the trained weights of a case; `end` stops it before that step."""
    recipe = recipe_of(STEPS, micro_batch=1, **CASES[name])
    student = make(tie_word_embeddings="untied" not in name)
    if recipe.gradient_checkpointing:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    stage, metrics = stage_of(place, recipe, student, world=here, rows=Rows(4, here, end))
    try:
        stage.run()
    except KeyboardInterrupt:
        return metrics, {}
    return metrics, gathered(stage.trained.student)


def lora(place, here):
    """Two stages, the first with adapters."""
    stages = [
        recipe_of(2, train="*.self_attn.*", lora={"rank": 2}, objective={"kind": "kl"}),
        recipe_of(2, train="*.mlp.*", objective={"kind": "ce"}),
    ]
    hooks = Hooks(lambda *_, **__: None, silent)
    job = Job(
        make, lambda: make(1), lambda r: Rows(r.batch, here), place, here, lambda _: hooks, 0, torch.device("cpu")
    )
    run_stages(job, stages)
    return [], weights(trained_model(job, 2))


class Exchanges(TorchDispatchMode):
    """Counts sums of gradients over processes."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += "reduce_scatter" in str(function)
        return function(*args, **(kwargs or {}))


def exchanges(place, here, micro_batch):
    """How often a step of two rows a process sends gradients to the others."""
    stage, _ = stage_of(place, recipe_of(1, micro_batch=micro_batch), world=here)
    parallelize(stage.trained, list(stage.trained.student.model.layers), here)
    optimiser = adamw(stage.trained, stage.recipe)
    with Exchanges() as seen:
        stage._step(optimiser, 0, 1)
    return seen.count


def two(place):
    """Everything that two processes do for these tests."""
    with world(torch.device("cpu")) as here:
        found = {name: train(place / name, name, here) for name in CASES}
        found["from one"] = train(place / "from one", next(iter(CASES)), here)
        train(place / "to one", next(iter(CASES)), here, end=STOP)
        found["lora"] = lora(place / "lora 2", here)
        found["exchanges"] = [exchanges(place / "counted", here, rows) for rows in (2, 1)]
        if here.leads:
            torch.save(found, place / "found.pt")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def found(place):
    train(place / "from one", next(iter(CASES)), end=STOP)
    codes, said = start(place, two, place, size=2)
    assert codes == [0, 0], "\n".join(said)
    return torch.load(place / "found.pt")


def check(one, other):
    for name in ("loss", "gradient_norm", "lr"):
        torch.testing.assert_close([row[name] for row in one[0]], [row[name] for row in other[0]], rtol=2e-4, atol=1e-6)
    assert one[1].keys() == other[1].keys()
    # Adam divides small gradients by themselves, so that rounding shows as a share of the rate.
    torch.testing.assert_close(dict(one[1]), dict(other[1]), rtol=1e-3, atol=5e-4)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_what_one_trains(tmp_path, found, name):
    alone = train(tmp_path, name)
    assert len(alone[0]) == len(found[name][0]) == STEPS
    check(alone, found[name])


def test_gradients_are_exchanged_once_a_step(found):
    whole, split = found["exchanges"]
    assert whole == split > 0


def test_a_step_of_one_process_resumes_on_two(tmp_path, found):
    alone = train(tmp_path, next(iter(CASES)))
    assert [row["step"] for row in found["from one"][0]] == [3, 4]
    check((alone[0][STOP:], alone[1]), found["from one"])


def test_a_step_of_two_processes_resumes_on_one(tmp_path, place, found):
    alone, resumed = train(tmp_path, next(iter(CASES))), train(place / "to one", next(iter(CASES)))
    assert [row["step"] for row in resumed[0]] == [3, 4]
    check((alone[0][STOP:], alone[1]), resumed)


def test_adapters_start_the_same_on_every_process(tmp_path, found):
    with world(torch.device("cpu")) as here:
        check(lora(tmp_path, here), found["lora"])


def fail(kind):
    with world(torch.device("cpu")) as here:
        if kind == "both" or here.rank == 1:
            raise DataError("one clear line")
        here.wait()


def failing(kind):
    try:
        fail(kind)
    except DataError as error:
        print(error, file=sys.stderr)
        return error.exit_code


@pytest.mark.parametrize("kind", ["both", "one"])
def test_a_mistake_ends_all_with_one_line(tmp_path, kind):
    codes, said = start(tmp_path, failing, kind, size=2)
    assert codes == [2, 2] or (kind == "one" and codes == [3, 2])
    assert "".join(said) == "one clear line\n"


def test_rows_that_cannot_be_shared_evenly_are_refused():
    assert recipe_of(batch=6, micro_batch=2).rows(3) == 2
    with pytest.raises(RecipeError, match=r"train\.batch: 4 rows cannot be shared by 3 processes; wanted a multiple"):
        recipe_of(batch=4).rows(3)
    with pytest.raises(RecipeError, match="multiple of 4"):
        recipe_of(batch=6, micro_batch=2, objective={"kind": "dpo"}).rows(2)
