"""Paired effects of a change in every registered slice, with simultaneous intervals and verdicts."""

import itertools
from collections.abc import Mapping, Sequence

from regear.auditing.judge import judge
from regear.auditing.refusals import refuse_twice
from regear.auditing.units import Slices, Units
from regear.auditing.verdict import Verdict
from regear.core.errors import RecipeError

MOST_SLICES = 1000  # registered slices, metrics counted, that an audit compares
MARGIN = 0.1  # standard deviations of the metric before


def crossings(by: Sequence[str], depth: int) -> list[tuple[str, ...]]:
    """The combinations of dimensions to register: what was written with `*`, and all of up to `depth` dimensions."""
    written = [tuple(name.split("*")) for name in by]
    for names in written:
        refuse_twice(names, "dimension")
    refuse_twice(["*".join(sorted(names)) for names in written], "dimension")
    alone = [names[0] for names in written if len(names) == 1]
    deeper = [c for size in range(2, depth + 1) for c in itertools.combinations(alone, size)]
    known = {frozenset(names) for names in written}
    return [*written, *(names for names in deeper if frozenset(names) not in known)]


def margins(units: Units, given: Mapping[str, str | float]) -> dict[str, float]:
    """The margin of every metric: a number in its unit, `2%` of its mean before, or a tenth of its spread before.

    Raises:
        RecipeError: a margin for another metric, or one that is not a positive number.
    """
    names = [metric.name for metric in units.metrics]
    for name, value in given.items():
        if name not in names:
            raise RecipeError(f"found a margin for {name!r}; metrics here: {', '.join(names)}")
        if not _positive(value):
            raise RecipeError(f"found margin {name}={value}; wanted a positive number or a percentage such as 2%")
    found: dict[str, float] = {}
    for index, metric in enumerate(units.metrics):
        if metric.name not in given:
            found[metric.name] = MARGIN * units.spread(index)
            continue
        value = given[metric.name]
        if str(value).endswith("%"):
            totals = units.slices(index, ()).sums.sum((0, 1))
            found[metric.name] = float(str(value)[:-1]) / 100 * abs(float(totals[2] / totals[3]))
        else:
            found[metric.name] = float(value)
    return found


def _positive(value: str | float) -> bool:
    try:
        return 0 < float(str(value).removesuffix("%")) < float("inf")
    except ValueError:
        return False


def compare(
    units: Units,
    by: Sequence[tuple[str, ...]],
    margin: Mapping[str, float],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[Verdict]:
    """Verdicts of all units, then of every slice of `by`, for every metric; all intervals hold at once at `level`."""
    tables = [_registered(units, index, by) for index in range(len(units.metrics))]
    count = sum(len(table.names) for table in tables)
    if count > MOST_SLICES:
        raise RecipeError(f"found {count:,} slices to compare; wanted at most {MOST_SLICES:,}: name fewer dimensions")
    typical = [units.typical_change(index) for index in range(len(units.metrics))]
    return judge(tables, units.metrics, typical, margin, level=level, resamples=resamples, seed=seed)


def _registered(units: Units, metric: int, by: Sequence[tuple[str, ...]]) -> Slices:
    """All units first, then every slice."""
    found = units.slices(metric, ())
    for names in by:
        found = found + units.slices(metric, names)
    return found
