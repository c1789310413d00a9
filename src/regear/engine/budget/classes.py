"""DAS's length classes (arXiv 2511.13841): no guesses for texts that are likely short, some for medium, many for long.

A class is where a length stands among all lengths: up to their 50 % quantile, up to 85 %, above. A text starts in the
class that most texts of its group had; while it runs it is in the class that is likeliest among texts that started in
the same one and grew longer than it is. The paper names neither quantiles nor numbers of guesses.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Hashable

import numpy as np

SHORT, MEDIUM, LONG = range(3)
QUANTILES = 0.5, 0.85
GUESSES = 0, 8, 32  # a step


class Classes:
    """The classes of texts by the history of their groups."""

    def __init__(self) -> None:
        self.history: dict[Hashable, list[int]] = defaultdict(list)
        self.ended: list[tuple[int, int]] = []  # the class it started in, its length
        self.bounds: list[float] = [0.0, 0.0]
        self.alive: dict[int, tuple[list[int], list[int]]] = {}  # by start: lengths, longest last, and their classes

    def add(self, group: Hashable, start: int, length: int) -> None:
        """A text of a group that started in a class has ended; it counts from the next `refresh` on."""
        self.history[group].append(length)
        self.ended.append((start, length))

    def refresh(self) -> None:
        """Take in what has ended, between epochs."""
        if self.ended:
            self.bounds = np.quantile([length for _, length in self.ended], QUANTILES).tolist()
        for start in (SHORT, MEDIUM, LONG):
            lengths = sorted(length for began, length in self.ended if began == start)
            self.alive[start] = lengths, [self.of(length) for length in lengths]

    def of(self, length: int) -> int:
        """The class of a length."""
        return int(np.searchsorted(self.bounds, length, side="left"))

    def start(self, group: Hashable) -> int:
        """The class that a text of this group starts in: medium where nothing is known."""
        known = self.history.get(group) or [length for _, length in self.ended]
        return max(Counter(map(self.of, known)).items(), key=lambda one: (one[1], one[0]))[0] if known else MEDIUM

    def now(self, start: int, written: int) -> int:
        """The class of a text that started in one and has grown so far: the longest one where none got so far."""
        lengths, classes = self.alive.get(start, ([], []))
        longer = classes[bisect_right(lengths, written) :]
        return max((SHORT, MEDIUM, LONG), key=lambda one: (longer.count(one), one))
