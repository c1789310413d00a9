"""The vocabulary in chunks gives what whole rows of logits give, whatever the chunks."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from regear.ops.divergence import token_kl, token_nll
from regear.ops.vocabulary import Normaliser, Sampler, picked


def chunked(logits, size):
    return [(start, logits[:, start : start + size]) for start in range(0, logits.shape[1], size)]


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(2, 33), st.floats(0.1, 300))
def test_losses_and_divergence_in_chunks_equal_whole_rows(seed, size, vocabulary, scale):
    generator = torch.Generator().manual_seed(seed)
    teacher, student = (torch.randn(5, vocabulary, generator=generator, dtype=torch.float64) * scale for _ in range(2))
    targets = torch.randint(0, vocabulary, (5,), generator=generator)
    first, second = Normaliser(5, 1), Normaliser(5)
    nll = torch.zeros(5, dtype=torch.float64)
    for (start, p), (_, q) in zip(chunked(teacher, size), chunked(student, size), strict=True):
        first.average(0, first.add(p), p - q)
        second.add(q)
        nll -= picked(q, start, targets)
    torch.testing.assert_close((nll + second.log_total).float(), token_nll(student, targets), rtol=1e-4, atol=1e-4)
    kl = first.means[0] + second.log_total - first.log_total
    torch.testing.assert_close(kl.float(), token_kl(teacher, student), rtol=1e-4, atol=1e-4 * scale)


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 33))
def test_drawn_targets_do_not_depend_on_the_chunks(seed, size, vocabulary):
    generator = torch.Generator().manual_seed(seed)
    probability = torch.randn(6, vocabulary, generator=generator, dtype=torch.float64).softmax(-1)
    uniform = torch.rand(6, generator=generator, dtype=torch.float64)
    sampler = Sampler(uniform)
    found = [sampler.add(part, start) for start, part in chunked(probability, size)]
    expected = (probability.cumsum(-1) <= uniform[:, None]).sum(1)
    inside = expected < vocabulary  # rounding may leave the whole sum just below the number
    assert torch.equal(sampler.targets[inside], expected[inside])
    assert torch.equal(torch.stack(found).sum(0), inside.long())


def test_targets_are_drawn_as_often_as_they_are_likely():
    probability = torch.tensor([0.5, 0.3, 0.0, 0.2], dtype=torch.float64).repeat(20_000, 1)
    sampler = Sampler(torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    for start, part in chunked(probability, 3):
        sampler.add(part, start)
    shares = torch.bincount(sampler.targets, minlength=4) / 20_000
    torch.testing.assert_close(shares, probability[0].float(), atol=0.02, rtol=0)
    assert shares[2] == 0
