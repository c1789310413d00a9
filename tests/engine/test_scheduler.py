"""Requests come, wait, run, end and are forgotten; none harms another."""

import gc
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from regear.core.errors import RecipeError
from regear.engine.drafters.ngram import NgramDrafter
from regear.engine.local import Limits, LocalEngine
from regear.engine.runner import AttentionRunner
from regear.engine.types import Request
from tests.engine.small import Knowing, half, minimal, model, requests, right, tokens
from tests.tiny import byte_tokenizer


def engine_of(slots=None, drafter=None, **settings):
    """An engine whose cache holds so many tokens."""
    size = AttentionRunner(model()).bytes_per_token
    limits = Limits(rows=settings.pop("rows", 8), cache_bytes=None if slots is None else slots * size)
    return LocalEngine(model(), drafter=drafter, limits=limits, **settings)


def finish(engine, *numbers):
    """Step until all have ended; their completions."""
    for _ in range(2000):
        if all(number in engine.done for number in numbers):
            return [engine.done.pop(number) for number in numbers]
        engine.step()
    raise AssertionError("the engine does not come to an end")


def alone(*asked):
    return tokens(LocalEngine(model()).generate([request])[0] for request in asked)


def endless(count, **settings):
    return [replace(request, max_tokens=30, stop_tokens=(), **settings) for request in requests(count, seed=12)]


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_cancelling_loses_no_other_request(steps):
    asked = endless(6)
    engine = engine_of(rows=3)
    numbers = [engine.submit(request) for request in asked]
    for _ in range(steps):
        engine.step()
    for number in (1, 4):  # in flight after the first step, and in the queue
        engine.cancel(numbers[number])
        engine.cancel(numbers[number])
    found = finish(engine, *numbers)
    expected = alone(*asked)
    for number in (1, 4):
        assert found[number].finish_reason == "cancelled"
        assert found[number].token_ids == expected[number][0][: len(found[number].token_ids)]
        assert bool(found[number].token_ids) == (number == 1 and steps > 0)
    assert [tokens(found)[i] for i in (0, 2, 3, 5)] == [expected[i] for i in (0, 2, 3, 5)]
    engine.cancel(numbers[0])
    engine.cancel(10**6)
    assert not engine.done


def test_a_listener_may_cancel_and_others_go_on():
    asked = endless(4)
    engine = engine_of()

    def listen(place, new):
        heard[place] += new
        if place == 2 and len(heard[2]) == 5:
            engine.cancel(2)

    heard = [[], [], [], []]
    found = engine.generate(asked, listen)
    assert found[2].finish_reason == "cancelled"
    expected = alone(*asked)
    assert found[2].token_ids == heard[2] == expected[2][0][:5]
    assert [tokens(found)[i] for i in (0, 1, 3)] == [expected[i] for i in (0, 1, 3)]


@pytest.mark.parametrize("drafter", [None, NgramDrafter(shortest=1)])
def test_a_listener_hears_exactly_the_tokens(drafter):
    asked, heard = requests(20, seed=13), {}
    engine = engine_of(512, drafter, rows=6)
    stranger = engine.submit(endless(1)[0])
    found = engine.generate(asked, lambda place, new: heard.setdefault(place, []).extend(new))
    assert [heard[place] for place in range(20)] == [completion.token_ids for completion in found]
    finish(engine, stranger)


def test_a_listener_that_raises_ends_its_call_and_no_other_request():
    engine, asked = engine_of(), endless(3)
    other = engine.submit(asked[0])

    def listen(place, new):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        engine.generate(asked[1:], listen)
    assert engine.table.count == 1
    assert tokens(finish(engine, other)) == alone(asked[0])
    assert tokens(engine.generate(asked[1:])) == alone(*asked[1:])


