"""Which rows of a drafter's own cache hold which texts, and what was read into them."""

from collections.abc import Sequence

import numpy as np

from regear.engine.drafters.base import Array, Text
from regear.engine.runner import Runner

GRAIN = 64  # slots


class Seats:
    """Rows 0 to `len(numbers)` − 1 are in use; `tokens[row, :read[row]]` is what the model has read of a text.

    Args:
        capacity: tokens that the cache may hold, over all rows.
    """

    def __init__(self, runner: Runner, capacity: int) -> None:
        self.runner, self.capacity = runner, capacity
        self.numbers: list[int] = []
        self.read: list[int] = []
        self.used: list[int] = []  # the call that a row was last in
        self.tokens: Array = np.zeros((0, 0), np.int32)
        self.calls = 0

    def seat(self, texts: Sequence[Text], spare: int) -> list[tuple[int, int]]:
        """Give texts a row with `spare` free slots: (place in `texts`, row) of those that have one now.

        Texts that are not asked about give way to those that are, and these to older ones.
        """
        self.calls += 1
        fits = [i for i, text in enumerate(texts) if _grain(len(text.tokens) + spare) <= self.capacity]
        rows = {number: row for row, number in enumerate(self.numbers)}
        for i in fits:
            row = rows.get(texts[i].number)
            if row is None:
                self.numbers.append(texts[i].number)
                self.read.append(0)
                self.used.append(self.calls)
            else:
                self.used[row] = self.calls
        self._make_room({texts[i].number: len(texts[i].tokens) for i in fits}, spare)
        rows = {number: row for row, number in enumerate(self.numbers)}
        seated = [(i, rows[texts[i].number]) for i in fits if texts[i].number in rows]
        for i, row in seated:
            self._cut_back(row, texts[i].tokens)
        return seated

    def _make_room(self, lengths: dict[int, int], spare: int) -> None:
        """Hold every row with room for its text, by its number, and `spare` slots more; free rows until all fit."""
        while len(self.numbers) * (slots := self._slots(lengths, spare)) > self.capacity:
            self.remove(min(range(len(self.numbers)), key=lambda row: (self.used[row], -row)))
        rows, (held_rows, held_slots) = len(self.numbers), self.tokens.shape
        if rows <= held_rows and slots <= held_slots:
            return
        larger = (2 * rows if rows > held_rows else held_rows), max(slots, held_slots)
        if larger[0] * larger[1] > self.capacity:
            larger = rows, slots
        live, width = min(rows, held_rows), min(slots, held_slots)
        moved = np.zeros(larger, np.int32)
        moved[:live, :width] = self.tokens[:live, :width]
        self.tokens = moved
        self.runner.reserve(*larger, live)

    def _slots(self, lengths: dict[int, int], spare: int) -> int:
        used = (max(read, lengths.get(number, 0)) for number, read in zip(self.numbers, self.read, strict=True))
        return _grain(max(used, default=0) + spare)

    def _cut_back(self, row: int, tokens: Array) -> None:
        """Of what was read, keep what stands in the text; its last token is read again, for what comes after it."""
        most = min(self.read[row], len(tokens) - 1)
        same = self.tokens[row, :most] == tokens[:most]
        self.read[row] = most if same.all() else int(same.argmin())

    def took(self, row: int, tokens: Array) -> None:
        """These tokens were read into a row."""
        start = self.read[row]
        self.tokens[row, start : start + len(tokens)] = tokens
        self.read[row] += len(tokens)

    def leave(self, number: int) -> None:
        """Free a text's row, if it has one."""
        if number in self.numbers:
            self.remove(self.numbers.index(number))

    def remove(self, row: int) -> None:
        """Free a row; the last one takes its place."""
        last = len(self.numbers) - 1
        if row != last:
            if length := self.read[last]:
                self.runner.copy(last, row, length)
                self.tokens[row, :length] = self.tokens[last, :length]
            for column in (self.numbers, self.read, self.used):
                column[row] = column[last]
        for column in (self.numbers, self.read, self.used):
            column.pop()


def _grain(slots: int) -> int:
    return -(-slots // GRAIN) * GRAIN
