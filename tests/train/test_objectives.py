"""Objectives on tiny models and a real conversion: values against whole logits, documents kept apart, sums that add up."""

import math
from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import GraniteConfig, GraniteForCausalLM

import regear
from regear.core.errors import DataError, IncompatibleModel, RecipeError
from regear.core.recipe import Recipe, validate
from regear.models.head import check_head, head
from regear.models.load import load_model
from regear.ops.terms import TopTeacher
from regear.train.batch import Batch
from regear.train.objective_recipes import OBJECTIVES, Objective
from regear.train.objectives import objective
from regear.train.states import run
from tests.tiny import small

KINDS = list(OBJECTIVES.rows)
TOKEN_KINDS = [kind for kind in KINDS if kind != "dpo"]
# The models' norms compute in float32 whatever their weights, so two ways to the same figure differ by its rounding.
CLOSE = dict(rtol=1e-5, atol=1e-5)
CHANGES = {
    "exact": ("convert.kv_ratio=1/3", "convert.factor=care", "convert.allocate=uniform"),
    "decoupled": ("convert.rope=decoupled", "convert.factor=care", "convert.rope_dim=4", "convert.freqfold=3"),
}


class Stage(Recipe):
    """As a stage recipe holds an objective."""

    objective: Objective


def make(value):
    return objective(validate(Stage, {"objective": value}).objective)


@pytest.fixture(scope="module")
def places(tiny, text, tmp_path_factory):
    """The teacher's directory, and those of what it was converted to."""
    home = tmp_path_factory.mktemp("converted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGEAR_HOME", str(home / "home"))
        for name, changes in CHANGES.items():
            regear.convert(tiny("llama"), home / name, *small(text, 1024), *changes, to="mla")
    return {"source": tiny("llama"), "exact": home / "exact", "decoupled": home / "decoupled"}


@pytest.fixture(params=["exact", "decoupled"])
def models(request, places):
    """A student and its teacher in float64."""
    return [load_model(places[name], "cpu").double() for name in (request.param, "source")]


@pytest.fixture
def pair(places):
    return [load_model(places[name], "cpu").double() for name in ("exact", "source")]


def batch_of(*rows, length=None, masked=0):
    """Each row a list of document lengths; the first `masked` predictions of every document do not count."""
    length = length or max(map(sum, rows))
    make_ = torch.Generator().manual_seed(sum(map(sum, rows)))
    tokens = torch.randint(0, 256, (len(rows), length), generator=make_)
    positions, predict = torch.arange(length).repeat(len(rows), 1), torch.zeros(len(rows), length, dtype=torch.bool)
    for i, documents in enumerate(rows):
        start = 0
        for size in documents:
            positions[i, start : start + size] = torch.arange(size)
            predict[i, start + masked : start + size - 1] = True
            start += size
    return Batch(tokens, positions, predict)


def cut(batch, rows, columns=slice(None)):
    """Some rows and columns, as a batch of their own."""
    return Batch(*(x[rows, columns] for x in (batch.tokens_BL, batch.positions_BL, batch.predict_BL)))


def gradients(model, loss):
    model.zero_grad()
    loss.total.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        error = (left[name] - right[name]).abs().max()
        assert error <= 1e-5 * right[name].abs().max() + 1e-8, (name, error)


def naive(kind, student, teacher, batch, temperature=1.0):
    """A token objective from whole logits, summed over what counts."""
    z, t = (
        (
            m(input_ids=batch.tokens_BL, position_ids=batch.positions_BL, use_cache=False).logits / temperature
        ).log_softmax(-1)
        for m in (student, teacher)
    )
    loss = {
        "ce": lambda: -z[:, :-1].gather(2, batch.tokens_BL[:, 1:, None]).squeeze(2),
        "kl": lambda: (t.exp() * (t - z)).sum(-1)[:, :-1],
        "reverse_kl": lambda: (z.exp() * (z - t)).sum(-1)[:, :-1],
    }[kind]()
    return temperature**2 * loss[batch.predict_BL[:, :-1]].sum()


