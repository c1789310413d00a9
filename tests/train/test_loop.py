"""The loop: what a step divides by, what moves, what a stop changes (nothing), and how long it lasts."""

import itertools

import pytest
import torch

from regear.core.errors import BackendError
from regear.train import loop
from regear.train.optim import adamw
from tests.train.small import LENGTH, Rows, make, recipe_of, same, stage_of, weights


def run(place, recipe, **more):
    stage, metrics = stage_of(place, recipe, **more)
    return stage.run(), weights(stage.trained.student), metrics


@pytest.mark.parametrize("objective", ["ce", "kl", "align", "hidden"])
def test_the_split_into_micro_batches_changes_nothing(tmp_path, objective):
    found = {}
    for rows in (4, 2, 1):
        recipe = recipe_of(micro_batch=rows, objective={"kind": objective})
        found[rows] = run(tmp_path / str(rows), recipe, dtype=torch.float64)
    for rows in (2, 1):
        torch.testing.assert_close(found[rows][1], found[4][1], rtol=1e-7, atol=1e-9)
        for one, other in zip(found[rows][2], found[4][2], strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-9)
            assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-7)


def test_what_is_asked_of_hidden_states_falls_with_the_rate(tmp_path):
    recipe = recipe_of(6, warmup=2, objective={"kind": "distil", "ce": 0, "hidden": 3})
    _, _, metrics = run(tmp_path, recipe, dtype=torch.float64)
    shares = [row["lr"] / recipe.lr for row in metrics]
    assert len(set(shares)) > 3
    for row, share in zip(metrics, shares, strict=True):
        assert row["loss"] == pytest.approx(row["kl"] + 3 * share * row["hidden"], rel=1e-9)


def test_the_loss_is_the_mean_over_every_prediction_of_the_step(tmp_path):
    _, _, metrics = run(tmp_path, recipe_of(1, micro_batch=1, objective={"kind": "ce"}), dtype=torch.float64)
    batch = next(Rows())
    with torch.no_grad():
        logits = make(dtype=torch.float64)(input_ids=batch.tokens_BL).logits
    expected = torch.nn.functional.cross_entropy(logits[batch.predict_BL], batch.targets_N)
    assert metrics[0]["loss"] == pytest.approx(float(expected), rel=1e-6)


def test_what_is_frozen_keeps_its_bits_and_all_else_moves(tmp_path):
    before = weights(make())
    recipe = recipe_of(train=["*.self_attn.*", "*norm*"], freeze=["*.layers.0.*"], weight_decay=0.1)
    _, after, _ = run(tmp_path, recipe)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if ("self_attn" in name or "norm" in name) and ".layers.0." not in name}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_dropout(tmp_path):
    found = [
        run(tmp_path / str(i), recipe_of(), seed=seed, student=make(attention_dropout=0.3))[1]
        for i, seed in enumerate((5, 5, 6, 20_261_130))  # a date is a seed, too
    ]
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


@pytest.mark.parametrize(("objective", "precision"), [("kl", "auto"), ("align", "auto"), ("kl", "bfloat16")])
def test_a_stop_after_any_step_changes_no_byte(tmp_path, objective, precision):
    recipe = recipe_of(4, objective={"kind": objective}, precision=precision)

    def student():
        return make(attention_dropout=0.2)

    whole = run(tmp_path / "whole", recipe, student=student())
    rows = Rows()
    assert whole[0]["predicted"] == sum(next(rows).count for _ in range(4)) < whole[0]["tokens"]
    for stop in range(4):
        stage, _ = stage_of(tmp_path / str(stop), recipe, student(), rows=Rows(end=stop))
        with pytest.raises(KeyboardInterrupt):
            stage.run()
        result, found, metrics = run(tmp_path / str(stop), recipe, student=student())
        assert same(found, whole[1])
        assert [row["step"] for row in metrics] == list(range(stop + 1, 5))
        assert result["predicted"] == whole[0]["predicted"]
        assert (result["steps"], result["tokens"]) == (whole[0]["steps"], whole[0]["tokens"]) == (4, 16 * LENGTH)


def test_parameters_that_no_gradient_reaches_stay_as_they_are(tmp_path):
    before = weights(make())
    _, after, _ = run(tmp_path, recipe_of(objective={"kind": "align"}, weight_decay=0.5))
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    assert not torch.equal(
        before["model.layers.0.self_attn.q_proj.weight"], after["model.layers.0.self_attn.q_proj.weight"]
    )


@pytest.mark.parametrize("clip", [1e-3, 1e3])
def test_gradients_are_clipped_by_their_common_norm(tmp_path, clip):
    stage, _ = stage_of(tmp_path, recipe_of(clip=clip, betas=(0.9, 0.95)))
    optimiser = adamw(stage.trained, stage.recipe)
    norm = stage._step(optimiser, 0, 3)["gradient_norm"]
    moments = torch.cat([kept["exp_avg"].flatten() for kept in optimiser.state.values()])
    assert 1e-3 < norm < 1e3
    assert float(moments.norm()) / 0.1 == pytest.approx(min(norm, clip), rel=1e-3)


def test_a_loss_that_is_no_number_ends_before_it_reaches_the_weights(tmp_path):
    student = make()
    with torch.no_grad():
        student.model.norm.weight[0] = float("inf")
    before = weights(student)
    stage, _ = stage_of(tmp_path, recipe_of(), student)
    with pytest.raises(BackendError, match=r"at step 1; lower train\.lr"):
        stage.run()
    assert same(before, weights(student))


def clock(monkeypatch, seconds):
    ticks = itertools.count(0, seconds)
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(ticks))


def test_tokens_end_a_stage_before_its_minutes_do(tmp_path, monkeypatch):
    clock(monkeypatch, 1.0)
    for steps in (2, 12):
        result, _, _ = run(tmp_path / str(steps), recipe_of(steps, minutes=60))
        assert result["steps"] == steps


def test_minutes_become_a_number_of_steps_that_a_restart_keeps(tmp_path, monkeypatch):
    clock(monkeypatch, 1.0)
    recipe = recipe_of(None, minutes=0.25)
    result, whole, _ = run(tmp_path / "whole", recipe)
    assert result["steps"] == 15
    # The save at the eighth step must not wait until the next one is due.
    stage, _ = stage_of(tmp_path / "cut", recipe, rows=Rows(end=9), save=1e9)
    with pytest.raises(KeyboardInterrupt):
        stage.run()
    clock(monkeypatch, 0.01)
    result, resumed, metrics = run(tmp_path / "cut", recipe)
    assert result["steps"] == 15
    assert metrics[0]["step"] == 9
    assert same(whole, resumed)


def test_bfloat16_products_leave_weights_and_moments_float32_and_steps_nearly_the_same(tmp_path):
    before, found = weights(make()), {}
    for precision in ("float32", "bfloat16"):
        stage, metrics = stage_of(tmp_path / precision, recipe_of(precision=precision))
        optimiser = adamw(stage.trained, stage.recipe)
        stage._step(optimiser, 0, 3)
        tensors = [*stage.trained.parameters(), *(m for kept in optimiser.state.values() for m in kept.values())]
        assert {tensor.dtype for tensor in tensors} == {torch.float32}
        stage.run()
        after = weights(stage.trained.student)
        found[precision] = torch.cat([(after[name] - before[name]).flatten() for name in before]), metrics[0]["loss"]
    (one, exact), (other, rounded) = found.values()
    assert torch.cosine_similarity(one, other, dim=0) > 0.9
    assert rounded == pytest.approx(exact, rel=0.02)
    assert rounded != exact
