"""Simpson's reversals: better over all units and worse in every slice of a dimension, or the other way round.

Only a metric whose units weigh differently before and after can do it (a ratio of sums, whose mix shifts): a paired
mean over fixed weights is the weighted mean of its slices.
"""

from collections.abc import Iterator, Sequence

from regear.auditing.verdict import Verdict


def reversals(verdicts: Sequence[Verdict]) -> list[str]:
    """One plain sentence for every metric and dimension whose slices all move against the whole.

    Args:
        verdicts: those of all units (an empty slice) and of the slices.
    """
    wholes = {v.metric: v.effect for v in verdicts if not v.slice and v.effect}
    found = []
    for metric, names, parts in _partitions(verdicts):
        whole = wholes.get(metric)
        if whole is None or len(parts) < 2 or not all(part * whole < 0 for part in parts):
            continue
        better, worse = ("better", "worse") if whole > 0 else ("worse", "better")
        found.append(
            f"{metric} is {better} over all units ({whole:+.4g}) and {worse} in every slice of {' × '.join(names)}: "
            "the mix of units shifted; trust the slices"
        )
    return found


def _partitions(verdicts: Sequence[Verdict]) -> Iterator[tuple[str, tuple[str, ...], list[float]]]:
    """Per metric and dimension, or crossing of dimensions, the effects of all slices that have one."""
    groups: dict[tuple[str, tuple[str, ...]], list[float]] = {}
    for verdict in verdicts:
        if verdict.slice and verdict.effect is not None:
            groups.setdefault((verdict.metric, tuple(verdict.slice)), []).append(verdict.effect)
    for (metric, names), parts in groups.items():
        yield metric, names, parts