@pytest.mark.parametrize("kind", ["ce", "kl", "reverse_kl"])
def test_token_objectives_equal_whole_logits(kind, models):
    student, teacher = models
    batch = batch_of([9, 4], [13], [5, 3], masked=1)
    expected = naive(kind, student, teacher, batch)
    found = make(kind)(student, teacher, batch)
    assert found.count == batch.count == 8 - 1 + 3 - 1 + 12 - 1 + 4 - 1 + 2 - 1
    torch.testing.assert_close(found.total, expected, **CLOSE)
    torch.testing.assert_close(found.logged[kind], expected.detach(), **CLOSE)
    ours = gradients(student, found)
    assert all(p.grad is None for p in teacher.parameters())
    assert_same(ours, gradients(student, type(found)(expected, 0, {})))


def test_distil_is_the_weighted_sum_of_its_parts(pair):
    batch = batch_of([11], [7])
    loss = make({"kind": "distil", "ce": 0.5, "beta": 2, "reverse": 3, "temperature": 2})(*pair, batch)
    expected = sum(
        weight * naive(kind, *pair, batch, temperature)
        for kind, weight, temperature in (("ce", 0.5, 1.0), ("kl", 2, 2.0), ("reverse_kl", 3, 2.0))
    )
    torch.testing.assert_close(loss.total, expected, **CLOSE)
    assert set(make({"kind": "distil", "ce": 0})(*pair, batch).logged) == {"kl"}


def test_distil_adds_hidden_states(pair):
    student, teacher = pair
    batch = batch_of([11, 4], [7], masked=2)
    value = {"kind": "distil", "ce": 0.5, "beta": 2, "temperature": 2}
    both = make(value | {"hidden": 3})(*pair, batch)
    predictions, states = make(value)(*pair, batch), make("hidden")(*pair, batch)
    torch.testing.assert_close(both.total, predictions.total + 3 * states.total, **CLOSE)
    torch.testing.assert_close(both.logged, predictions.logged | states.logged, **CLOSE)
    assert both.count == states.count
    wanted = gradients(student, type(both)(predictions.total + 3 * states.total, 0, {}))
    assert_same(gradients(student, make(value | {"hidden": 3})(*pair, batch)), wanted)
    assert all(p.grad is None for p in teacher.parameters())
    falling = objective(validate(Stage, {"objective": value | {"hidden": 3}}).objective)(*pair, batch, 0.25)
    torch.testing.assert_close(falling.total, predictions.total + 0.75 * states.total, **CLOSE)


@pytest.mark.parametrize("kind", TOKEN_KINDS)
def test_packed_documents_equal_separate_rows(kind, models):
    student, teacher = models
    packed = batch_of([6, 9, 1, 4])
    loss = make(kind)(student, teacher, packed)
    together = gradients(student, loss)
    total, count, apart = 0.0, 0, {}
    for start, size in ((0, 6), (6, 9), (15, 1), (16, 4)):
        row = cut(packed, slice(None), slice(start, start + size))
        assert row.plain
        one = make(kind)(student, teacher, row)
        total, count = total + one.total.item(), count + one.count
        for name, gradient in gradients(student, one).items():
            apart[name] = apart.get(name, 0) + gradient
    assert loss.total.item() == pytest.approx(total, rel=1e-5)
    assert loss.count == count
    assert_same(together, apart)


