"""What a text becomes depends on its request alone: not on guesses, neighbours, memory, chunks or shared beginnings."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from regear.engine.drafters.ngram import NgramDrafter
from regear.engine.local import Limits, LocalEngine
from regear.engine.runner import AttentionRunner
from regear.engine.types import Request
from regear.models.load import load_model
from tests.engine.small import DRAFTERS, NAMES, Knowing, half, model, requests, right, tokens

PENALTIES = dict(repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.3)


def run(network, asked, drafter=None, *, draft=4, **limits):
    return LocalEngine(network, drafter=drafter, draft=draft, limits=Limits(**{"rows": 16} | limits)).generate(asked)


@cache
def without_guesses(name, count, seed):
    """Requests, and their answers by an engine without a drafter."""
    asked = requests(count, seed=seed)
    return asked, run(model(name), asked)


def same_with_guesses(name, asked, plain, kind):
    """Speculation on equals off, in ragged batches; returns the drafter."""
    drafter = DRAFTERS[kind](asked, plain)
    assert tokens(run(model(name), asked, drafter)) == tokens(plain)
    assert not getattr(drafter, "faults", [])
    return drafter


@pytest.mark.parametrize("kind", DRAFTERS)
@pytest.mark.parametrize("name", NAMES)
def test_guesses_change_nothing(name, kind):
    drafter = same_with_guesses(name, *without_guesses(name, 48, 0), kind)
    if kind in ("right", "half"):
        low, high = (1, 1) if kind == "right" else (0.2, 0.7)
        assert low <= drafter.kept / drafter.guessed <= high


@pytest.mark.slow
@pytest.mark.parametrize("kind", DRAFTERS)
@pytest.mark.parametrize("name", NAMES)
def test_guesses_change_nothing_over_1000_prompts_at_each_temperature(name, kind):
    same_with_guesses(name, *without_guesses(name, 3000, 1), kind)


@pytest.mark.parametrize("kind", ["half", "adversarial"])
def test_guesses_change_nothing_where_scores_depend_on_what_was_written(kind):
    asked = requests(48, longest=12, top_k=9, min_p=0.01, **PENALTIES)
    same_with_guesses("llama", asked, run(model(), asked), kind)


@pytest.mark.parametrize("draft", [1, 2, 7])
def test_guesses_of_any_length_change_nothing(draft):
    asked = requests(24)
    plain = run(model(), asked)
    assert tokens(run(model(), asked, Knowing(asked, plain, half), draft=draft)) == tokens(plain)


def test_right_guesses_are_kept_and_reported():
    asked = [replace(request, max_tokens=11, stop_tokens=()) for request in requests(6)]
    plain = run(model(), asked)
    drafter = Knowing(asked, plain, right)
    found = run(model(), asked, drafter)
    assert {completion.acceptance_length for completion in plain} == {1.0}
    # One token from the prompt, then five a pass.
    assert {completion.acceptance_length for completion in found} == {11 / 3}
    assert [answer.token_ids[1:] for answer in found] == [drafter.emitted[number] for number in range(6)]
    assert drafter.finished == set(range(6))


def test_a_stop_token_within_a_guess_ends_the_text():
    (plain,) = run(model(), [Request([3, 1, 4], 12, temperature=1.0)])
    place = next(i for i in range(2, 12) if plain.token_ids[i] not in plain.token_ids[:i])
    asked = [Request([3, 1, 4], 12, temperature=1.0, stop_tokens=(plain.token_ids[place],))]
    (found,) = run(model(), asked, Knowing(asked, [plain], right), draft=12)
    assert found.token_ids == plain.token_ids[: place + 1]
    assert found.finish_reason == "stop"


@pytest.mark.parametrize("name", NAMES)
def test_a_text_alone_equals_the_text_among_others(name):
    asked = requests(12, seed=2, most=8)
    together = run(model(name), asked)
    assert tokens(together) == [tokens(run(model(name), [request]))[0] for request in asked]


def test_order_and_neighbours_do_not_matter():
    asked = requests(18, seed=3)
    plain, order = run(model(), asked), np.random.default_rng(0).permutation(18)
    shuffled = run(model(), [asked[i] for i in order], rows=5)
    assert tokens(shuffled) == [tokens(plain)[i] for i in order]


def stock(network, prompt, count):
    """Greedy tokens of the model's own loop."""
    ids = torch.tensor([prompt])
    whole = network.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return whole[0, len(prompt) :].tolist()


