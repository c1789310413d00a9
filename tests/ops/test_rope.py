"""Components that commute with RoPE, what they lose without it, and which are chosen."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regear.ops.rope import (
    Heads,
    commuting,
    components,
    folded_grid,
    greedy_grid,
    greedy_pairs,
    real_rows,
    score_gradient,
    to_floats,
    to_pairs,
    turned,
)

HEADS, WIDTH = 3, 8
PAIRS = WIDTH // 2
FREQUENCY = 100.0 ** -(torch.arange(PAIRS).double() / PAIRS)


def gram(seed, size=HEADS * WIDTH):
    rows = torch.randn(4 * size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows.T @ rows / len(rows)


def keys(seed, tokens=20):
    return torch.randn(tokens, HEADS * WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotated(floats, position):
    """RoPE at one position, head by head, in the plain half-split form."""
    by_head = floats.unflatten(-1, (HEADS, 2, PAIRS))
    a, b = by_head[..., 0, :], by_head[..., 1, :]
    cos, sin = (position * FREQUENCY).cos(), (position * FREQUENCY).sin()
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -2).flatten(-3)


def test_pairs_are_floats_and_turn_as_rope_does():
    found = keys(0)
    assert torch.equal(to_floats(to_pairs(found, HEADS)), found)
    phase = torch.polar(torch.ones(PAIRS, dtype=torch.float64), 7 * FREQUENCY)
    assert torch.allclose(to_floats(to_pairs(found, HEADS) * phase), rotated(found, 7))


@given(seed=st.integers(0, 10), real=st.booleans())
def test_components_commute_with_rope_and_lose_nothing(seed, real):
    basis = components(gram(seed), None if real else gram(seed + 1), HEADS, real=real, damp=0.1)
    unit = torch.eye(HEADS * PAIRS, dtype=basis.encode.dtype)
    assert torch.allclose(basis.encode @ basis.decode, unit, atol=1e-9)
    z = to_pairs(keys(seed), HEADS).flatten(1) @ basis.encode.T
    turned_first = to_pairs(rotated(keys(seed), 5), HEADS).flatten(1) @ basis.encode.T
    phase = torch.polar(torch.ones(len(basis.pair), dtype=torch.float64), 5 * FREQUENCY[basis.pair])
    assert torch.allclose(z * phase, turned_first, atol=1e-9)


def test_rorope_mixtures_are_real_rotations_of_the_heads_with_the_energy_first():
    basis = components(gram(3), None, HEADS, real=True)
    assert basis.encode.imag.abs().max() == 0
    assert torch.allclose(
        basis.encode @ basis.encode.mH, torch.eye(len(basis.pair), dtype=torch.complex128), atol=1e-10
    )
    energy = (basis.encode @ commuting(gram(3), HEADS) @ basis.encode.mH).diagonal().real.view(PAIRS, HEADS)
    assert (energy.diff(dim=1) <= 1e-12).all()


def test_complex_mixtures_hold_at_least_the_energy_of_real_ones():
    both = [components(gram(4), None, HEADS, real=real) for real in (True, False)]
    form = commuting(gram(4), HEADS)
    kept = [(b.encode @ form @ b.encode.mH).diagonal().real.view(PAIRS, HEADS)[:, 0].sum() for b in both]
    assert kept[1] > kept[0] * 1.01


def test_folding_finds_more_energy_in_its_first_components():
    one, two = (components(gram(5), None, HEADS, fold=fold, real=True) for fold in (1, 2))
    form = commuting(gram(5), HEADS)
    energy = [(b.encode @ form @ b.encode.mH).diagonal().real for b in (one, two)]
    first = energy[0].view(PAIRS, HEADS)[:, 0].sum()
    folded = energy[1].view(PAIRS // 2, 2 * HEADS)[:, :2].sum()
    assert folded > first
    assert two.pair.tolist() == [0] * 6 + [2] * 6


def test_a_complex_map_is_a_real_one_of_the_floats():
    basis = components(gram(6), gram(7), HEADS)
    found = keys(6) @ real_rows(basis.encode, HEADS).T
    z = to_pairs(keys(6), HEADS).flatten(1) @ basis.encode.T
    assert torch.allclose(found, torch.cat([z.real, z.imag], 1))


def test_the_commuting_form_is_the_mean_over_common_turns():
    form, x = gram(8), keys(8, 1)[0]
    z = to_pairs(x, HEADS).flatten()
    total = 0.0
    for step in range(16):
        angle = torch.polar(torch.tensor(1.0, dtype=torch.float64), torch.tensor(2 * math.pi * step / 16).double())
        y = to_floats((z * angle).view(HEADS, PAIRS))
        total += float(y @ form @ y) / 16
    assert total == pytest.approx(float((z.conj() @ commuting(form, HEADS) @ z).real) / 2)


def test_score_gradients_are_autograds():
    generator = torch.Generator().manual_seed(9)
    tokens, heads = 6, 4

    def draw(count):
        return torch.randn(count, tokens, WIDTH, generator=generator, dtype=torch.float64)

    phase = torch.polar(torch.ones(tokens, PAIRS, dtype=torch.float64), torch.arange(tokens)[:, None] * FREQUENCY)
    window = Heads(draw(heads), draw(2), draw(2), draw(heads), phase, 0.4)
    for head in range(heads):
        group = head // 2
        logits = (turned(window.query[head], phase) @ turned(window.key[group], phase).T).requires_grad_()
        mask = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
        weights = (0.4 * logits).masked_fill(mask, -torch.inf).softmax(-1)
        (expected,) = torch.autograd.grad((weights @ window.value[group] * window.gradient[head]).sum(), logits)
        found, shares = score_gradient(window, head)
        assert torch.allclose(found, expected, atol=1e-12)
        assert torch.allclose(shares, weights.detach())
        assert found.sum(1).abs().max() < 1e-12


@given(seed=st.integers(0, 20), count=st.integers(0, 6))
def test_independent_components_are_chosen_by_what_they_lose(seed, count):
    lost = torch.rand(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    chosen = greedy_pairs(torch.diag(lost), count)
    assert set(chosen.tolist()) == set(lost.argsort(descending=True)[:count].tolist())


def test_choices_count_what_components_lose_together():
    # The first two cancel: dropping both loses nothing, keeping one of them would be worse than keeping none.
    residual = torch.tensor([[4.0, -4.0, 0.0], [-4.0, 4.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    assert greedy_pairs(residual, 1).tolist() == [2]


@pytest.mark.parametrize("step", [1, 2])
def test_a_grid_has_one_component_of_each_frequency_in_order(step):
    residual = gram(10, HEADS * PAIRS)
    pair = torch.arange(PAIRS).repeat_interleave(HEADS)
    chosen = greedy_grid(residual, pair, step)
    assert pair[chosen].tolist() == list(range(0, PAIRS, step))


def test_the_folded_grid_is_transmlas():
    chosen, pair = folded_grid(8, 2, 2, 4)  # eight frequencies, two heads, every second one kept, four folded
    assert chosen.tolist() == [0, 1, 8, 9]
    assert pair.tolist() == [0, 2, 4, 6]
