"""The end of a model, read a few rows of the vocabulary at a time: losses, divergences, the gradient of a drawn loss.

Neither the head nor the logits of many positions are ever held whole. Shape letters: N positions, D hidden width,
T positions of a block, C entries of a chunk of the vocabulary.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from regear.models.store import Store
from regear.ops.vocabulary import Normaliser, Sampler, picked

CHUNK_BYTES = 32 << 20
CHUNK_ENTRIES = 8192
BLOCK = 512


class Head:
    """Final norm and language-model head. `norm` is a module with its weights; `name` is the head's tensor."""

    def __init__(self, store: Store, norm: nn.Module, name: str, device: torch.device) -> None:
        self.store, self.norm, self.name, self.device = store, norm, name, device
        self.vocabulary, self.hidden = store.shapes[name]

    def spans(self) -> list[tuple[int, int]]:
        """The chunks of the vocabulary."""
        size = max(1, min(CHUNK_ENTRIES, CHUNK_BYTES // (4 * self.hidden)))
        return [(start, min(start + size, self.vocabulary)) for start in range(0, self.vocabulary, size)]

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Some rows of the head in float32, [C, D]."""
        return self.store.rows(self.name, start, stop).to(self.device, torch.float32)


def _blocks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK))


@torch.no_grad()
def token_losses(
    heads: Sequence[Head], states: Sequence[torch.Tensor], targets_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood of the targets under several models, and KL(first ‖ each), in nats; both [models, N].

    Args:
        heads: of each model; equal ones are read once.
        states: normed final states of each model, [N, D].
    """
    count, models = len(targets_N), len(heads)
    losses, kl = (torch.zeros(models, count, dtype=torch.float64) for _ in range(2))
    sums = [[Normaliser(b.stop - b.start, models if i == 0 else 0) for i in range(models)] for b in _blocks(count)]
    for start, stop in heads[0].spans():
        rows = {id(head): head.rows(start, stop) for head in heads}
        for block, found in zip(_blocks(count), sums, strict=True):
            for i, (head, state) in enumerate(zip(heads, states, strict=True)):
                logits = (state[block] @ rows[id(head)].T).double().cpu()
                losses[i, block] -= picked(logits, start, targets_N[block])
                if i == 0:
                    reference, powers = logits, found[0].add(logits)
                else:
                    found[i].add(logits)
                    found[0].average(i, powers, reference - logits)
    for block, found in zip(_blocks(count), sums, strict=True):
        ends = torch.stack([one.log_total for one in found])
        losses[:, block] += ends
        kl[:, block] = found[0].means + ends - ends[0]
    kl[0] = 0.0
    return losses, kl


@torch.no_grad()
def drawn_gradient(head: Head, states_ND: torch.Tensor, uniform_N: torch.Tensor) -> torch.Tensor:
    """Gradient, in the normed final states, of the summed loss of targets that the model draws itself, [N, D].

    Two sweeps over the vocabulary: one for the normaliser, one for probabilities, targets and Σ p w - w_target.
    """
    count = len(states_ND)
    ends = torch.empty(count, dtype=torch.float64)
    sums = [Normaliser(block.stop - block.start) for block in _blocks(count)]
    for start, stop in head.spans():
        rows = head.rows(start, stop)
        for block, found in zip(_blocks(count), sums, strict=True):
            found.add((states_ND[block] @ rows.T).double().cpu())
    for block, found in zip(_blocks(count), sums, strict=True):
        ends[block] = found.log_total
    gradient = torch.zeros_like(states_ND)
    samplers = [Sampler(uniform_N[block]) for block in _blocks(count)]
    for start, stop in head.spans():
        rows = head.rows(start, stop)
        for block, sampler in zip(_blocks(count), samplers, strict=True):
            probability = ((states_ND[block] @ rows.T).double().cpu() - ends[block, None]).exp_()
            drawn = sampler.add(probability, start)
            if stop == head.vocabulary:  # rounding may leave the sum just below a number close to 1
                drawn |= sampler.targets < 0
                sampler.targets[sampler.targets < 0] = stop - 1
            part = probability.to(states_ND) @ rows
            part[drawn.to(part.device)] -= rows[(sampler.targets[drawn] - start).to(rows.device)]
            gradient[block] += part
    return gradient
