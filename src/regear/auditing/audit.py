"""`regear audit`: whom a change hurts, slice by slice."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regear.auditing import compare as comparing
from regear.auditing.tables import columns_of, joined, resolve_metrics, scan
from regear.auditing.units import coded


def audit(
    before: str | Path,
    after: str | Path,
    *,
    metric: Sequence[str] = (),
    by: Sequence[str] = (),
    depth: int = 1,
    margin: Mapping[str, str | float] | None = None,
    attributes: str | Path | None = None,
    weight: str | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare a metric of the same units before and after a change, in every slice named.

    Args:
        before: a table of units (JSONL, parquet or CSV).
        after: the same units after the change.
        metric: metric columns; `a/b` is a ratio of sums.
        by: dimensions; `a*b` is their crossing.
        depth: also cross the dimensions of `by` with each other, up to so many at once.
        margin: per metric, the loss that still counts as none: a number, or `2%` of the mean before.
        attributes: a table of attributes kept apart, joined by id; its columns count as sensitive.
        weight: a column that says what each unit counts for.
        level: of all intervals together.
        resamples: bootstrap draws.
        seed: of the draws.

    Returns the JSON object that `regear audit --json` prints.
    """
    one, two = scan(before), scan(after)
    apart = scan(attributes) if attributes is not None else None
    metrics = resolve_metrics(metric, one, ("id", "cluster", *by, *([weight] if weight else [])))
    crossings = comparing.crossings(by, depth)
    names = list(dict.fromkeys(name for crossing in crossings for name in crossing))
    both = joined(one, two, metrics, names, attributes=apart, weight=weight)
    sensitive = [name for name in columns_of(apart) if name != "id"] if apart is not None else []
    with coded(both, metrics, names, sensitive=sensitive, seed=seed) as units:
        allowed = comparing.margins(units, margin or {})
        found = comparing.compare(units, crossings, allowed, level=level, resamples=resamples, seed=seed)
    return {
        "units": units.count,
        "level": level,
        "seed": seed,
        "metrics": {m.name: {"lower_is_better": m.lower, "margin": allowed[m.name]} for m in metrics},
        "overall": [verdict.as_dict() for verdict in found if not verdict.slice],
        "verdicts": [verdict.as_dict() for verdict in found if verdict.slice],
        "gate": "none",
    }
