"""Token losses against their definitions; chunking changes nothing."""

import torch

from regear.ops.divergence import CHUNK, token_kl, token_nll


def test_definitions():
    torch.manual_seed(0)
    length = CHUNK * 2 + 5
    p, q = torch.randn(length, 11), torch.randn(length, 11)
    targets = torch.randint(0, 11, (length,))
    probabilities = p.softmax(-1)
    naive = (probabilities * (probabilities.log() - q.softmax(-1).log())).sum(-1)
    torch.testing.assert_close(token_kl(p, q), naive, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(token_nll(p, targets), -probabilities[range(length), targets].log())
    assert token_kl(p, p).abs().max() == 0
