"""Three verdicts, by non-inferiority: "no significant difference" is not "no harm", and a small slice never passes."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

Word = Literal["harm", "no_harm", "undetermined"]
LEAST = 30  # independent units below which nothing is said
POWER = 0.8416  # normal quantile of 80 %


@dataclass(frozen=True)
class Verdict:
    """What is known of one slice and metric. `effect` below zero is worse, in the metric's own unit.

    `ci`: simultaneous bounds of the effect; `margin`: the loss that still counts as none; `reason`: why it is
    undetermined; `units_needed`: how many units would settle it with 80 % power if the effect is as estimated.
    """

    slice: dict[str, Any]
    metric: str
    n: int
    clusters: int
    before: float | None
    after: float | None
    effect: float | None
    ci: tuple[float, float] | None
    margin: float
    verdict: Word
    reason: str | None = None
    units_needed: int | None = None
    differential: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The JSON form; the tuple becomes a list."""
        found = asdict(self)
        return found | {"ci": list(self.ci) if self.ci else None}


def decide(low: float, high: float, margin: float) -> Word:
    """`harm` when even the upper bound lies below −margin, `no_harm` when even the lower bound lies above it."""
    if high < -margin:
        return "harm"
    return "no_harm" if low > -margin else "undetermined"


def units_needed(units: int, effect: float, error: float, margin: float, critical: float) -> int | None:
    """Units for 80 % power at this effect and spread, `units · ((critical + z) · error / |effect + margin|)²`.

    None when the effect sits at the margin itself, which no number of units settles.
    """
    distance = abs(effect + margin)
    needed = units * ((critical + POWER) * error / distance) ** 2 if distance else math.inf
    return max(LEAST, math.ceil(needed)) if needed < 1e10 else None
