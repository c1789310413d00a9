"""Sampling rules equal plain Python, draws have the law of the softmax, rows do not depend on each other."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from regear.engine import sampler
from regear.engine.sampler import Places
from regear.engine.types import Request

ALPHA = 1e-4
VOCABULARY = 8
SCORES = torch.tensor([2.0, 1.5, 1.5, 0.0, -0.5, -1.0, -3.0, 0.7], dtype=torch.float64)


def places(*requests, position=0, before=None):
    """Places of these requests, all at one position or at one each."""

    def column(name):
        return np.array([getattr(request, name) for request in requests])

    seeds = np.array([request.seed % 2**64 for request in requests], np.uint64)
    positions = np.broadcast_to(np.asarray(position, np.int64), len(requests))
    columns = (column(name) for name in ("temperature", "top_p", "top_k", "min_p"))
    return Places(seeds, positions, *columns, before=before or {})


def ask(**settings):
    return Request([0], **{"temperature": 1.0} | settings)


def naive_filter(scores, *, temperature=1.0, top_k=0, min_p=0.0, top_p=1.0):
    """Probabilities after the rules, in their order."""
    scores = [score / temperature for score in scores]
    if top_k:
        least = sorted(scores, reverse=True)[min(top_k, len(scores)) - 1]
        scores = [score if score >= least else -math.inf for score in scores]
    best = max(scores)
    scores = [score if math.exp(score - best) >= min_p else -math.inf for score in scores]
    total = sum(math.exp(score - best) for score in scores)
    shares = [math.exp(score - best) / total for score in scores]
    mass, kept = 0.0, set()
    for token in sorted(range(len(shares)), key=lambda token: (-shares[token], token)):
        if mass < top_p or top_p == 1:
            kept.add(token)
        mass += shares[token]
    left = sum(shares[token] for token in kept)
    return [share / left if token in kept else 0.0 for token, share in enumerate(shares)]


def naive_penalties(scores, request, written, seen):
    """Scores after penalties, by counting."""
    scores = list(scores)
    for token in set(seen):
        factor = request.repetition_penalty
        scores[token] = scores[token] / factor if scores[token] > 0 else scores[token] * factor
    for token in set(written):
        scores[token] -= request.presence_penalty + request.frequency_penalty * written.count(token)
    return scores


# Grids, so that no score or mass lies within rounding of a limit but where it lies on it in both forms.
ROW = st.lists(st.integers(-40, 40).map(lambda x: x / 8), min_size=VOCABULARY, max_size=VOCABULARY)
RULES = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.25, 0.5, 1.0, 2.0]),
        "top_k": st.integers(0, VOCABULARY + 2),
        "min_p": st.sampled_from([0.0, 0.0517, 0.2113, 0.9171]),
        "top_p": st.sampled_from([0.1037, 0.5119, 0.9023, 0.9987, 1.0]),
    },
)


@settings(max_examples=200)
@given(st.lists(st.tuples(ROW, RULES), min_size=1, max_size=5))
def test_rules_equal_plain_python_row_by_row(rows):
    logits = torch.tensor([scores for scores, _ in rows], dtype=torch.float64)
    found = sampler.filtered(logits, places(*(ask(**rules) for _, rules in rows))).softmax(1)
    expected = torch.tensor([naive_filter(scores, **rules) for scores, rules in rows], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)


@given(
    ROW,
    st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=6),
    st.lists(st.integers(0, VOCABULARY - 1), max_size=6),
    st.sampled_from([0.5, 1.0, 1.7]),
    st.sampled_from([-0.5, 0.0, 1.5]),
    st.sampled_from([-0.25, 0.0, 0.75]),
)
def test_penalties_equal_counting(scores, prompt, written, repetition, presence, frequency):
    request = Request(
        prompt, repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency, temperature=1.0
    )
    row = torch.tensor(scores, dtype=torch.float64)
    sampler.penalise(row, request, len(prompt), np.array([*prompt, *written], np.int32))
    assert row.tolist() == pytest.approx(naive_penalties(scores, request, written, [*prompt, *written]))


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 1.7},
        {"top_k": 3},
        {"min_p": 0.2},
        {"top_p": 0.7},
        {"temperature": 0.8, "top_k": 6, "min_p": 0.05, "top_p": 0.9},
    ],
)
@pytest.mark.parametrize("along", ["seeds", "positions"])
def test_the_law_of_samples_is_the_softmax(rules, along):
    count = 4_000
    numbers = np.arange(count)
    asked = [ask(seed=int(i) if along == "seeds" else 5, **rules) for i in numbers]
    where = places(*asked, position=numbers if along == "positions" else 9)
    drawn = sampler.choose(SCORES.expand(count, -1), where).bincount(minlength=VOCABULARY).numpy()
    expected = count * np.array(naive_filter(SCORES.tolist(), **rules))
    assert not drawn[expected == 0].any()
    rare = expected < 5
    pooled = [np.append(x[~rare], x[rare].sum()) for x in (drawn, expected)]
    if pooled[1][-1] == 0:
        pooled = [x[:-1] for x in pooled]
    assert stats.chisquare(*pooled).pvalue > ALPHA


def test_greedy_takes_the_first_of_equals():
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    assert sampler.choose(logits, places(ask(temperature=0.0), ask(temperature=0.0))).tolist() == [1, 0]
    mixed = places(ask(temperature=0.0), ask())
    assert sampler.choose(logits, mixed)[0] == 1


@pytest.mark.parametrize("place", [0, 5, 255, 256, 599])
def test_a_score_that_is_no_number_is_drawn_wherever_it_stands(place):
    """As by argmax, so that a broken model shows, and in the same way whatever its rows are drawn with."""
    logits = torch.randn(1, 600, generator=torch.Generator().manual_seed(0))
    logits[0, place] = torch.nan
    for rules in ({}, {"temperature": 0.0}, {"top_p": 0.9}):
        assert sampler.choose(logits, places(ask(**rules))).tolist() == [place]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-20, 1e-9])
def test_the_coldest_temperatures_are_greedy(temperature, dtype):
    logits = torch.tensor([[1.0, 9.0, 8.0, -9.0], [-9.0, -8.0, -1e4, -7.5]], dtype=dtype)
    asked = [ask(temperature=temperature, top_p=0.9, seed=seed) for seed in (1, 2)]
    assert sampler.choose(logits, places(*asked)).tolist() == [1, 3]


@pytest.mark.parametrize("rules", [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}])
def test_the_best_token_always_stays(rules):
    logits = torch.randn(50, VOCABULARY, generator=torch.Generator().manual_seed(0))
    drawn = sampler.choose(logits, places(*(ask(seed=i, **rules) for i in range(50))))
    assert torch.equal(drawn, logits.argmax(1))


def test_ties_at_the_limits():
    tied = torch.zeros(1, 4, dtype=torch.float64)
    assert sampler.filtered(tied, places(ask(top_k=2))).isfinite().all()  # none is worse than the second best
    assert sampler.filtered(tied, places(ask(top_p=0.5)))[0].isfinite().tolist() == [True, True, False, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_different_rules_in_one_call_equal_each_alone(dtype):
    generator = np.random.default_rng(0)
    logits = torch.from_numpy(generator.normal(size=(60, 50)) * 3).to(dtype)
    asked = [
        Request(
            [int(generator.integers(50)) for _ in range(4)],
            temperature=float(generator.choice([0.0, 0.3, 1.0])),
            top_p=float(generator.choice([0.5, 0.9, 1.0])),
            top_k=int(generator.choice([0, 1, 7, 50, 99])),
            min_p=float(generator.choice([0.0, 0.1])),
            repetition_penalty=float(generator.choice([1.0, 1.5])),
            frequency_penalty=float(generator.choice([0.0, 0.5])),
            seed=i,
        )
        for i in range(60)
    ]
    held = {i: (request, 2, np.array(request.prompt)) for i, request in enumerate(asked) if request.penalised}
    positions = generator.integers(0, 99, 60)
    kept = logits.clone()
    together = sampler.choose(logits, places(*asked, position=positions, before=held))
    assert torch.equal(logits, kept), "scores are read, not changed"
    for i, request in enumerate(asked):
        before = {0: held[i]} if i in held else {}
        alone = sampler.choose(logits[i : i + 1], places(request, position=positions[i], before=before))
        assert alone.item() == together[i].item()


def test_log_probabilities_are_the_models_own():
    logits = torch.tensor([[1e4, 1e4 - 1, 0.0], [-1.0, 2.0, 0.5]])
    expected = [[float(x) for x in row.double().log_softmax(0)] for row in logits]
    found = sampler.logprob(logits, torch.tensor([1, 2]))
    assert found.tolist() == pytest.approx([expected[0][1], expected[1][2]], abs=1e-3)


def test_half_precision_scores_are_sampled_in_float32():
    logits = torch.randn(2000, 40, generator=torch.Generator().manual_seed(0)).bfloat16()
    asked = places(*(ask(seed=i, top_p=0.9) for i in range(2000)))
    assert sampler.filtered(logits, asked).dtype == torch.float32
    assert torch.equal(sampler.choose(logits, asked), sampler.choose(logits.float(), asked))


@pytest.mark.parametrize("width", [1, 7, 255, 256, 257, 1000, 5000])
@pytest.mark.parametrize("temperature", [1e-3, 0.3, 0.7, 1.0, 5.0])
def test_compiled_sampling_draws_what_all_the_noise_would(width, temperature):
    generator = torch.Generator().manual_seed(width)
    scores = torch.randn(64, width, generator=generator) * 4
    scores[::5, ::3] = -torch.inf
    scores[:, 0] = 0.0  # not all left out
    where = places(*(Request([1], temperature=temperature, seed=seed) for seed in range(64)))
    expected, found = sampler.noisy(scores, where), sampler.drawn(scores, where)
    assert sampler.choose_native is not None
    gaps = expected.max(1).values - expected.gather(1, found.unsqueeze(1)).squeeze(1)
    assert gaps.abs().max() < 1e-5 * max(1, 1 / temperature)  # the same token but where two are as good
    assert (found == expected.argmax(1)).float().mean() > 0.98


def test_compiled_sampling_leaves_scores_that_are_no_numbers_to_torch():
    scores = torch.randn(3, 300)
    scores[1, 5] = torch.inf
    scores[2] = torch.nan
    where = places(*(Request([1], temperature=0.7, seed=seed) for seed in range(3)))
    assert sampler.drawn(scores, where).tolist() == sampler.noisy(scores, where).argmax(1).tolist()
