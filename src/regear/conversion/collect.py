"""What calibration gathers in each layer. A collector is one row of `COLLECTORS`; later conversions add theirs.

A collector sees, layer by layer, what the attention projections put out for real tokens (`Seen`); one that asks for
gradients sees the gradients of the loss in the same places too. Its `state()` is what the cache keeps.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from regear.core.registry import Row, Table
from regear.models.families import SourceSpec
from regear.ops.fisher import kronecker_fisher
from regear.ops.gram import Moments
from regear.ops.rope import Heads


@dataclass(frozen=True)
class Attended(Heads):
    """One window's attention with what its keys and values were made from.

    Shapes: keys, values (before any norm, rotation or bias) [T, W / 2]; weight [T]; `before`, with a key norm: the
    layer's inputs [T, D] and the queries before their norm [H, T, d].
    """

    keys: torch.Tensor
    values: torch.Tensor
    weight: torch.Tensor
    before: tuple[torch.Tensor, torch.Tensor] | None = None

    def layer_inputs(self) -> torch.Tensor:
        """[T, D]."""
        return self._before()[0]

    def raw(self) -> torch.Tensor:
        """[H, T, d]."""
        return self._before()[1]

    def _before(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.before is None:
            raise ValueError("only models that norm their keys keep what was before")
        return self.before


@dataclass(frozen=True)
class Seen:
    """Flattened over real tokens, but for `windows`, which are given to those who ask for them.

    Shapes: queries [N, H*d]; outputs (keys and values before any norm or rotation, without bias) [N, W]; weight [N];
    gradients in the outputs [N, W], or None.
    """

    queries: torch.Tensor
    outputs: torch.Tensor
    weight: torch.Tensor
    gradients: torch.Tensor | None = None
    windows: Sequence[Attended] = ()


class Collector(ABC):
    """Gathers one kind of statistic in one layer; says whether it wants gradients, and `Seen.windows` with them."""

    gradient = False
    attended = False

    def __init__(self, spec: SourceSpec) -> None:
        self.spec = spec

    @abstractmethod
    def add(self, seen: Seen) -> None:
        """Take in one batch."""

    @abstractmethod
    def state(self) -> dict[str, torch.Tensor]:
        """The statistics, by name."""


class KvMoments(Collector):
    """Gram and mean of [k; v], in float64."""

    def __init__(self, spec: SourceSpec) -> None:
        super().__init__(spec)
        self.moments = Moments(spec.kv_width)

    def add(self, seen: Seen) -> None:
        self.moments.add(seen.outputs, seen.weight)

    def state(self) -> dict[str, torch.Tensor]:
        count = torch.tensor(self.moments.count, dtype=torch.float64)
        return {"kv_gram": self.moments.second, "kv_mean": self.moments.mean, "kv_count": count}


class QueryEnergy(Collector):
    """Mean square of each query coordinate, [H, d]: what attention makes of an error in the keys."""

    def __init__(self, spec: SourceSpec) -> None:
        super().__init__(spec)
        self.total = torch.zeros(spec.heads * spec.head_dim, dtype=torch.float64)
        self.count = 0.0

    def add(self, seen: Seen) -> None:
        self.total += (seen.queries.double().square() * seen.weight.double()[:, None]).sum(0)
        self.count += float(seen.weight.double().sum())

    def state(self) -> dict[str, torch.Tensor]:
        return {"query_energy": (self.total / max(self.count, 1e-300)).view(self.spec.heads, self.spec.head_dim)}


class KvFisher(Collector):
    """The loss's curvature in [k; v] as a Kronecker product; keeps one layer's outputs and gradients to fit it."""

    gradient = True

    def __init__(self, spec: SourceSpec) -> None:
        super().__init__(spec)
        self.rows: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def add(self, seen: Seen) -> None:
        if seen.gradients is not None:
            self.rows.append((seen.outputs, seen.gradients, seen.weight))

    def state(self) -> dict[str, torch.Tensor]:
        gram, metric = kronecker_fisher(*(torch.cat(parts) for parts in zip(*self.rows, strict=True)))
        return {"fisher_gram": gram, "fisher_metric": metric}


COLLECTORS = Table(
    "collector",
    [
        Row("kv-moments", None, "regear.conversion.collect:KvMoments", "Gram and mean of keys and values"),
        Row("query-energy", None, "regear.conversion.collect:QueryEnergy", "mean square of the queries"),
        Row("kv-fisher", None, "regear.conversion.collect:KvFisher", "curvature of the loss in keys and values"),
        Row("rope-curvature", None, "regear.conversion.rope_curvature:RopeCurvature", "what keys lose without RoPE"),
    ],
)
