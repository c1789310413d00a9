"""What a side of the suffix index's benchmark is; needs numpy alone."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from suffix_history import Texts

Call = tuple[Callable[[int, Any], Any], int, Any]


class Side(Protocol):
    def start(self, number: int, group: bytes, prompt: np.ndarray, seed: int = -1) -> None: ...

    def call(self, number: int, tokens: np.ndarray) -> Call:
        """How these tokens are appended: a function and its two arguments, made ready outside the time."""
        ...

    def propose(self, numbers: Sequence[int], known: Sequence[np.ndarray], most: np.ndarray) -> Any:
        """Guesses for texts that stand at these tokens, in whatever form the side gives them."""
        ...

    def ask(self, **limits: float) -> None:
        """How guesses are asked for from now on."""
        ...

    def guesses(self, proposed: Any) -> list[Sequence[int]]: ...

    def observe(self, numbers: Sequence[int], guessed: Sequence[int], kept: Sequence[int]) -> None: ...

    def finish(self, number: int) -> None: ...

    def advance(self) -> None: ...

    def held(self) -> dict[str, int]:
        """Bytes by its own account."""
        ...


def timed(calls: Sequence[Call]) -> float:
    """Seconds of this process: others may share the core."""
    began = time.process_time()
    for function, number, what in calls:
        function(number, what)
    return time.process_time() - began


def write(side: Side, texts: Texts, numbers: Sequence[int]) -> None:
    """Texts as history: each written at once."""
    for i in numbers:
        side.start(i, texts.groups[i], texts.prompts[i])
        timed([side.call(i, texts.tokens[i])])
        side.finish(i)


def fill(side: Side, texts: Texts, generations: int) -> None:
    if generations == 1:
        write(side, texts, range(len(texts.tokens)))
        return
    for k, epoch in enumerate(sorted(set(texts.epochs))):
        if k:
            side.advance()
        write(side, texts, texts.where(epoch))