def test_timeouts_end_texts_with_what_they_have(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    asked = endless(4)
    engine = engine_of(rows=2)
    numbers = [engine.submit(replace(request, timeout=5.0 if i in (0, 3) else None)) for i, request in enumerate(asked)]
    for _ in range(3):
        engine.step()
    now[0] = 5.0
    found = finish(engine, *numbers)
    assert [completion.finish_reason for completion in found] == ["timeout", "length", "length", "timeout"]
    expected = alone(*asked)
    assert 0 < len(found[0].token_ids) < 30
    assert found[0].token_ids == expected[0][0][: len(found[0].token_ids)]
    assert found[3].token_ids == []
    assert tokens(found)[1:3] == expected[1:3]
    assert not engine.deadlines


def test_memory_admits_what_fits_and_every_request_is_answered():
    asked = [replace(request, max_tokens=50, stop_tokens=()) for request in requests(6, seed=14)]
    engine, held = engine_of(512), []
    numbers = [engine.submit(request) for request in asked]
    while engine.table.count or engine.scheduler.queue:
        engine.step()
        layer = engine.runner.cache.held[0]
        held.append((engine.table.count, layer.keys.shape[0] * layer.keys.shape[2]))
    assert max(count for count, _ in held) > 1
    assert max(count for count, _ in held) < 6
    assert max(slots for _, slots in held) <= 512
    assert tokens(finish(engine, *numbers)) == alone(*asked)


def growing(count):
    """Requests that are admitted together and outgrow a cache of 320 tokens."""
    return [replace(request, max_tokens=150, stop_tokens=()) for request in requests(count, seed=15, longest=8)]


def test_the_newest_request_is_put_back_and_the_oldest_never():
    engine = engine_of(320)
    numbers = [engine.submit(request) for request in growing(2)]
    while numbers[0] not in engine.done:
        engine.step()
        assert numbers[0] not in [item.number for item in engine.scheduler.queue]
    assert engine.scheduler.preempted == 1
    finish(engine, *numbers)


@pytest.mark.parametrize(("prompt", "most"), [(600, 1), (1, 600)])
def test_what_can_never_fit_is_refused_in_one_line(prompt, most):
    engine = engine_of(512)
    with pytest.raises(RecipeError, match=r"tokens of prompt .* MB of cache.* ask for fewer") as error:
        engine.submit(Request([1] * prompt, most))
    assert "\n" not in str(error.value)
    assert tokens(engine.generate([Request([1], 3)])) == alone(Request([1], 3))


@pytest.mark.parametrize("bad", [Request([1] * 600), Request([1, 61]), Request([-1]), Request([1], stop=("x",))])
def test_a_refused_request_takes_its_call_with_it_and_nothing_stays(bad):
    engine = engine_of(512)
    with pytest.raises(RecipeError):
        engine.generate([Request([1], 3), bad])
    assert not engine.scheduler.queue
    assert not engine.done
    engine.step()
    assert not engine.table.count


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": []}, "prompt is empty"),
        ({"temperature": float("nan")}, "temperature: found nan; wanted >= 0"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"top_p": 0.0}, "top_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"presence_penalty": float("nan")}, "presence_penalty"),
        ({"frequency_penalty": float("inf")}, "frequency_penalty"),
        ({"timeout": 0.0}, "timeout"),
        ({"stop": ("",)}, "empty string"),
    ],
)
def test_parameters_out_of_range_are_named(settings, message):
    with pytest.raises(RecipeError, match=message):
        engine_of().submit(Request(**{"prompt": [1]} | settings))


@pytest.mark.parametrize("text", [[], [1, 61], [-1, 3]])
def test_a_text_that_cannot_be_scored_is_refused(text):
    with pytest.raises(RecipeError, match="found"):
        engine_of().score([[1, 2], text])


def test_nothing_asked_is_nothing_answered():
    assert engine_of().generate([]) == []


@pytest.mark.parametrize("kind", [None, "right"])
def test_finish_reasons(kind):
    (text,) = alone(Request([5, 6], 9))
    stop = text[0][4]
    end = text[0].index(stop) + 1
    asked = [Request([5, 6], 9), Request([5, 6], 9, stop_tokens=(stop,)), Request([5, 6], end, stop_tokens=(stop,))]
    asked = [replace(request, seed=i) for i, request in enumerate(asked)]
    plain = engine_of().generate(asked)
    found = engine_of(drafter=Knowing(asked, plain, right) if kind else None).generate(asked)
    assert tokens(found) == [text, (text[0][:end], "stop"), (text[0][:end], "stop")]


class Letters:
    """A tokenizer whose tokens are letters, or pieces of one."""

    def decode(self, ids, skip_special_tokens):
        return b"".join(bytes([i]) for i in ids).decode("utf-8", errors="replace")


def writing(text):
    """A model that writes these bytes, whatever it reads: by a drafter that knows, and scores that follow."""

    class Writer(AttentionRunner):
        def read(self, first, tokens, counts, starts, wanted):
            scores = super().read(first, tokens, counts, starts, wanted)
            row, column = np.nonzero(wanted)
            scores.fill_(0.0)
            for i, place in enumerate((starts[row] + column).tolist()):
                scores[i, text[place % len(text)]] = 9.0
            return scores

    return Writer


