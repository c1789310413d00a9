"""Stages: each on what the one before left; a restart at any point ends with the same bytes."""

from dataclasses import replace

import pytest
import torch

from regear.core.errors import IncompatibleModel, RecipeError
from regear.core.run import silent
from regear.train import checkpoint, stages
from regear.train.loop import Hooks
from regear.train.parallel import World
from regear.train.stages import Job, check, run_stages, trained_model
from tests.train.small import Rows, make, recipe_of, same, weights

ALIGN = recipe_of(2, objective={"kind": "align"}, train="*.self_attn.*")
KL = recipe_of(3, objective={"kind": "kl"}, train="*.mlp.*", freeze="*.layers.0.*")
LORA = recipe_of(2, objective={"kind": "ce"}, train="*.q_proj.*", lora={"rank": 2, "dropout": 0.1})
LIST = [ALIGN, LORA, KL, LORA]


def job_at(place, *, seen=None, rows=Rows):
    def log(event, **row):
        if seen is not None:
            seen.append((row["stage"], row["step"]))

    hooks = Hooks(log, silent, save_seconds=0.0)
    return Job(
        lambda: make(attention_dropout=0.1),
        lambda: make(1),
        lambda recipe: rows(recipe.batch),
        place,
        World(),
        lambda _: hooks,
        0,
        torch.device("cpu"),
    )


def run(place, recipes=LIST, **more):
    job = job_at(place, **more)
    results = run_stages(job, recipes)
    return [{**row, "seconds": 0} for row in results], weights(trained_model(job, len(recipes)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"))


def test_each_stage_moves_what_it_names_and_starts_from_the_one_before(tmp_path):
    job = job_at(tmp_path)
    results = run_stages(job, [ALIGN, KL])
    start, aligned, end = (weights(trained_model(job, number)) for number in range(3))
    assert {name for name in start if not torch.equal(start[name], aligned[name])} == {
        name for name in start if "self_attn" in name
    }
    assert {name for name in start if not torch.equal(aligned[name], end[name])} == {
        name for name in start if "layers.1.mlp" in name
    }
    assert [(row["objective"], row["steps"]) for row in results] == [("align", 2), ("kl", 3)]


def test_finished_stages_are_not_trained_again(tmp_path):
    first, second = [], []
    run(tmp_path, [ALIGN], seen=first)
    run(tmp_path, [ALIGN, KL], seen=second)
    assert first == [(0, 1), (0, 2)]
    assert second == [(1, 1), (1, 2), (1, 3)]


class Killed(BaseException):
    """As sudden as a signal."""


def kill_at(monkeypatch, owner, name, call, *, after):
    """Make the `call`-th call of a function the last thing that happens, before or after its work."""
    real, count = getattr(owner, name), 0

    def wrapped(*args, **kwargs):
        nonlocal count
        count += 1
        if count == call and not after:
            raise Killed
        found = real(*args, **kwargs)
        if count == call:
            raise Killed
        return found

    monkeypatch.setattr(owner, name, wrapped)


POINTS = [
    *((checkpoint.os, "replace", call) for call in (1, 2, 4, 6)),
    *((checkpoint, "write_json", call) for call in (2, 3)),
    *((stages, "write_shard", call) for call in (1, 2, 3, 4)),
    *((stages, "write_json", call) for call in (1, 2, 3, 4)),
]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("owner", "name", "call"), POINTS, ids=[f"{n}-{c}" for _, n, c in POINTS])
def test_a_stop_at_any_point_changes_no_byte(tmp_path, monkeypatch, whole, owner, name, call, after):
    with monkeypatch.context() as patched:
        kill_at(patched, owner, name, call, after=after)
        with pytest.raises(Killed):
            run(tmp_path)
    torch.manual_seed(call)  # a new process has drawn other numbers
    results, found = run(tmp_path)
    assert same(found, whole[1])
    assert results == whole[0]


def test_gradient_checkpointing_changes_memory_only(tmp_path):
    plain = recipe_of(2, objective={"kind": "kl"})
    found = [
        run(tmp_path / str(on), [plain.model_copy(update={"gradient_checkpointing": on})])[1] for on in (False, True)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": "*.self_atn.*"}, "did you mean 'self_attn'"),
        ({"train": "*norm*", "lora": {}}, "belong to no linear layer"),
        ({"objective": {"kind": "align", "layers": [5]}}, "wanted some of 0 to 1"),
        ({"objective": {"kind": "hidden", "layers": [-1]}}, "wanted some of 0 to 1"),
        ({"objective": {"kind": "align"}, "train": "*.mlp.*"}, "depends on nothing that train names"),
        ({"objective": {"kind": "align", "layers": [0]}, "train": "*.layers.1.*"}, "layers 0 to 0, depends on nothing"),
        ({"objective": {"kind": "hidden", "layers": [0]}, "train": "*.layers.1.*"}, "depends on nothing"),
        ({"objective": {"kind": "hidden"}, "train": "model.norm.weight"}, "depends on nothing"),
        ({"freeze": ["*.self_atn.*"]}, "freeze: no parameter is named like .*did you mean 'self_attn'"),
    ],
)
def test_a_mistake_in_a_later_stage_is_found_before_the_first(tmp_path, changes, message):
    job = job_at(tmp_path)
    with pytest.raises(RecipeError, match=message):
        check(job, job.student(), job.teacher(), [ALIGN, recipe_of(**changes)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("objective", [{"kind": "hidden"}, {"kind": "distil", "hidden": 0.1}])
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"num_hidden_layers": 3}, "2 layers and the teacher 3"),
        ({"hidden_size": 32}, "16 wide and the teacher's 32"),
    ],
)
def test_states_that_cannot_be_compared_are_refused_before_the_first_stage(tmp_path, objective, shape, message):
    job = job_at(tmp_path)
    with pytest.raises(IncompatibleModel, match=message):
        check(job, job.student(), make(1, **shape), [recipe_of(objective=objective)])


def test_a_head_that_is_no_plain_matrix_can_have_no_adapter(tmp_path):
    student = make(tie_word_embeddings=False)
    wanted = recipe_of(train="*", lora={"rank": 2})
    with pytest.raises(RecipeError, match=r"add lm_head\.weight to train\.freeze"):
        check(job_at(tmp_path), student, make(1), [wanted])
    check(job_at(tmp_path), student, make(1), [recipe_of(train="*", freeze="lm_head.weight", lora={"rank": 2})])


class Scaled(torch.nn.Module):
    """Logits that are not hidden states times the head, as where they are capped."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def __getattr__(self, name):
        return super().__getattr__(name) if name == "model" else getattr(self.model, name)

    def forward(self, **inputs):
        found = self.model(**inputs)
        found.logits = found.logits.tanh()
        return found


def test_a_teacher_whose_logits_are_capped_is_refused_before_training_and_by_the_stage(tmp_path):
    job = job_at(tmp_path)
    with pytest.raises(IncompatibleModel, match="scaled or capped"):
        check(job, job.student(), Scaled(make(1)), [KL])
    check(job, job.student(), Scaled(make(1)), [LORA])
    with pytest.raises(IncompatibleModel, match="scaled or capped"):
        run_stages(replace(job, teacher=lambda: Scaled(make(1))), [KL])


class Skipping(Rows):
    """Some of whose rows had nothing to train on."""

    def state(self):
        return {**super().state(), "skipped": 7}


def test_rows_that_were_skipped_are_told(tmp_path, capsys):
    run(tmp_path, [ALIGN], rows=Skipping)
    assert "stage 1 skipped 7 rows" in capsys.readouterr().err