@pytest.mark.parametrize("kind", TOKEN_KINDS)
def test_forgetting_that_positions_restart_changes_the_loss(kind, pair):
    packed = batch_of([6, 9, 5])
    run_on = Batch(packed.tokens_BL, torch.arange(20).unsqueeze(0), packed.predict_BL)
    right, wrong = (make(kind)(*pair, batch).total.item() for batch in (packed, run_on))
    assert abs(right - wrong) > 1e-3 * abs(right)


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_add_up_to_the_whole(kind, pair):
    student, teacher = pair
    whole = batch_of([12], [5, 3], [7], [10], masked=2)
    loss = make(kind)(student, teacher, whole)
    at_once = gradients(student, loss)
    student.zero_grad()
    parts = [make(kind)(student, teacher, cut(whole, rows)) for rows in (slice(0, 2), slice(2, 4))]
    for part in parts:
        (part.total / loss.count).backward()
    assert sum(part.count for part in parts) == loss.count
    assert sum(part.total.item() for part in parts) == pytest.approx(loss.total.item(), rel=1e-5)
    for name in loss.logged:
        assert sum(part.logged[name].item() for part in parts) == pytest.approx(loss.logged[name].item(), rel=1e-5)
    assert_same(at_once, {n: p.grad * loss.count for n, p in student.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_what_does_not_count_change_nothing(kind, pair):
    student, teacher = pair
    batch, padded = batch_of([9], [6]), batch_of([9], [6], length=14)
    padded.tokens_BL[:, :9] = batch.tokens_BL
    one, two = (make(kind)(student, teacher, b) for b in (batch, padded))
    assert one.count == two.count
    assert two.total.item() == pytest.approx(one.total.item(), rel=1e-5)
    padded.tokens_BL[padded.positions_BL >= torch.tensor([[9], [6]])] = 3
    assert make(kind)(student, teacher, padded).total.item() == pytest.approx(one.total.item(), rel=1e-5)
    answers = batch_of([9], [6], masked=4)
    fewer = make(kind)(student, teacher, answers)
    assert fewer.count == (1 if kind == "dpo" else 4 + 1)
    assert fewer.total.item() != pytest.approx(one.total.item(), rel=1e-4)


@pytest.mark.parametrize("value", ["kl", "reverse_kl", "align", {"kind": "align", "part": "layer"}, "hidden"])
def test_nothing_to_learn_from_an_identical_teacher(value, pair):
    teacher = pair[1]
    loss = make(value)(deepcopy(teacher), teacher, batch_of([9, 4], [13]))
    assert 0 <= loss.total.item() < 1e-20


@pytest.mark.parametrize(("part", "inside"), [("attention", "self_attn"), ("layer", "layers.")])
def test_align_is_each_layer_alone_on_the_teachers_inputs(part, inside, models):
    student, teacher = models
    batch = batch_of([8, 5], [13], masked=1)
    loss = make({"kind": "align", "part": part, "layers": [0, 2]})(student, teacher, batch)
    touched = {name for name, g in gradients(student, loss).items() if g.abs().max() > 0}
    assert touched
    assert all(inside in name and ("layers.0." in name or "layers.2." in name) for name in touched)
    # By hand: the teacher's layers one after the other, the student's beside them.
    with torch.no_grad():
        states = teacher(
            input_ids=batch.tokens_BL, position_ids=batch.positions_BL, use_cache=False, output_hidden_states=True
        ).hidden_states
    total = 0.0
    document = (batch.positions_BL == 0).cumsum(1)
    same = (document[:, :, None] == document[:, None]).tril().unsqueeze(1)
    for index in (0, 2):
        outputs = []
        for model in (student, teacher):
            layer, given = model.model.layers[index], states[index]
            named = dict(position_embeddings=model.model.rotary_emb(given, batch.positions_BL), attention_mask=same)
            if part == "attention":
                outputs.append(layer.self_attn(teacher.model.layers[index].input_layernorm(given), **named)[0])
            else:
                outputs.append(layer(given, **named))
        ours, theirs = (x[batch.predict_BL] for x in outputs)
        total += ((ours - theirs).square().mean(-1) / theirs.square().mean(-1)).sum().item()
    assert loss.total.item() == pytest.approx(total, rel=1e-5)


def test_a_giant_token_does_not_drown_the_others(pair):
    """First tokens are often thousands of times larger; a common scale would leave nothing of the others."""
    student, teacher = pair
    batch = batch_of([9])
    before = make("hidden")(student, teacher, batch).total.item()
    first = int(batch.tokens_BL[0, 0])
    for model in (student, teacher):
        model.model.embed_tokens.weight.data[first] *= 1e4
    after = make("hidden")(student, teacher, batch).total.item()
    assert after > 0.3 * before


def test_a_token_that_is_huge_in_the_student_alone_does_not_drown_the_others(pair):
    """As where only the student makes it a sink of attention: its error is a million times that of the others."""
    student, teacher = pair
    batch = batch_of([9])
    before = gradients(student, make("hidden")(student, teacher, batch))["model.layers.2.mlp.down_proj.weight"]
    student.model.embed_tokens.weight.data[batch.tokens_BL[0, 3]] *= 1e3
    after = gradients(student, make("hidden")(student, teacher, batch))["model.layers.2.mlp.down_proj.weight"]
    assert after.norm() < 2 * before.norm()


def test_hidden_follows_the_students_own_way(pair):
    student, teacher = pair
    batch = batch_of([8, 5])
    ours, theirs = (
        m(
            input_ids=batch.tokens_BL, position_ids=batch.positions_BL, use_cache=False, output_hidden_states=True
        ).hidden_states
        for m in pair
    )
    # transformers' last entry is after the final norm, so the last layer is left out here.
    expected = sum(
        ((a - b).square().mean(-1) / b.square().mean(-1))[batch.predict_BL].log1p().sum().item()
        for a, b in zip(ours[1:3], theirs[1:3], strict=True)
    )
    loss = make({"kind": "hidden", "layers": [0, 1]})(student, teacher, batch)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("value", ["kl", "hidden", {"kind": "align", "part": "layer"}, {"kind": "distil", "hidden": 1}])
def test_gradient_checkpointing_changes_nothing(value, pair):
    student, teacher = pair
    batch = batch_of([8, 5])
    plain = gradients(student, make(value)(student, teacher, batch))
    student.train().gradient_checkpointing_enable({"use_reentrant": False})
    assert_same(gradients(student, make(value)(student, teacher, batch)), plain)


def test_dpo(pair):
    student, teacher = pair
    batch = batch_of([9], [6], [4], [11], masked=2)
    ours, theirs = [], []
    for model, sums in ((student, ours), (teacher, theirs)):
        logs = model(input_ids=batch.tokens_BL, use_cache=False).logits.log_softmax(-1)
        for row in range(4):
            places = batch.predict_BL[row].nonzero()[:, 0]
            sums.append(sum(logs[row, t, batch.tokens_BL[row, t + 1]] for t in places))
    margins = [0.5 * ((ours[i] - theirs[i]) - (ours[i + 1] - theirs[i + 1])) for i in (0, 2)]
    expected = -sum(logsigmoid(margin) for margin in margins)
    loss = make({"kind": "dpo", "beta": 0.5})(student, teacher, batch)
    assert loss.count == 2
    torch.testing.assert_close(loss.total, expected, **CLOSE)
    assert loss.logged["accuracy"] == sum(margin.item() > 0 for margin in margins)
    assert_same(gradients(student, loss), gradients(student, type(loss)(-sum(map(logsigmoid, margins)), 2, {})))


def test_dpo_of_the_reference_itself_is_log_2_a_pair(pair):
    loss = make("dpo")(pair[1], pair[1], batch_of([9], [6], [4], [11]))
    assert loss.total.item() == pytest.approx(2 * math.log(2), rel=1e-9)
    raised = gradients(pair[1], loss)["lm_head.weight"]
    assert raised.abs().max() > 0


def test_a_cached_teacher_stands_in_where_distributions_are_all_that_is_asked(pair):
    student, teacher = pair
    batch = batch_of([8, 5], [13], masked=1)

    class Cache:
        def top(self, batch):
            logs = teacher(
                input_ids=batch.tokens_BL, position_ids=batch.positions_BL, use_cache=False
            ).logits.log_softmax(-1)
            values, tokens = logs[batch.predict_BL].topk(260)
            return TopTeacher(values, tokens, values.new_full(values.shape[:1], -torch.inf))

    for kind in ("kl", "reverse_kl", "distil"):
        online, cached = (make(kind)(student, source, batch) for source in (teacher, Cache()))
        torch.testing.assert_close(cached.total, online.total, **CLOSE)
    for kind in ("align", "hidden", "dpo"):
        with pytest.raises(RecipeError, match="cached"):
            make(kind)(student, Cache(), batch)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "ce"])
