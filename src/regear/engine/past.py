"""Past texts that several engines draft from: one order for all, kept on disk if wanted, bounded in memory.

Engines push the texts that have ended, from any thread, and learn those of all between training steps, by a `Follower`
each. Source: DAS (arXiv 2511.13841) §4 lets every engine learn from recent rollouts; that a past is handed on at step
boundaries alone, and in batches, is what later users of it found to be needed.
"""

import threading
from collections import deque
from collections.abc import Hashable, Sequence
from itertools import islice
from pathlib import Path

from regear.core.errors import DataError, RecipeError
from regear.core.journal import Journal
from regear.engine.deltas import Delta, Snapshot, checked_group, checked_tokens, checked_version
from regear.engine.drafters.base import Tokens
from regear.engine.drafters.suffix import SuffixDrafter

CAP = 1 << 28  # bytes
LATE = 8  # versions


class Behind(DataError):
    """The deltas that were asked for are gone; a snapshot has what they said."""


class Past:
    """A log of the newest texts, and an index of those before.

    Args:
        cap_bytes: of the log. The oldest half goes into the index when it is full.
        path: a journal that outlives the process; what is in it is read first.
        base: what is known from the start, and the settings of every follower's index. Not with a journal that holds
            something already.

    Raises:
        RecipeError: both a base and a journal that holds something.
        DataError: the journal is damaged, held by another process, or cannot be written.
    """

    def __init__(self, *, cap_bytes: int = CAP, path: Path | None = None, base: SuffixDrafter | None = None) -> None:
        self.cap_bytes = cap_bytes
        self.lock = threading.Lock()
        self.log: deque[Delta] = deque()
        self.log_bytes = self.compacted = 0
        self._start(Snapshot(0, (), base or SuffixDrafter()))
        self.journal = Journal(path) if path else None
        self.synced = True
        try:
            self._read(base is not None)
        except BaseException:
            self.close()
            raise

    @property
    def number(self) -> int:
        """Of the newest delta; 0 before the first."""
        with self.lock:
            return self._newest()

    @property
    def versions(self) -> tuple[int, ...]:
        """The versions last seen, oldest first."""
        with self.lock:
            return tuple(self.seen)

    def push(
        self, group: Hashable, ids: Sequence[int] | Tokens, version: int, prompt: Sequence[int] | Tokens = ()
    ) -> int:
        """A text that has ended; its number in the order of all.

        Args:
            version: of the model that wrote it. One above all before begins an epoch, whatever lies between; a text of
                one of the last 8 that were seen is late, and counts with the newest, as that is when it is learnt.

        Raises:
            RecipeError: a version that is lower than all of those or was never seen, a group that is no text, number or
                None, what are no token ids, or a text larger than the whole log.
            DataError: the journal cannot be written; the text is not taken.
        """
        version = checked_version(version)
        found = checked_group(group), checked_tokens("prompt", prompt), checked_tokens("ids", ids)
        with self.lock:
            delta = Delta(self._newest() + 1, version, self._begins(version), *found)
            if delta.cost > self.cap_bytes:
                raise RecipeError(f"a text of {len(found[2])} tokens is more than this past holds; raise cap_bytes")
            self._make_room(delta.cost)
            if self.journal:
                self._compact(self.journal)
                self.journal.append(delta.encode())
                self.synced = False
            self._take(delta)
        return delta.number

    def since(self, number: int, most: int | None = None) -> list[Delta]:
        """The deltas after this one, in order, at most so many. What is given out is on disk.

        Raises:
            Behind: they are gone.
            DataError: there never was such a number, or the journal cannot be written.
            RecipeError: fewer than one is asked for.
        """
        if most is not None and most < 1:
            raise RecipeError(f"most: found {most}; wanted 1 or more")
        with self.lock:
            if number > self._newest():
                raise DataError(f"found number {number}; this past ends at {self._newest()}, so it is another one's")
            if number < self.first:
                raise Behind(f"found number {number}; the deltas up to {self.first} are gone, take a snapshot")
            self._sync()
            start = number - self.first
            return list(islice(self.log, start, None if most is None else start + most))

    def snapshot(self) -> tuple[int, bytes]:
        """The number of the last delta that is not in the log any more, and what those up to it left."""
        with self.lock:
            self._sync()
            return self.first, self._snapshot().encode()

    def restore(self, snapshot: bytes) -> None:
        """Go on from another past's snapshot.

        Raises:
            RecipeError: this one holds something.
            DataError: the snapshot is damaged, or the journal cannot be written.
        """
        found = Snapshot.decode(snapshot)
        with self.lock:
            if self._newest():
                raise RecipeError(f"found {self._newest()} texts here; restore a snapshot into an empty past")
            if self.journal:
                self.journal.replace([snapshot])
                self.compacted = self.journal.size
            self._start(found)

    def close(self) -> None:
        """Let go of the journal."""
        if self.journal:
            self.journal.close()

    def _newest(self) -> int:
        return self.first + len(self.log)

    def _begins(self, version: int) -> bool:
        """Whether a version is a new one.

        Raises:
            RecipeError: it is neither that nor one of the last.
        """
        if self.seen and version not in self.seen and version < max(self.seen):
            raise RecipeError(f"version: found {version}; wanted one of {sorted(self.seen)}, or one above them")
        return bool(self.seen) and version > max(self.seen)

    def _take(self, delta: Delta) -> None:
        _see(self.seen, delta.version)
        self.log.append(delta)
        self.log_bytes += delta.cost

    def _make_room(self, cost: int) -> None:
        """Put the oldest of the log into the index, at least half of it, if this many bytes more are too many."""
        left = (
            min(self.cap_bytes // 2, self.cap_bytes - cost)
            if self.log_bytes + cost > self.cap_bytes
            else self.cap_bytes
        )
        while self.log_bytes > left:
            delta = self.log[0]
            delta.apply(self.base)  # first: where it fails, numbers stay what they are
            _see(self.folded, delta.version)
            self.log.popleft()
            self.log_bytes -= delta.cost
            self.first += 1

    def _compact(self, journal: Journal) -> None:
        """Write the journal anew when it is twice as long as it need be."""
        if journal.size > 2 * (self.compacted + self.cap_bytes):
            journal.replace([self._snapshot().encode(), *(delta.encode() for delta in self.log)])
            self.compacted, self.synced = journal.size, True

    def _snapshot(self) -> Snapshot:
        return Snapshot(self.first, tuple(self.folded), self.base)

    def _start(self, snapshot: Snapshot) -> None:
        self.base, self.first = snapshot.drafter, snapshot.number
        self.folded, self.seen = (deque(snapshot.versions, maxlen=LATE) for _ in range(2))

    def _sync(self) -> None:
        if self.journal and not self.synced:
            self.journal.sync()
            self.synced = True

    def _read(self, given: bool) -> None:
        """What the journal holds: a snapshot, then deltas."""
        if not self.journal:
            return
        records = self.journal.records()
        head = next(records, None)
        if head is None:
            self.journal.replace([self._snapshot().encode()])
            self.compacted = self.journal.size
            return
        if given:
            raise RecipeError(f"{self.journal.path} holds a past already; give no other, or another path")
        self._start(Snapshot.decode(head))
        self.compacted = len(head)
        for content in records:
            delta = Delta.decode(content)
            self._make_room(delta.cost)
            self._take(delta)


def _see(versions: deque[int], version: int) -> None:
    if version not in versions:
        versions.append(version)
