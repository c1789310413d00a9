"""Predictions written beforehand teach as the teacher itself does, and belong to one teacher and one text."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from regear.core.errors import DataError, RecipeError
from regear.ops.fused import fused_loss
from regear.train.objective_recipes import KlRecipe, ReverseKlRecipe
from regear.train.objectives import objective
from regear.train.parallel import World
from regear.train.states import dense_teacher
from regear.train.stream import Stream
from regear.train.teacher import FORWARD_ROWS, TeacherCache, predictions
from tests.tiny import byte_tokenizer, make_text

TOKENIZER = byte_tokenizer()
SEQUENCE, ROWS, VOCABULARY = 32, 24, 260


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "a.txt"
    path.write_text(make_text(700))  # an epoch is fewer rows than a cache
    return [path]


@pytest.fixture(scope="module")
def teacher(tiny):
    return AutoModelForCausalLM.from_pretrained(tiny("llama")).eval()


@pytest.fixture
def student(teacher):
    torch.manual_seed(1)
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return student


def stream(files, batch=FORWARD_ROWS, **changes):
    return Stream(files, TOKENIZER, sequence=SEQUENCE, batch=batch, buffer=3, **changes)


def make(place, files, teacher, *, kept=VOCABULARY, dtype="float32", rows=ROWS, **identity):
    cache = TeacherCache(place, {"text": "a", **identity}, kept=kept, sequence=SEQUENCE, dtype=dtype)
    cache.part = cache.group = 8
    cache.write(rows, stream(files), lambda: teacher)
    return cache


def learn(student, teacher, source, steps=ROWS // 4, micro=4, recipe=None):
    """Losses of a few steps of plain descent."""
    loss = objective(recipe or KlRecipe())
    optimiser = torch.optim.SGD(student.parameters(), lr=0.05)
    found = []
    for _ in range(steps):
        batches = next(source).split(micro)
        count = sum(batch.count for batch in batches)
        totals = [loss(student, teacher, batch).total / count for batch in batches]
        for total in totals:
            total.backward()
        optimiser.step()
        optimiser.zero_grad()
        found.append(float(sum(totals).detach()))
    return found


@pytest.mark.parametrize("recipe", [KlRecipe(), ReverseKlRecipe()])
def test_training_on_all_that_was_written_equals_training_beside_the_teacher(tmp_path, files, teacher, student, recipe):
    cache = make(tmp_path / "cache", files, teacher)
    online = learn(copy.deepcopy(student), teacher, stream(files, 4), recipe=recipe)
    written = learn(copy.deepcopy(student), cache, stream(files, 4), micro=2, recipe=recipe)
    torch.testing.assert_close(torch.tensor(written), torch.tensor(online), rtol=1e-4, atol=1e-6)


def test_half_precision_keeps_the_divergence(tmp_path, files, teacher, student):
    cache = make(tmp_path / "cache", files, teacher, dtype="float16")
    loss = objective(KlRecipe())
    batch = next(stream(files))
    written, exact = (loss(student, source, batch).total / batch.count for source in (cache, teacher))
    torch.testing.assert_close(written, exact, rtol=1e-3, atol=1e-5)
    top = cache.top(batch)
    whole = torch.cat([top.logits_NK, top.log_tail_N[:, None]], 1).exp().sum(-1)
    torch.testing.assert_close(whole, torch.ones_like(whole))


@pytest.mark.parametrize("kept", [1, 5, 64])
def test_few_tokens_bound_the_divergence_from_below_and_pull_as_their_buckets_do(teacher, student, files, kept):
    batch = next(stream(files))
    hidden = student.get_decoder()(batch.tokens_BL, position_ids=batch.positions_BL).last_hidden_state
    states = hidden[batch.predict_BL].detach().requires_grad_()
    head = student.get_output_embeddings().weight.detach()
    ones = torch.ones(batch.count)
    top = predictions(teacher, batch, kept)
    found, _ = fused_loss(states, head, ones, terms=[("kl", 1.0, 1.0)], teacher=top)
    whole, _ = fused_loss(states, head, ones, terms=[("kl", 1.0, 1.0)], teacher=dense_teacher(teacher, batch))
    assert 0 <= found < whole
    (gradient,) = torch.autograd.grad(found, states)

    # The naive form: divergence over the kept tokens and one bucket of all others.
    chosen = torch.zeros(batch.count, VOCABULARY, dtype=torch.bool).scatter(1, top.tokens_NK, True)
    logs = (states @ head.T).log_softmax(-1)
    rest = logs.masked_fill(chosen, -torch.inf).logsumexp(-1)
    named = (top.logits_NK.exp() * (top.logits_NK - logs.gather(1, top.tokens_NK))).sum()
    naive = named + (top.log_tail_N.exp() * (top.log_tail_N - rest)).sum()
    torch.testing.assert_close(found, naive, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient, torch.autograd.grad(naive, states)[0], rtol=1e-3, atol=1e-4)


def test_other_processes_and_resumed_streams_find_their_rows(tmp_path, files, teacher):
    cache = make(tmp_path / "cache", files, teacher, kept=4)
    shared = [stream(files, 2).shard(rank, 2) for rank in range(2)]
    resumed = stream(files, 4)
    for _ in range(2):
        next(resumed)
        [next(part) for part in shared]
    state = resumed.state()
    again = stream(files, 4)
    again.restore(state)
    whole = next(again)
    expected = predictions(teacher, whole, 4)
    top = cache.top(whole)
    assert torch.equal(top.tokens_NK, expected.tokens_NK)
    torch.testing.assert_close(top.logits_NK, expected.logits_NK, rtol=1e-3, atol=1e-4)
    parts = [cache.top(next(part)) for part in shared]
    assert torch.equal(torch.cat([part.tokens_NK for part in parts]), top.tokens_NK)


def files_of(place):
    return {path.name: path.read_bytes() for path in sorted(place.iterdir())}


def test_a_killed_pass_goes_on_and_ends_with_the_same_bytes(tmp_path, files, teacher):
    whole = make(tmp_path / "whole", files, teacher, kept=4)
    passes = []

    class Killed(Exception):
        pass

    def dying(stage, done, of):
        passes.append(done)
        if done == 16:
            raise Killed

    place = tmp_path / "killed"
    cache = TeacherCache(place, {"text": "a"}, kept=4, sequence=SEQUENCE, dtype="float32")
    cache.part = cache.group = 8
    with pytest.raises(Killed):
        cache.write(ROWS, stream(files), lambda: teacher, progress=dying)
    assert sorted(path.name for path in place.glob("*.parquet")) == [f"{0:012d}.parquet"]
    make(place, files, teacher, kept=4)
    assert files_of(place) == files_of(whole.place)


def test_a_folder_that_a_kill_left_empty_is_filled_and_parts_without_a_record_are_refused(tmp_path, files, teacher):
    place = tmp_path / "cache"
    place.mkdir()
    (place / ".cache.json.tmp").write_text("{")
    cache = make(place, files, teacher, kept=4)
    (place / "cache.json").unlink()
    with pytest.raises(RecipeError, match="predictions of other"):
        TeacherCache(place, cache.identity, kept=4, sequence=SEQUENCE)


def test_only_the_leading_process_writes_the_record(tmp_path, files, teacher, monkeypatch):
    waited = []
    monkeypatch.setattr(World, "wait", lambda self: waited.append((place / "cache.json").exists()))
    for rank in (1, 0):
        place = tmp_path / str(rank)
        cache = TeacherCache(place, {"text": "a"}, kept=4, sequence=SEQUENCE, dtype="float32")
        cache.write(4, stream(files), lambda: teacher, World(rank, 2))
    assert waited == [False, False, True, True]


def test_two_processes_write_what_one_does(tmp_path, files, teacher, monkeypatch):
    monkeypatch.setattr(World, "wait", lambda self: None)
    whole = make(tmp_path / "whole", files, teacher, kept=4)
    for rank in range(2):
        cache = TeacherCache(tmp_path / "two", {"text": "a"}, kept=4, sequence=SEQUENCE, dtype="float32")
        cache.part = cache.group = 8
        cache.write(ROWS, stream(files), lambda: teacher, World(rank, 2))
    assert files_of(tmp_path / "two") == files_of(whole.place)


def test_what_is_written_is_not_written_again_and_a_longer_run_adds_to_it(tmp_path, files, teacher):
    make(tmp_path / "cache", files, teacher, kept=4, rows=12)

    def never():
        raise AssertionError("the teacher was loaded")

    cache = TeacherCache(tmp_path / "cache", {"text": "a"}, kept=4, sequence=SEQUENCE, dtype="float32")
    cache.part = cache.group = 8
    cache.write(12, stream(files), never)
    make(tmp_path / "cache", files, teacher, kept=4)
    make(tmp_path / "at once", files, teacher, kept=4)
    assert files_of(tmp_path / "cache") == files_of(tmp_path / "at once")


def test_predictions_of_another_teacher_text_or_size_are_refused(tmp_path, files, teacher):
    make(tmp_path / "cache", files, teacher, kept=4)
    with pytest.raises(RecipeError, match="predictions of other text;"):
        make(tmp_path / "cache", files, teacher, kept=4, text="b")
    with pytest.raises(RecipeError, match="predictions of other kept;"):
        make(tmp_path / "cache", files, teacher, kept=5)


def test_a_row_that_was_never_written_is_refused(tmp_path, files, teacher):
    cache = make(tmp_path / "cache", files, teacher, kept=4, rows=4)
    batch = next(stream(files))
    changed = replace(batch, tokens_BL=batch.tokens_BL.flip(0) + 1)
    with pytest.raises(DataError, match="no predictions for a row"):
        cache.top(changed)
