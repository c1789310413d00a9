"""What a training step reads. Shape letters: B rows, L positions, N predictions that count."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from regear.core.errors import DataError


@dataclass(frozen=True)
class Batch:
    """Rows of one document or several, each shape [B, L].

    Args:
        tokens_BL: token ids.
        positions_BL: positions; they restart with every document, which is what keeps documents of a row apart.
        predict_BL: whether the prediction made at a position, of the next token, counts.

    Raises:
        DataError: a prediction that counts has no next token in its document.
    """

    tokens_BL: torch.Tensor
    positions_BL: torch.Tensor
    predict_BL: torch.Tensor

    def __post_init__(self) -> None:
        goes_on = self.positions_BL[:, 1:] == self.positions_BL[:, :-1] + 1
        if bool(self.predict_BL[:, -1].any() or (self.predict_BL[:, :-1] & ~goes_on).any()):
            raise DataError("a counted prediction is of a token outside its document; unset predict at each last token")

    @cached_property
    def count(self) -> int:
        """How many predictions count, N."""
        return int(self.predict_BL.sum())

    @property
    def targets_N(self) -> torch.Tensor:
        """The tokens that counted predictions are of, row after row."""
        return self.tokens_BL[:, 1:][self.predict_BL[:, :-1]]

    @cached_property
    def plain(self) -> bool:
        """Whether every row counts up from 0, as a model does by itself without a mask."""
        return bool((self.positions_BL == torch.arange(self.tokens_BL.shape[1], device=self.positions_BL.device)).all())

    def split(self, rows: int) -> "list[Batch]":
        """Batches of at most `rows` rows, in order."""
        parts = zip(*(table.split(rows) for table in (self.tokens_BL, self.positions_BL, self.predict_BL)), strict=True)
        return [Batch(*part) for part in parts]

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device."""
        return replace(self, **{name: value.to(device) for name, value in vars(self).items() if name.endswith("_BL")})
