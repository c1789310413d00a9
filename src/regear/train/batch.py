"""What one step reads. B rows, L tokens a row."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Rows of tokens with their document boundaries and their training mask.

    Attributes:
        tokens_BL: token ids, int64.
        positions_BL: place in the document, int64; it restarts at 0 at every document.
        predict_BL: bool, whether the prediction made at a token, of the token after it, counts: not at the last token
            of a document, not where a masked token follows, not at padding.
    """

    tokens_BL: Tensor
    positions_BL: Tensor
    predict_BL: Tensor
