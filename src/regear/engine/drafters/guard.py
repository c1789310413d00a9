"""A drafter that cannot do harm: one that raises, stalls or returns what are no guesses is switched off for good.

Its calls run in a thread of their own, so that one that never comes back holds up neither the engine for longer than a
deadline nor the end of the process.
"""

import sys
import threading
import weakref
from collections.abc import Callable, Hashable, Sequence
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from regear.core.errors import one_line
from regear.engine.drafters.base import NOTHING, Array, Drafter, Outcome, Text, Tokens

DEADLINE = 5.0  # seconds
Call = tuple[Callable[[], Any], "SimpleQueue[tuple[Any, BaseException | None]]"]


class Faulty(Exception):
    """What a drafter returned cannot be used."""


class Guarded:
    """A drafter in a thread of its own, until its first fault.

    Args:
        vocabulary: guesses are ids below it.
        deadline: seconds that a call may take.
    """

    def __init__(self, drafter: Drafter, vocabulary: int, deadline: float = DEADLINE) -> None:
        self.drafter: Drafter | None = drafter
        self.vocabulary, self.deadline = vocabulary, deadline
        self.calls: SimpleQueue[Call | None] = SimpleQueue()
        self.started = False
        weakref.finalize(self, self.calls.put, None)

    @property
    def off(self) -> bool:
        """Whether it has been switched off."""
        return self.drafter is None

    def propose(self, texts: Sequence[Text], most: Array) -> list[Tokens]:
        """Guesses that can be used; none at all from the first fault on."""
        most = most.copy()
        found = self._call(lambda drafter: usable(drafter.propose(texts, most.copy()), most, self.vocabulary))
        return [NOTHING] * len(texts) if found is None else found

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """Pass on what became of the last guesses."""
        self._call(lambda drafter: drafter.observe(outcomes))

    def finish(self, number: int, tokens: Tokens, prompt: int, group: Hashable) -> None:
        """Pass on that a text has ended."""
        self._call(lambda drafter: drafter.finish(number, tokens, prompt, group))

    def _call(self, work: Callable[[Drafter], Any]) -> Any:
        """What the drafter answers, or None where it is off or is now switched off."""
        drafter = self.drafter
        if drafter is None:
            return None
        if not self.started:
            threading.Thread(target=_serve, args=(self.calls,), name="regear-drafter", daemon=True).start()
            self.started = True
        answer: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self.calls.put((lambda: work(drafter), answer))
        try:
            found, error = answer.get(timeout=self.deadline)
        except Empty:
            self._switch_off(f"did not answer within {self.deadline:g} s")
            return None
        if error is not None:
            what = str(error) if isinstance(error, Faulty) else f"raised {type(error).__name__}: {error}"
            self._switch_off(what)
        return found

    def _switch_off(self, what: str) -> None:
        name = type(self.drafter).__name__
        self.drafter = None
        self.calls.put(None)
        print(f"regear: warning: {name} {one_line(what)[:200]}; it is switched off, without it decoding goes on as "
              "before", file=sys.stderr)  # fmt: skip


def guarded(drafter: Drafter | None, vocabulary: int) -> Guarded | None:
    """A drafter with a guard around it; None stays None."""
    if drafter is None or isinstance(drafter, Guarded):
        return drafter
    return Guarded(drafter, vocabulary)


def usable(found: Any, most_N: Array, vocabulary: int) -> list[Tokens]:
    """Guesses as arrays.

    Raises:
        Faulty: a wrong number of guesses, guesses that are too long, or what are not ids of the vocabulary.
    """
    guesses = [np.asarray(guess) for guess in found]
    if len(guesses) != len(most_N):
        raise Faulty(f"gave {len(guesses)} guesses for {len(most_N)} texts")
    for guess, most in zip(guesses, most_N.tolist(), strict=True):
        if guess.ndim != 1 or len(guess) > most:
            raise Faulty(f"gave a guess of shape {guess.shape} where {most} tokens were asked for")
        if len(guess) and guess.dtype.kind not in "iu":
            raise Faulty(f"gave a guess of type {guess.dtype}, not integers")
    every = np.concatenate(guesses) if guesses else NOTHING
    if len(every) and not (every.min() >= 0 and every.max() < vocabulary):
        raise Faulty(f"gave ids from {every.min()} to {every.max()} for a vocabulary of {vocabulary}")
    return [guess.astype(np.int32) for guess in guesses]


def _serve(calls: "SimpleQueue[Call | None]") -> None:
    """Run calls one after another; None ends the thread."""
    while (call := calls.get()) is not None:
        work, answer = call
        try:
            answer.put((work(), None))
        except BaseException as error:  # whatever it is, it must not end the engine
            answer.put((None, error))
        del call, work, answer  # what waits for the next call holds on to no drafter
