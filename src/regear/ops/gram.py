"""Streaming second moments in float64: the Gram of what a projection puts out, pads left out."""

import torch


class Moments:
    """Weighted count, sum and Gram of rows, accumulated in float64 so that order and batching do not matter.

    Shapes: rows [N, W]; `gram` [W, W] is the weighted sum of outer products, not yet divided by `count`.
    """

    def __init__(self, width: int) -> None:
        self.count = 0.0
        self.total = torch.zeros(width, dtype=torch.float64)
        self.gram = torch.zeros(width, width, dtype=torch.float64)

    def add(self, rows_NW: torch.Tensor, weight_N: torch.Tensor | None = None) -> None:
        """Add rows; a row of weight 0 (a pad) changes nothing."""
        rows = rows_NW.to("cpu", torch.float64)
        weight = torch.ones(len(rows), dtype=torch.float64) if weight_N is None else weight_N.to("cpu", torch.float64)
        weighted = rows * weight[:, None]
        self.count += float(weight.sum())
        self.total += weighted.sum(0)
        self.gram += weighted.T @ rows

    @property
    def mean(self) -> torch.Tensor:
        """[W]."""
        return self.total / max(self.count, 1e-300)

    @property
    def second(self) -> torch.Tensor:
        """E[y yᵀ], [W, W], not centred."""
        return self.gram / max(self.count, 1e-300)