def test_no_teacher_is_refused(kind, pair):
    with pytest.raises(RecipeError, match="no teacher"):
        make(kind)(pair[0], None, batch_of([4], [4]))


def test_rows_of_one_document_need_no_mask(pair):
    """The plain causal kernel runs: no mask reaches attention."""
    masks = []
    layer = pair[1].model.layers[0].self_attn
    layer.register_forward_hook(lambda m, a, named, o: masks.append(named["attention_mask"]), with_kwargs=True)
    run(pair[1], batch_of([9], [6]))
    run(pair[1], batch_of([9], [4, 2]))
    assert masks[0] is None
    assert masks[1] is not None


@pytest.mark.parametrize(
    ("positions", "predict"),
    [([0, 1, 2], [1, 1, 1]), ([0, 1, 0], [1, 1, 0])],
)
def test_predictions_beyond_a_document_are_refused(positions, predict):
    with pytest.raises(DataError, match="outside its document"):
        Batch(torch.zeros(1, 3, dtype=torch.long), torch.tensor([positions]), torch.tensor([predict]).bool())


def test_dpo_needs_pairs_with_answers(pair):
    with pytest.raises(DataError, match="3 rows"):
        make("dpo")(*pair, batch_of([4], [4], [4]))
    with pytest.raises(DataError, match="1 with an answer"):
        make("dpo")(*pair, batch_of([4], [1]))


