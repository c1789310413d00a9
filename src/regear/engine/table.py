"""The texts in flight, as columns: one row a text, in the same place as its row of the cache.

Columns, not objects, so that a step's bookkeeping is a few array operations whatever the number of rows.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from regear.engine.types import Request

Array = npt.NDArray[Any]

NONE = -1  # no token


class Table:
    """Rows 0 to `count` − 1 are in use.

    `tokens[i, :length[i]]` is known, `cached[i]` of it has been read by the model; a text may grow to `limit[i]`.
    """

    def __init__(self, rows: int = 8, width: int = 64) -> None:
        self.count = 0
        self.tokens: Array = np.zeros((rows, width), np.int32)
        self.stops: Array = np.full((rows, 1), NONE, np.int32)
        self.number, self.length, self.cached, self.prompt, self.limit, self.top_k, self.forwards = (
            np.zeros(rows, np.int64) for _ in range(7)
        )
        self.seed = np.zeros(rows, np.uint64)
        self.temperature, self.top_p, self.min_p = (np.zeros(rows, np.float64) for _ in range(3))
        self.penalised, self.strings, self.logprobs = (np.zeros(rows, bool) for _ in range(3))
        self.requests: list[Request] = []

    def _columns(self) -> list[str]:
        return [name for name, value in vars(self).items() if isinstance(value, np.ndarray)]

    def add(self, number: int, request: Request, known: list[int]) -> int:
        """A new last row: the prompt, with what was already written after it; returns its place."""
        row = self.count
        limit = len(request.prompt) + request.max_tokens
        self._reserve(row + 1, limit, len(request.stop_tokens))
        self.count += 1
        self.requests.append(request)
        self.tokens[row, : len(known)] = known
        self.stops[row] = NONE
        self.stops[row, : len(request.stop_tokens)] = list(request.stop_tokens)
        self.number[row], self.length[row], self.cached[row] = number, len(known), 0
        self.prompt[row], self.limit[row], self.forwards[row] = len(request.prompt), limit, 0
        self.seed[row] = np.uint64(request.seed & 0xFFFFFFFFFFFFFFFF)
        self.temperature[row], self.top_p[row] = request.temperature, request.top_p
        self.min_p[row], self.top_k[row] = request.min_p, request.top_k
        self.penalised[row], self.strings[row] = request.penalised, bool(request.stop)
        self.logprobs[row] = request.logprobs
        return row

    def _reserve(self, rows: int, width: int, stops: int) -> None:
        held = len(self.tokens)
        if rows > held:
            for name in self._columns():
                old: Array = getattr(self, name)
                setattr(
                    self, name, np.concatenate([old, np.zeros((max(rows, 2 * held) - held, *old.shape[1:]), old.dtype)])
                )
        if width > self.tokens.shape[1]:
            more = max(width, self.tokens.shape[1] * 3 // 2) - self.tokens.shape[1]
            self.tokens = np.pad(self.tokens, ((0, 0), (0, more)))
        if stops > self.stops.shape[1]:
            self.stops = np.pad(self.stops, ((0, 0), (0, stops - self.stops.shape[1])), constant_values=NONE)

    def move(self, source: int, target: int) -> None:
        """Row `target` becomes a copy of row `source`."""
        if source != target:
            for name in self._columns():
                column: Array = getattr(self, name)
                column[target] = column[source]
            self.requests[target] = self.requests[source]

    def pop(self) -> None:
        """Forget the last row."""
        self.count -= 1
        self.requests.pop()

    def text(self, row: int) -> list[int]:
        """All tokens of a row."""
        found: list[int] = self.tokens[row, : self.length[row]].tolist()
        return found

    def written(self, row: int) -> list[int]:
        """The tokens of a row after its prompt."""
        return self.text(row)[self.prompt[row] :]
