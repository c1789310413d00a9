"""What engines tell drafters of the model: its likeliest tokens, sketches of its states, and whose they are."""

import numpy as np
import pytest
import torch

from regear.engine import thoughts as module
from regear.engine.budget.policy import Budget
from regear.engine.drafters.base import LIKELY, NOTHING, THOUGHT, UNKNOWN, wants_thoughts
from regear.engine.drafters.combine import Cascade
from regear.engine.drafters.ngram import NgramDrafter
from regear.engine.drafters.suffix import SuffixDrafter
from regear.engine.local import Limits, LocalEngine
from regear.engine.runner import AttentionRunner
from regear.engine.types import Request
from regear.models.load import load_model


def tokens_and_probabilities(found):
    return found >> 8, np.exp((found & 255) / -16.0)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("scale", [0.1, 1, 8])
@pytest.mark.parametrize("width", [3, 7, 256, 257, 5000])
def test_the_likeliest_tokens_are_those_of_a_softmax(width, scale, native, monkeypatch):
    if not native:
        monkeypatch.setattr(module, "likeliest_native", None)
    logits = scale * torch.randn(9, width, generator=torch.Generator().manual_seed(width))
    tokens, probabilities = tokens_and_probabilities(module.likeliest(logits))
    wanted = logits.double().softmax(1).topk(LIKELY)
    np.testing.assert_array_equal(tokens, wanted.indices)
    near = wanted.values.numpy() > 1e-6  # levels end at e^-16
    np.testing.assert_allclose(probabilities[near], wanted.values.numpy()[near], rtol=0.04)


@pytest.mark.parametrize("native", [True, False])
def test_scores_that_are_no_numbers_say_nothing(native, monkeypatch):
    if not native:
        monkeypatch.setattr(module, "likeliest_native", None)
    logits = torch.randn(4, 300)
    logits[0, 3:] = -torch.inf  # three tokens are left
    logits[1, 2:] = -torch.inf
    logits[2, 7] = torch.inf
    found = module.likeliest(logits)
    assert (found[[1, 2]] == UNKNOWN).all()
    assert (found[[0, 3]] != UNKNOWN).all()
    assert (module.likeliest(torch.randn(2, 2)) == UNKNOWN).all()
    for place in (0, 5, 255, 256, 299):  # in a block and behind the last
        logits = torch.randn(1, 300)
        logits[0, place] = torch.nan
        assert (module.likeliest(logits) == UNKNOWN).all()


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("width", [10, 700, 5000])
def test_scores_that_rise_to_the_end_and_begin_masked(width, native, monkeypatch):
    if not native:
        monkeypatch.setattr(module, "likeliest_native", None)
    logits = torch.linspace(-20, 20, width).repeat(2, 1)
    logits[1, : width // 2] = -torch.inf
    tokens, probabilities = tokens_and_probabilities(module.likeliest(logits))
    wanted = logits.double().softmax(1).topk(LIKELY)
    np.testing.assert_array_equal(tokens, wanted.indices)
    np.testing.assert_allclose(probabilities, wanted.values.numpy(), rtol=0.04)


def test_sketches_differ_as_much_as_the_angle():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 200, 96, generator=generator)
    for share in (0.0, 0.5, 1.0):
        mixed = share * one + (1 - share) * other
        angle = torch.nn.functional.cosine_similarity(one, mixed).clamp(-1, 1).arccos() / torch.pi
        differ = np.unpackbits((module.sketch(one) ^ module.sketch(mixed)).view(np.uint8), axis=1).mean(1)
        assert abs(differ.mean() - float(angle.mean())) < 0.02
    assert (module.sketch(one) == module.sketch(3 * one)).all()
    assert module.sketch(torch.ones(1, 4)).tolist() == [[294403233, 35529237]]  # for ever


class Listener:
    """Guesses what stands next, and keeps what it is told."""

    wants_thoughts = True

    def __init__(self, whole, good=1):
        self.whole, self.good, self.told, self.came = whole, good, {}, {}

    def propose(self, texts, most):
        return [
            np.array(self.whole[t.number][len(t.tokens) :][: min(n, self.good)], np.int32) if self.good else NOTHING
            for t, n in zip(texts, most.tolist(), strict=True)
        ]

    def observe(self, outcomes):
        for outcome in outcomes:
            assert outcome.thoughts.shape == (len(outcome.emitted), THOUGHT)
            self.told.setdefault(outcome.number, []).append(outcome.thoughts.copy())
            self.came.setdefault(outcome.number, []).append(outcome.emitted.copy())

    def finish(self, number, tokens, prompt, group):
        pass


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("good", [0, 3])
def test_engines_tell_of_every_token_what_the_model_thought_before_it(good, temperature, tiny):
    model = load_model(tiny("llama"))
    asked = [Request(list(range(1, 2 + i)), 9 + i, temperature, seed=i) for i in range(4)]
    written = [one.token_ids for one in LocalEngine(model).generate(asked)]
    whole = [[*request.prompt, *text] for request, text in zip(asked, written, strict=True)]
    drafter = Listener(whole, good)
    assert [one.token_ids for one in LocalEngine(model, drafter=drafter, draft=3).generate(asked)] == written
    for number, request in enumerate(asked):
        told, came = (np.concatenate(part[number]) for part in (drafter.told, drafter.came))
        assert came.tolist() == written[number]
        ids = torch.tensor([whole[number]])
        with torch.no_grad():
            states = model.model(input_ids=ids).last_hidden_state[0, len(request.prompt) - 1 : -1]
            wanted = module.thoughts(model.lm_head(states), states)
        np.testing.assert_array_equal(told[:, :LIKELY] >> 8, wanted[:, :LIKELY] >> 8)
        assert (np.abs((told[:, :LIKELY] & 255).astype(int) - (wanted[:, :LIKELY] & 255).astype(int)) <= 1).all()
        differ = np.unpackbits((told[:, LIKELY:] ^ wanted[:, LIKELY:]).view(np.uint8), axis=1).sum(1)
        assert (differ <= 2).all()  # products near zero


def test_what_is_told_of_a_text_that_was_put_back_has_no_gaps(tiny):
    model = load_model(tiny("llama"))
    asked = [Request(list(range(1, 4 + i)), 130, 0.0, seed=i) for i in range(3)]
    written = [one.token_ids for one in LocalEngine(model).generate(asked)]
    drafter = Listener([[]] * 3, 0)
    limits = Limits(cache_bytes=320 * AttentionRunner(model).bytes_per_token)
    engine = LocalEngine(model, drafter=drafter, limits=limits)
    assert [one.token_ids for one in engine.generate(asked)] == written
    assert engine.scheduler.preempted
    assert [np.concatenate(drafter.came[i]).tolist() for i in range(3)] == written


def test_only_those_hear_of_it_who_want_to():
    assert wants_thoughts(SuffixDrafter())
    assert wants_thoughts(Budget(SuffixDrafter()))
    assert wants_thoughts(Cascade([NgramDrafter(), SuffixDrafter()]))
    assert not wants_thoughts(Cascade([NgramDrafter()]))
