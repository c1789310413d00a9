"""What a training step reads. Shape letters: B rows, L positions, N predictions that count."""

from copy import copy
from dataclasses import dataclass, field
from functools import cached_property

import torch

from regear.core.errors import DataError


@dataclass(frozen=True)
class Batch:
    """Rows of one document or several, each shape [B, L].

    What Python asks of a batch (`count`, `plain`, …) is read where the batch was made, so that a batch on a GPU is
    never waited for.

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
    _origin: "Batch | None" = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        goes_on = self.positions_BL[:, 1:] == self.positions_BL[:, :-1] + 1
        if bool(self.predict_BL[:, -1].any() or (self.predict_BL[:, :-1] & ~goes_on).any()):
            raise DataError("a counted prediction is of a token outside its document; unset predict at each last token")

    @property
    def origin(self) -> "Batch":
        """The batch on the device where it was made."""
        return self._origin or self

    @cached_property
    def places_N(self) -> torch.Tensor:
        """Where predictions count, row after row, as b · L + l."""
        return self.predict_BL.flatten().nonzero().squeeze(1)

    @property
    def count(self) -> int:
        """How many predictions count, N."""
        return len(self.places_N)

    @cached_property
    def answered(self) -> int:
        """In how many rows a prediction counts."""
        return int(self.origin.predict_BL.any(1).sum())

    @cached_property
    def plain(self) -> bool:
        """Whether every row counts up from 0, as a model does by itself without a mask."""
        return bool((self.origin.positions_BL == torch.arange(self.tokens_BL.shape[1])).all())

    @property
    def rows_N(self) -> torch.Tensor:
        """The row of each prediction that counts."""
        return self.places_N // self.tokens_BL.shape[1]

    @property
    def targets_N(self) -> torch.Tensor:
        """The tokens that counted predictions are of, row after row."""
        return self.tokens_BL.flatten()[self.places_N + 1]

    def counted(self, states_BLD: torch.Tensor) -> torch.Tensor:
        """The states whose predictions count, [N, D]."""
        return states_BLD.flatten(0, 1).index_select(0, self.places_N)

    def split(self, rows: int) -> "list[Batch]":
        """Batches of at most `rows` rows, in order."""
        parts = zip(*(table.split(rows) for table in (self.tokens_BL, self.positions_BL, self.predict_BL)), strict=True)
        return [Batch(*part) for part in parts]

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device."""
        names = ("tokens_BL", "positions_BL", "predict_BL", "places_N")
        moved = copy(self)
        vars(moved).update({name: getattr(self, name).to(device, non_blocking=True) for name in names})
        vars(moved)["_origin"] = self.origin
        return moved
