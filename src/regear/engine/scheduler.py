"""Which texts are in flight: admitted as memory allows, begun from what others have read, put back when it runs out.

Rows 0 to `ready` − 1 wait for their next token; rows from there on still read what is known of them. All rows are
contiguous, so that a pass over some of them is a slice of the cache.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np

from regear.core.errors import RecipeError
from regear.engine.runner import Runner
from regear.engine.table import Table
from regear.engine.types import Request

GRAIN = 64  # slots
SHARE = 16  # tokens that must be common before a row begins as a copy of another


@dataclass
class Waiting:
    """A request that is not in flight, with all that is known of its text."""

    number: int
    request: Request
    known: list[int]
    forwards: int = 0


class Scheduler:
    """Rows of texts, and the queue before them.

    Args:
        most: rows at a time.
        budget: bytes that the cache may take.
        spare: slots a row needs beyond its known tokens in one pass.
    """

    def __init__(self, runner: Runner, *, most: int, budget: int, spare: int) -> None:
        self.runner, self.most, self.spare = runner, most, spare
        self.capacity = budget // max(1, runner.bytes_per_token)  # tokens, over all rows
        self.fixed = -(-runner.bytes_per_row // max(1, runner.bytes_per_token))  # tokens' worth a row, however short
        self.table, self.queue = Table(), deque[Waiting]()
        self.ready = self.rows = self.slots = self.preempted = 0

    def add(self, number: int, request: Request) -> None:
        """Queue a request.

        Raises:
            RecipeError: its text would not fit in the cache even alone.
        """
        longest = len(request.prompt) + request.max_tokens
        if not self._holds(1, _grain(longest + self.spare)):
            needed, allowed = (
                tokens * self.runner.bytes_per_token / 1e6 for tokens in (longest + self.fixed, self.capacity)
            )
            raise RecipeError(
                f"{len(request.prompt)} tokens of prompt and {request.max_tokens} new ones take {needed:,.0f} MB of "
                f"cache, and {allowed:,.0f} are allowed; ask for fewer, or raise the limit"
            )
        self.queue.append(Waiting(number, request, list(request.prompt)))

    def admit(self) -> None:
        """Take what fits from the queue, in order; a text that another is about to have read waits for it."""
        held: list[Waiting] = []
        while self.queue and self.table.count < self.most:
            item = self.queue.popleft()
            source, common, soon = self._common(item.known)
            if soon > common + SHARE:
                held.append(item)
                continue
            if not self._fits(len(item.known)):
                held.append(item)
                break
            self._begin(item, source, common)
        self.queue.extendleft(reversed(held))

    def _fits(self, length: int) -> bool:
        """Whether one more row of this length, with some room to grow, can be held beside the others."""
        longest = max([length, *self.table.length[: self.table.count]]) + self.spare
        return self._holds(self.table.count + 1, _grain(longest + GRAIN)) or not self.table.count

    def _holds(self, rows: int, slots: int) -> bool:
        """Whether the cache may have so many rows of so many slots."""
        return rows * (slots + self.fixed) <= self.capacity

    def _common(self, known: list[int]) -> tuple[int, int, int]:
        """The row that has read most of a text's beginning, how much, and how much some row will have read soon."""
        table = self.table
        if not self.runner.shares or not table.count:
            return 0, 0, 0
        width = min(len(known), table.tokens.shape[1])
        same = table.tokens[: table.count, :width] == np.array(known[:width], np.int32)
        length = np.logical_and.accumulate(same, axis=1).sum(1)
        length = np.minimum(length, len(known) - 1)  # the last token must be read, for what comes after it
        read = np.minimum(length, table.cached[: table.count])
        source = int(read.argmax())
        return source, int(read[source]), int(np.minimum(length, table.length[: table.count]).max())

    def _begin(self, item: Waiting, source: int, common: int) -> None:
        row = self.table.add(item.number, item.request, item.known)
        self.table.forwards[row] = item.forwards
        self.room()
        if common >= SHARE:
            self.runner.copy(source, row, common)
            self.table.cached[row] = common

    def hold(self, rows: int, slots: int) -> None:
        """Room for rows of this length while no text is in flight.

        Raises:
            RecipeError: more than the cache may take.
        """
        if not self._holds(rows, slots):
            raise RecipeError(f"{rows} x {slots} tokens do not fit in a cache of {self.capacity}; raise the limit")
        if rows > self.rows or slots > self.slots:
            self.rows, self.slots = rows, slots
            self.runner.reserve(rows, slots, 0)

    def room(self) -> None:
        """Hold every row with room for one pass; rows that do not fit go back to the queue, the newest first."""
        table = self.table
        while table.count > 1 and not self._holds(table.count, self._needed()):
            self.put_back()
        needed, rows, slots = self._needed(), self.rows, self.slots
        if table.count > rows:
            rows = min(self.most, max(table.count, 2 * rows))
        if needed > slots:
            rows = table.count if slots else rows
            slots = max(needed, _grain(slots * 5 // 4))
        if not self._holds(rows, slots):  # rows may have been longer before, and leave what they need no longer
            slots = min(slots, self.capacity // table.count - self.fixed)
            rows = max(table.count, min(rows, self.capacity // (slots + self.fixed)))
        if (rows, slots) != (self.rows, self.slots):
            live = min(table.count, self.rows)
            self.rows, self.slots = rows, slots
            self.runner.reserve(rows, slots, live)

    def _needed(self) -> int:
        return _grain(int(self.table.length[: self.table.count].max()) + self.spare)

    def put_back(self) -> None:
        """Preempt the newest text: what is known of it will be read again."""
        table = self.table
        row = int(table.number[: table.count].argmax())
        item = Waiting(int(table.number[row]), table.requests[row], table.text(row), int(table.forwards[row]))
        self.remove(row)
        self.queue.appendleft(item)
        self.preempted += 1

    def remove(self, row: int) -> None:
        """Take a row out; others close the gaps."""
        table = self.table
        if row < self.ready:
            self.ready -= 1
            self._shift(self.ready, row)
            row = self.ready
        self._shift(table.count - 1, row)
        table.pop()

    def _shift(self, source: int, target: int) -> None:
        if source != target:
            self.runner.copy(source, target, int(self.table.cached[source]))
            self.table.move(source, target)


def _grain(slots: int) -> int:
    return -(-slots // GRAIN) * GRAIN
