"""How much is left of a text, from how long the texts of its group were of late.

Kaplan–Meier with a prior: after t tokens a text ends with its next one with the chance

    h(t) = (ended at t + 1 + w · h of all groups) / (longer than t + w),

where texts that were cut or cancelled count as longer than any t they reached. All groups lean in turn on one text that
ends anywhere up to the cap, so that nothing known means half of what is left.
"""

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

EPOCHS = 4
WEIGHT = 2.0  # texts of its own group that those of all groups count for
BINS = 512  # a cap is cut into so many parts at most, in which the chance is even
KEPT, OWN = 4096, 256  # texts of an epoch that are remembered, of all groups and of each
GROUPS, LAWS = 4096, 1024  # groups that are remembered, and what was made of them

Ended = tuple[int, bool]  # a length in tokens, and whether the text ended there by itself


@dataclass
class _Epochs:
    """The lengths of the last epochs, the newest last."""

    window: int
    kept: int
    epochs: deque[deque[Ended]] = field(init=False)
    version: int = 0

    def __post_init__(self) -> None:
        self.epochs = deque([deque(maxlen=self.kept)], maxlen=self.window)

    def add(self, length: int, ended: bool) -> None:
        self.epochs[-1].append((length, ended))
        self.version += 1

    def advance(self) -> None:
        self.epochs.append(deque(maxlen=self.kept))
        self.version += 1

    def all(self) -> list[Ended]:
        return [found for epoch in self.epochs for found in epoch]


@dataclass
class _Law:
    """What is known under one cap: by parts written the chance to end, how much is left, and the sum of −log(1 − h)."""

    version: tuple[int, int]
    hazard: Array
    left: Array
    risk: Array


class Lengths:
    """Lengths of ended texts by group.

    Args:
        epochs: how many, this one included, are remembered.
        weight: texts that those of other groups count for in a group; 0 is plain Kaplan–Meier where it has texts.
    """

    def __init__(self, epochs: int = EPOCHS, weight: float = WEIGHT) -> None:
        self.window, self.weight = epochs, weight
        self.groups: dict[Hashable, _Epochs] = {}  # the one that a text ended of last at the end
        self.everyone = _Epochs(epochs, KEPT)
        self.laws: dict[tuple[Hashable, int], _Law] = {}

    def add(self, group: Hashable, length: int, ended: bool = True) -> None:
        """A text that took `length` tokens; not `ended` where it was cut, so that it would have been longer."""
        self.everyone.add(length, ended)
        if group is not None:
            held = self.groups.pop(group, None) or _Epochs(self.window, OWN)
            held.add(length, ended)
            self.groups[group] = held
            if len(self.groups) > GROUPS:
                oldest = next(iter(self.groups))
                del self.groups[oldest]
                self.laws = {key: law for key, law in self.laws.items() if key[0] != oldest}

    def advance(self) -> None:
        """An epoch ends; the oldest one is forgotten."""
        for held in (self.everyone, *self.groups.values()):
            held.advance()
        self.groups = {group: held for group, held in self.groups.items() if any(held.epochs)}
        self.laws.clear()

    def all(self) -> list[Ended]:
        """Every length that is remembered."""
        return self.everyone.all()

    def remaining(self, group: Hashable, written: int, cap: int) -> float:
        """Tokens that are expected to come after `written` ones, at most up to the cap."""
        width = _width(cap)
        law, place = self._law(group, cap), written / width
        left = np.interp(place, np.arange(len(law.left)), law.left)
        return float(min(left * width, cap - written))

    def draws(self, group: Hashable, written: int, cap: int, risks: Array) -> Array:
        """Tokens to come in possible worlds, one for each of `risks`, which are drawn from the exponential law."""
        width = _width(cap)
        law, place = self._law(group, cap), written / width
        so_far = np.interp(place, np.arange(len(law.risk)), law.risk)
        ends = np.searchsorted(law.risk, so_far + risks, side="left") * width
        return np.clip(ends - written, 1, max(1, cap - written)).astype(np.float64)

    def _law(self, group: Hashable, cap: int) -> _Law:
        held = self.groups.get(group)
        version = (held.version if held else 0, self.everyone.version if held is None else 0)
        key = (group if held else None, cap)
        found = self.laws.get(key)
        if found is None or found.version != version:
            found = self._fitted(held, cap, version)
            if len(self.laws) >= LAWS:
                self.laws.clear()
            self.laws[key] = found
        return found

    def _fitted(self, held: _Epochs | None, cap: int, version: tuple[int, int]) -> _Law:
        width = _width(cap)
        bins = -(-cap // width)
        prior = 1.0 / (bins - np.arange(bins))
        if held is not None:
            prior = self._law(None, cap).hazard
        lengths = held.all() if held else self.all()
        hazard = _hazard(lengths, bins, width, prior, self.weight if held else 1.0)
        left = np.zeros(bins + 1)
        for place in range(bins - 1, -1, -1):
            left[place] = 1 + (1 - hazard[place]) * left[place + 1]
        with np.errstate(divide="ignore"):
            risk = np.concatenate([[0.0], np.cumsum(-np.log1p(-hazard))])
        return _Law(version, hazard, left, risk)


def _hazard(lengths: list[Ended], bins: int, width: int, prior: Array, weight: float) -> Array:
    """The chance to end in each part for texts that got there."""
    found = np.array([length for length, _ in lengths], np.int64)
    ended = np.array([end for _, end in lengths], bool)
    last = np.maximum(found - 1, 0) // width  # the part that the last token is in
    deaths = np.bincount(last[ended & (last < bins)], minlength=bins)[:bins]
    past = np.bincount(np.minimum(np.where(ended, last + 1, found // width), bins), minlength=bins + 1)
    risky = past[::-1].cumsum()[::-1][1:]
    total = risky + weight
    with np.errstate(invalid="ignore"):
        return np.where(total > 0, (deaths + weight * prior) / total, prior)


def _width(cap: int) -> int:
    return -(-cap // BINS)
