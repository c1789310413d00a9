"""Which group a text belongs to: the one it names, else that of its prompt, else that of a prompt it goes on from."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from regear.engine.drafters.base import Tokens
from regear.ops.noise import mix

PROMPTS = 1 << 16  # remembered


class Routes:
    """Groups by prompt. A conversation's next turn begins with its last prompt, and belongs to the same group if that
    is at least half of it; the prompts longest unused are forgotten.

    Args:
        state: what `state` gave.
    """

    def __init__(self, state: Sequence[Sequence[Any]] = ()) -> None:
        self.groups: OrderedDict[str, str] = OrderedDict((str(prompt), str(group)) for prompt, group in state)

    def group(self, named: Hashable, prompt: Tokens) -> bytes:
        """The key of a text's group."""
        if named is not None:
            return f"{_kind(named)}:{named}".encode(errors="surrogatepass")
        if not len(prompt):
            return b"prompt:"
        names = _beginnings(prompt)
        known = next((name for name in reversed(names[(len(prompt) + 1) // 2 - 1 :]) if name in self.groups), None)
        group = names[-1] if known is None else self.groups[known]
        for name in (known, names[-1]):
            if name is not None:
                self.groups[name] = group
                self.groups.move_to_end(name)
        while len(self.groups) > PROMPTS:
            self.groups.popitem(last=False)
        return f"prompt:{group}".encode()

    def state(self) -> list[list[str]]:
        """Plain values, to be saved."""
        return [[prompt, group] for prompt, group in self.groups.items()]


def _kind(named: Hashable) -> str:
    """What a group's name is, so that 7 and "7" are two groups, and numpy's 7 the same as Python's."""
    if isinstance(named, str):
        return "str"
    return "int" if isinstance(named, Integral) and not isinstance(named, bool) else type(named).__name__


def _beginnings(prompt: Tokens) -> list[str]:
    """A name for each beginning of a prompt, the whole last."""
    places = np.arange(len(prompt), dtype=np.uint64) << np.uint64(32)
    sums = np.cumsum(mix(mix(places + prompt.astype(np.uint64) + np.uint64(1))), dtype=np.uint64)
    return [f"{length}-{value:016x}" for length, value in enumerate(sums.tolist(), 1)]