@pytest.mark.parametrize("guessed", [False, True])
@pytest.mark.parametrize(
    ("stop", "end"), [("c", 3), ("bcd", 4), ("efghab", 10), ("x", None), ("zz", None), ("h", 8), (("gh", "d"), 4)]
)
def test_stop_strings_that_straddle_tokens(stop, end, guessed, monkeypatch):
    monkeypatch.setattr("regear.engine.local.runner_for", writing(b"abcdefgh"))
    stops = (stop,) if isinstance(stop, str) else stop
    asked = [Request([0], 20, stop=stops), Request([0], 20, seed=1)]
    plain = LocalEngine(minimal(256), Letters()).generate([replace(request, stop=()) for request in asked])
    drafter = Knowing(asked, plain, right) if guessed else None
    found = LocalEngine(minimal(256), Letters(), drafter=drafter).generate(asked)
    assert bytes(found[0].token_ids) == (b"abcdefgh" * 3)[: end or 20]
    assert found[0].finish_reason == ("length" if end is None else "stop")
    assert bytes(found[1].token_ids) == (b"abcdefgh" * 3)[:20]


def test_a_stop_string_of_many_tokens_a_letter(monkeypatch):
    written = "ab — 日本語日本語日本語 end".encode()
    monkeypatch.setattr("regear.engine.local.runner_for", writing(written))
    asked = Request([0], len(written), stop=("日本語日本語日本語",))
    (found,) = LocalEngine(minimal(256), Letters()).generate([asked])
    assert bytes(found.token_ids).decode() == "ab — 日本語日本語日本語"
    assert found.finish_reason == "stop"


def test_stop_strings_need_a_tokenizer():
    with pytest.raises(RecipeError, match="tokenizer"):
        LocalEngine(model()).submit(Request([1], stop=("x",)))
    LocalEngine(model(), byte_tokenizer()).generate([Request([1], 2, stop=("x",))])


def test_log_probabilities_are_the_models_own_one_a_token():
    asked = [
        replace(request, logprobs=i % 2 == 0, top_k=5, presence_penalty=0.3) for i, request in enumerate(requests(12))
    ]
    plain = engine_of().generate(asked)
    spoken = engine_of(drafter=Knowing(asked, plain, half)).generate(asked)
    for request, one, other in zip(asked, plain, spoken, strict=True):
        if not request.logprobs:
            assert one.logprobs is other.logprobs is None
            continue
        with torch.no_grad():
            scores = model()(torch.tensor([[*request.prompt, *one.token_ids]])).logits[0].log_softmax(-1)
        start = len(request.prompt) - 1
        expected = [float(scores[start + i, token]) for i, token in enumerate(one.token_ids)]
        assert one.logprobs == pytest.approx(expected, abs=1e-5)
        assert other.logprobs == pytest.approx(expected, abs=1e-5)


def test_a_text_that_ends_before_its_first_token_has_no_log_probabilities():
    engine = engine_of()
    number = engine.submit(Request([1], logprobs=True))
    engine.cancel(number)
    (found,) = finish(engine, number)
    assert found.logprobs == []


def test_a_drafter_hears_the_end_of_texts_that_were_put_back_and_cancelled():
    drafter = NgramDrafter()
    engine = engine_of(320, drafter)
    numbers = [engine.submit(request) for request in growing(2)]
    for _ in range(400):
        waiting = [item.number for item in engine.scheduler.queue if item.forwards]
        if waiting:
            break
        engine.step()
    assert waiting
    engine.cancel(waiting[0])
    finish(engine, *numbers)
    assert not drafter.places
    assert not drafter.read


def resident():
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def serve(engine, count, seed):
    for start in range(0, count, 250):
        asked = requests(250, seed=seed + start, vocabulary=5, longest=6, most=3)
        assert len(engine.generate(asked)) == 250


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's account of memory")
@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_short_requests_leave_memory_flat(count):
    drafter = NgramDrafter(shortest=1)
    engine = LocalEngine(minimal(), drafter=drafter, limits=Limits(rows=64))
    serve(engine, 500, seed=10**6)
    gc.collect()
    objects, bytes_ = len(gc.get_objects()), resident()
    serve(engine, count, seed=0)
    gc.collect()
    assert len(gc.get_objects()) - objects < 100
    assert resident() - bytes_ < 8e6
    assert not any([engine.done, engine.deadlines, engine.logprobs, drafter.places, drafter.read, engine.table.count])
    assert len(engine.table.tokens) <= 128