def test_layers_that_are_not_there_are_refused(pair, tiny):
    with pytest.raises(RecipeError, match="0 to 2"):
        make({"kind": "align", "layers": [3]})(*pair, batch_of([4]))
    pair[1].model.layers = pair[1].model.layers[:2]
    for value in ("hidden", {"kind": "distil", "hidden": 1}):
        with pytest.raises(IncompatibleModel, match="3 layers and the teacher 2"):
            make(value)(*pair, batch_of([4]))


def test_check_head(family, tiny):
    """Every supported family's logits are its last states times its head; Granite's are divided by something."""
    check_head(load_model(tiny(family), "cpu"))
    shape = dict(vocab_size=31, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    check_head(GraniteForCausalLM(GraniteConfig(**shape, logits_scaling=1.0)))
    with pytest.raises(IncompatibleModel, match="scaled or capped"):
        check_head(GraniteForCausalLM(GraniteConfig(**shape, logits_scaling=8.0)))


def test_a_head_that_is_more_than_a_matrix_is_refused(pair):
    pair[0].lm_head = torch.nn.Linear(48, 260)
    with pytest.raises(IncompatibleModel, match="without bias"):
        head(pair[0])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("dpoo", "did you mean 'dpo'"),
        ({"kind": "distil", "betta": 1}, "did you mean 'objective.beta'"),
        ({"kind": "kl", "beta": 1}, "objective.kl.beta"),
        ({"kind": "kl", "temperature": 0}, "greater than 0"),
        ({"temperature": 2}, "unknown objective None"),
        ({"kind": "distil", "ce": 0, "beta": 0}, "nothing to learn"),
        ({"kind": "distil", "ce": 0, "beta": 0, "hidden": 1}, "there is the objective hidden"),
    ],
)
def test_wrong_recipes_are_refused(value, message):
    with pytest.raises(RecipeError, match=message):
        make(value)


def test_the_table_and_the_recipes_agree():
    for row in OBJECTIVES:
        recipe = validate(Stage, {"objective": row.name}).objective
        assert type(recipe) is row.recipe
        assert recipe.kind == row.name
        assert callable(row.load())


@pytest.mark.parametrize("kind", KINDS)
def test_no_objective_waits_for_its_device(pair, kind, monkeypatch):
    """Nothing can be read from a meta tensor, as nothing should be read from a GPU while a step is under way."""
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda *_: None)  # reads one bit
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no meta device
    student, teacher = (model.to("meta") for model in pair)
    batch = batch_of([9], [9], masked=2)
    loss = make(kind)(student, teacher, batch.to("meta"))
    loss.total.backward()
    assert loss.count == (1 if kind == "dpo" else batch.count)


def test_a_batch_counts_the_same_wherever_it_is():
    batch = batch_of([3, 5], [8], [6], length=9, masked=1)
    moved = batch.to("meta")
    assert (moved.count, moved.plain, moved.answered) == (batch.count, batch.plain, batch.answered) == (14, False, 3)
    assert moved.targets_N.shape == (batch.count,)
    assert torch.equal(batch.targets_N, batch.tokens_BL[:, 1:][batch.predict_BL[:, :-1]])
    assert torch.equal(batch.rows_N, batch.predict_BL.nonzero()[:, 0])
    states = torch.randn(3, 9, 2)
    assert torch.equal(batch.counted(states), states[batch.predict_BL])


def test_without_divergences_no_teacher_is_asked(pair):
    student, teacher = pair
    batch = batch_of([8], [6])
    recipe = validate(Stage, {"objective": {"kind": "distil", "beta": 0, "reverse": 0}}).objective
    assert recipe.teacher == "none"
    alone = objective(recipe)(student, None, batch)
    teacher.forward = teacher.get_decoder().forward = None
    assert torch.equal(alone.total, objective(recipe)(student, teacher, batch).total)
    assert torch.equal(alone.total, make("ce")(student, None, batch).total)
    assert make_recipe_asks({"beta": 0, "reverse": 1}) == make_recipe_asks({}) == "distribution"
    assert make_recipe_asks({"beta": 0, "hidden": 0.1}) == make_recipe_asks({"hidden": 0.1}) == "model"


def make_recipe_asks(values):
    return validate(Stage, {"objective": {"kind": "distil", **values}}).objective.teacher
