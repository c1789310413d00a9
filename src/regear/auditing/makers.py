"""Visibility in plain words: which makers and kinds of item people see less of, or more."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from regear.auditing.cells import WITHHELD
from regear.auditing.unmeasured import label
from regear.auditing.words import Teller, apart, figure

VISIBILITY = "visibility"
MANY = 4  # groups of one dimension above which they are told together
Row = Mapping[str, Any]
Result = Mapping[str, Any]


def losers(result: Result) -> list[str]:
    """Who surely lost visibility, a line a dimension."""
    found = [_named(name, rows, "lose visibility") for name, rows in _dimensions(result, _lost)]
    if not found:
        return []
    meaning = "Visibility is the share of all looks, if people look most at the top of a list."
    return [*found, meaning]


def winners(result: Result) -> list[str]:
    """Who surely gained it."""
    return [
        f"{_named(name, rows, 'gain visibility')[:-1]}: {_together(rows)}."
        for name, rows in _dimensions(result, _gained)
    ]


def amounts(result: Result, teller: Teller) -> list[str]:
    """How much was lost: group by group where they are few, else together and the largest."""
    found = []
    for name, rows in _dimensions(result, _lost):
        told = [_moved(row, teller) for row in rows[:MANY]]
        if len(rows) > MANY:
            found.append(f"{_named(name, rows, 'lost visibility')[:-1]}: {_together(rows)}. The largest losses:")
        found += told
    return [*found, *_spread(result)]


def _lost(row: Row) -> bool:
    return bool(row["verdict"] == "harm" and row.get("effect") is not None)


def _gained(row: Row) -> bool:
    return bool(row["verdict"] == "no_harm" and row.get("ci") and row["ci"][0] > 0)


def _dimensions(result: Result, wanted: Any) -> Iterator[tuple[str, list[Row]]]:
    """Per dimension of items, the rows wanted, the largest change first."""
    for name, table in ((result.get("exposure") or {}).get("dimensions") or {}).items():
        rows = [row for row in table["rows"] if row["verdict"] != WITHHELD and wanted(row)]
        if rows:
            yield name, sorted(rows, key=lambda row: -abs(row["effect"]))


def _named(name: str, rows: Sequence[Row], what: str) -> str:
    if len(rows) <= MANY:
        return f"{', '.join(label(row['slice']) for row in rows)}: {what}."
    return (
        f"{len(rows)} groups by {name} {what}: {', '.join(str(row['slice'][name]) for row in rows[:MANY])} and others."
    )


def _together(rows: Sequence[Row]) -> str:
    sides = [100 * sum(row[side] for row in rows) for side in ("before", "after")]
    one, two = apart(*sides)
    return f"together from {one} to {two} of every 100 looks"


def _moved(row: Row, teller: Teller) -> str:
    one, two = apart(100 * row["before"], 100 * row["after"])
    least = teller.bound(VISIBILITY, row["ci"][1], row["before"], "down").removesuffix(" per 100")
    shown = f"judged on the lists of {row['n']:,} users"
    return f"{label(row['slice'])}: from {one} to {two} of every 100 looks; surely at least {least} less ({shown})."


def _spread(result: Result) -> list[str]:
    """Sentences about how visibility is spread over all items."""
    found, summary = [], (result.get("exposure") or {}).get("summary", {})
    if "coverage" in summary:
        one, two = (f"{summary['coverage'][side]:.0%}" for side in ("before", "after"))
        found.append(f"Of all items, {one} stood in anyone's list before, {two} after.")
    if "providers_down" in summary:
        down = summary["providers_down"]
        share = down["down"] / max(1, down["providers"])
        found.append(
            f"{down['down']:,} of {down['providers']:,} that were seen before (by {summary.get('provider', 'provider')}"
            f"), that is {share:.0%}, lost more than {down['fall']:.0%} of their visibility; by luck alone it would be "
            f"about {down['by_chance']:.0%}."
        )
    if "tv_distance" in summary:
        found.append(f"{figure(100 * summary['tv_distance'])} of every 100 looks go to other items than before.")
    return found
