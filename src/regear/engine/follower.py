"""One engine's part of a past that several share.

What an engine's own texts write while they are in flight helps their siblings, but comes back as deltas, with those of
all other engines and in another order. A follower therefore keeps an index that deltas alone write to, and the engine's
drafter reads that one and writes beside it; what it wrote goes at the next boundary. So no text counts twice, and what
engines know of the past is the same to the byte wherever they are at the same number.
"""

from regear.core.errors import DataError
from regear.engine.deltas import Snapshot
from regear.engine.drafters.suffix import SuffixDrafter
from regear.engine.past import Behind, Past

BATCH = 1024  # deltas fetched at once


class Follower:
    """Brings an engine's drafter up to a past. What the drafter knew before, and its index's settings, give way.

    `number` is that of the last delta it has learnt, -1 before the first `catch_up`.
    """

    def __init__(self, drafter: SuffixDrafter, past: Past) -> None:
        self.drafter, self.past = drafter, past
        self.base, self.number = SuffixDrafter(), -1

    def catch_up(self, until: int | None = None, most: int = BATCH) -> int:
        """Learn what was pushed, between two steps of the engine and in its thread; the number reached.

        Args:
            until: stop at this delta, so that engines that must guess alike, such as the ranks of one model, do; by
                default the newest.
            most: deltas fetched at once.

        Raises:
            DataError: `until` is not there yet, or lies before what is known; or the past is another one, or is
                damaged or cannot be written. What was learnt so far stays.
        """
        newest = self.past.number
        until = newest if until is None else until
        if not self.number <= until <= newest:
            raise DataError(f"until: found {until}; wanted {self.number} to {newest}, from what is known to the newest")
        self.drafter.let_go()
        try:
            while self.number < until:
                self._fetch(until, most)
        finally:
            self.drafter.rest_on(self.base)
        return self.number

    def _fetch(self, until: int, most: int) -> None:
        try:
            deltas = self.past.since(self.number, min(most, until - self.number))
        except Behind:
            self._restore(until)
            return
        for delta in deltas:
            delta.apply(self.base)
            self.number = delta.number

    def _restore(self, until: int) -> None:
        snapshot = Snapshot.decode(self.past.snapshot()[1])
        if snapshot.number > until:
            raise DataError(f"until: found {until}; the deltas up to {snapshot.number} are gone, ask for a later one")
        self.base, self.number = snapshot.drafter, snapshot.number