def test_greedy_equals_generate(tiny, family):
    network = load_model(tiny(family))
    asked = [Request(request.prompt, 8) for request in requests(4, vocabulary=256)]
    expected = [stock(network, request.prompt, 8) for request in asked]
    assert [completion.token_ids for completion in run(network, asked)] == expected
    assert [completion.token_ids for completion in run(network, asked, NgramDrafter(shortest=1))] == expected


@pytest.mark.parametrize("name", ["mla", "mla-decoupled"])
def test_greedy_from_latents_equals_generate(name):
    asked = [Request(request.prompt, 8) for request in requests(4)]
    expected = [stock(model(name), request.prompt, 8) for request in asked]
    assert [completion.token_ids for completion in run(model(name), asked)] == expected


@pytest.mark.parametrize("speculate", [False, True])
def test_a_small_cache_puts_texts_back_and_loses_nothing(speculate):
    asked = [
        replace(request, max_tokens=130, stop_tokens=(), logprobs=True) for request in requests(3, seed=4, longest=8)
    ]
    plain = run(model(), asked)
    drafter = Knowing(asked, plain, half) if speculate else None
    size = AttentionRunner(model()).bytes_per_token
    engine = LocalEngine(model(), drafter=drafter, limits=Limits(cache_bytes=320 * size))
    found = engine.generate(asked)
    assert engine.scheduler.preempted
    assert tokens(found) == tokens(plain)
    for one, other in zip(found, plain, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs)


@pytest.mark.parametrize("chunk", [1, 7, 512])
@pytest.mark.parametrize("name", NAMES)
def test_chunks_of_any_size_read_the_same(name, chunk):
    asked = requests(6, seed=5, longest=24, most=6)
    assert tokens(run(model(name), asked, chunk=chunk)) == tokens(run(model(name), asked))


class Counting(AttentionRunner):
    """Counts the tokens of prompts that are read."""

    read_tokens = 0

    def read(self, first, tokens_NQ, counts_N, starts_N, wanted_NQ):
        self.read_tokens += int(counts_N.sum())
        return super().read(first, tokens_NQ, counts_N, starts_N, wanted_NQ)


@pytest.mark.parametrize("name", NAMES)
def test_a_beginning_in_common_is_read_once(name, monkeypatch):
    common = requests(1, seed=6, longest=40)[0].prompt * 40
    asked = [Request([*common[:40], i, *range(i)], 3, temperature=1.0, seed=i) for i in range(12)]
    read = {}
    for shares in (True, False):
        monkeypatch.setattr("regear.engine.local.runner_for", Counting)
        monkeypatch.setattr(Counting, "shares", shares)
        engine = LocalEngine(model(name))
        read[shares] = tokens(engine.generate(asked)), engine.runner.read_tokens
    assert read[True][0] == read[False][0]
    assert read[False][1] - read[True][1] == 11 * 40


def test_samples_of_one_prompt_read_it_once_but_for_its_last_token(monkeypatch):
    monkeypatch.setattr("regear.engine.local.runner_for", Counting)
    engine = LocalEngine(model())
    engine.generate([Request(list(range(30)), 3, temperature=1.0, seed=i) for i in range(8)])
    assert engine.runner.read_tokens == 30 + 7 + 8 * 2


def test_prompts_read_side_by_side_take_no_more_slots_than_they_need():
    # Padded to the longer one's length, the one that begins as a copy would reach far beyond its own end.
    size = AttentionRunner(model()).bytes_per_token
    shared = [i % 50 for i in range(190)]
    asked = [Request([*shared, 1], 40), Request(list(reversed(range(50))) * 4, 4), Request([*shared, 2, 3], 4)]
    engine = LocalEngine(model(), limits=Limits(cache_bytes=1000 * size))
    numbers = [engine.submit(asked[0])]
    engine.step()
    numbers += [engine.submit(request) for request in asked[1:]]
    while engine.table.count or engine.scheduler.queue:
        engine.step()
    assert tokens(engine.done[number] for number in numbers) == tokens(run(model(), asked))
    assert not engine.scheduler.preempted


def test_an_engine_serves_again_after_longer_and_fewer_texts():
    size = AttentionRunner(model()).bytes_per_token
    engine = LocalEngine(model(), limits=Limits(cache_bytes=512 * size))
    long, short = [Request([1] * 350, 40)], requests(9, longest=8, most=4)
    assert tokens(engine.generate(long)) == tokens(run(model(), long))
    assert engine.scheduler.slots > 200
    for count in (1, 3, 9):
        assert tokens(engine.generate(short[:count])) == tokens(run(model(), short[:count]))
    held = engine.runner.cache.held[0].keys
    assert held.shape[0] * held.shape[2] <= 512
