"""What is emitted is distributed as the target alone would sample, whatever the draft; wrong rules are found out."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from regear.ops import accept
from regear.ops.accept import accept_chain, accept_chains, draw, residual

VOCABULARY = 5
RANDOM = np.random.default_rng(0)
FIRST, SECOND = RANDOM.dirichlet(np.ones(VOCABULARY)), RANDOM.dirichlet(np.ones(VOCABULARY), VOCABULARY)
FLAT = np.full(VOCABULARY, 1 / VOCABULARY)


def one_hot(token):
    return np.eye(VOCABULARY)[token]


def cut(p, tokens):
    """p on some tokens only."""
    kept = np.isin(np.arange(len(p)), tokens) * p
    return kept / kept.sum()


DRAFTS = {
    "the target": FIRST,
    "flat": FLAT,
    "one right token": one_hot(FIRST.argmax()),
    "one wrong token": one_hot(FIRST.argmin()),
    "part of the support": cut(FIRST, [0, 2]),
    "sharper": FIRST**3 / (FIRST**3).sum(),
}
TARGETS = {"full": FIRST, "cut": cut(FIRST, [1, 3, 4]), "elsewhere than the draft": cut(FIRST, [1, 3])}


def law(p, q, rest=residual):
    """The distribution of one emitted token, exactly: Σ_d q(d) [accepted: d; rejected: the residual]."""
    found = np.zeros(len(p))
    for token, mass in enumerate(q):
        stands = min(1.0, p[token] / mass) if mass else 0.0
        found[token] += mass * stands
        found += mass * (1 - stands) * np.array(rest(p, q))
    return found


def from_p(p, q):
    """The wrong rule that goes on from p after a rejection."""
    return p


def not_normalised(p, q):
    return np.maximum(np.subtract(p, q), 0)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("draft", DRAFTS)
def test_the_law_of_a_token_is_the_targets_exactly(target, draft):
    p, q = TARGETS[target], DRAFTS[draft]
    assert law(p, q) == pytest.approx(p, abs=1e-12)


@pytest.mark.parametrize("wrong", [from_p, not_normalised])
@pytest.mark.parametrize("draft", ["flat", "sharper"])
def test_the_law_finds_wrong_residuals_out(wrong, draft):
    assert np.abs(law(FIRST, DRAFTS[draft], wrong) - FIRST).max() > 0.01


@given(st.integers(0, 10_000), st.integers(2, 6))
def test_the_law_holds_for_any_two_distributions(seed, width):
    random = np.random.default_rng(seed)
    p, q = random.dirichlet(np.full(width, 0.3), 2)
    assert law(p, q) == pytest.approx(p, abs=1e-9)


def second_draft(token):
    """q of the second drafted token, which may be anything."""
    return [FLAT, one_hot(1), SECOND[token]][token % 3]


def samples(count, p, q, form):
    """The first two tokens of many texts whose law is p · SECOND, from drafts of two, gone on from as they ended."""
    random = np.random.default_rng(1)
    drafted = random.choice(VOCABULARY, count, p=q)
    second_drafts = np.array([second_draft(token) for token in range(VOCABULARY)])[drafted]
    seconds = np.array([draw(p, u) for p, u in zip(second_drafts, random.random(count), strict=True)])
    drafts = np.stack([np.broadcast_to(q, (count, VOCABULARY)), second_drafts], 1)
    targets = np.stack([np.broadcast_to(p, (count, VOCABULARY)), SECOND[drafted], np.tile(FLAT, (count, 1))], 1)
    tokens = np.stack([drafted, seconds], 1)
    for emitted in form(targets, drafts, tokens, random):
        yield (*emitted, draw(SECOND[emitted[0]], random.random()))[:2] if len(emitted) == 1 else emitted[:2]


def naively(targets, drafts, tokens, random):
    for p, q, drafted in zip(targets, drafts, tokens, strict=True):
        yield accept_chain(p, q, drafted, random.random(2), random.random())


def at_once(targets, drafts, tokens, random):
    count = len(tokens)
    seeds = np.arange(count).astype(np.uint64)
    kept, last = accept_chains(
        torch.tensor(targets), torch.tensor(drafts), torch.tensor(tokens), seeds, np.full(count, 7)
    )
    for drafted, stood, token in zip(tokens.tolist(), kept.tolist(), last.tolist(), strict=True):
        yield [*drafted[:stood], token]


def fit(p, q, form, count=6_000):
    """Probability of a fit this bad if the law were right, cells of few expected texts together."""
    expected = (p[:, None] * SECOND).ravel() * count
    found = np.bincount([a * VOCABULARY + b for a, b in samples(count, p, q, form)], minlength=VOCABULARY**2)
    assert not found[expected == 0].any()
    few = expected < 5
    cells = [np.append(x[~few], x[few].sum()) for x in (found, expected)]
    some = cells[1] > 0
    return chisquare(cells[0][some], cells[1][some]).pvalue


@pytest.mark.parametrize("form", [naively, at_once])
@pytest.mark.parametrize("draft", ["flat", "one wrong token", "part of the support"])
def test_two_tokens_are_distributed_as_the_target_says(form, draft):
    assert fit(FIRST, DRAFTS[draft], form) > 1e-4


def test_cut_targets_give_no_token_outside_them():
    assert fit(TARGETS["cut"], FLAT, at_once) > 1e-4


@pytest.mark.parametrize("form", [naively, at_once])
def test_wrong_rules_are_found_out(form, monkeypatch):
    with monkeypatch.context() as wrong:  # no residual: go on from p
        wrong.setattr(accept, "residual", lambda p, q: p)
        wrong.setattr(accept, "residuals", lambda p, q: p)
        assert fit(FIRST, FLAT, form) < 1e-8
    assert fit(FIRST, FLAT, form) > 1e-4


def test_noise_shared_with_the_draft_is_found_out(monkeypatch):
    """Accepting by the noise that the last token is drawn with skews it."""
    monkeypatch.setattr(accept, "DRAWING", accept.ACCEPTING)
    assert fit(FIRST, DRAFTS["sharper"], at_once) < 1e-8
    monkeypatch.undo()
    assert fit(FIRST, DRAFTS["sharper"], at_once) > 1e-4


def test_both_forms_keep_as_many():
    """Where nothing is left to chance."""
    p = torch.tensor(np.stack([one_hot(1), one_hot(2), one_hot(3)]))
    for drafted, stands, last in (([1, 2], 2, 3), ([1, 4], 1, 2), ([0, 2], 0, 1)):
        q = torch.tensor(np.stack([FLAT, FLAT]))
        kept, token = accept_chains(p[None], q[None], torch.tensor([drafted]), np.zeros(1, np.uint64), np.array([5]))
        assert (kept.item(), token.item()) == (stands, last)
        assert accept_chain(p.tolist(), q.tolist(), drafted, [0.5, 0.5], 0.5) == [*drafted[:stands], last]


def test_drawing_keeps_to_the_support():
    assert [draw([0.0, 0.5, 0.5, 0.0], u) for u in (0.0, 0.49, 0.5, 0.999999, 1.0)] == [1, 1, 2, 2, 2]
