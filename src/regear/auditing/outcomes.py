"""What is known of a compared group, in the words by which the plain report counts and ranks groups."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from regear.auditing.cells import WITHHELD
from regear.auditing.exposure import METRIC as VISIBILITY
from regear.auditing.exposure import OTHERS
from regear.auditing.unmeasured import label
from regear.auditing.verdict import LEAST

Outcome = Literal["hurt", "possible", "unclear", "fine", "withheld"]
Row = Mapping[str, Any]
Result = Mapping[str, Any]

FEW = 5  # names in a sentence
MOST = 15  # rows of a table
SEARCHED = "found by search, and checked on units that the search had not seen"


def outcome(row: Row) -> Outcome:
    """`hurt` and `fine` are sure; `possible`: the best guess is a loss beyond the limit; `unclear`: any other doubt."""
    if row["verdict"] == WITHHELD:
        return "withheld"
    if row["verdict"] in ("harm", "no_harm"):
        return "hurt" if row["verdict"] == "harm" else "fine"
    known = row["effect"] is not None and row["ci"] and row.get("clusters", row["n"]) >= LEAST
    return "possible" if known and row["effect"] < -row["margin"] else "unclear"


def counted(rows: Iterable[Row]) -> Counter[Outcome]:
    """How many comparisons have each outcome; a row that stands for several withheld groups counts as so many."""
    found: Counter[Outcome] = Counter()
    for row in rows:
        found[outcome(row)] += row.get("groups") or 1
    return found


def hurt(result: Result) -> list[Row]:
    """All units, groups and found groups of units that are surely worse off; the worst first, those found last."""
    known = [row for row in [*result["overall"], *result["verdicts"]] if row["verdict"] == "harm"]
    searched = [{**row, "searched": True} for row in result.get("discovered", []) if row["verdict"] == "harm"]
    return [*sorted(known, key=relative), *searched]


def possibly(result: Result) -> list[Row]:
    """Groups of units whose best guess is a loss beyond the limit, the worst first."""
    return sorted((row for row in result["verdicts"] if outcome(row) == "possible"), key=relative)


def unclear(result: Result) -> list[Row]:
    """Groups of units that cannot be decided and whose best guess is no loss beyond the limit."""
    return [row for row in result["verdicts"] if outcome(row) == "unclear"]


def exposed(result: Result) -> Mapping[str, Any]:
    """The tables of visibility, by dimension of items."""
    return (result.get("exposure") or {}).get("dimensions") or {}


def named(table: Row) -> list[Row]:
    """The groups of a table of visibility, without the one that pools those seen least."""
    return [row for row in table["rows"] if not pooled(row)]


def pooled(row: Row) -> bool:
    """Whether a row of visibility stands for all groups that have none of their own."""
    return row["metric"] == VISIBILITY and OTHERS in row["slice"].values()


def by_dimension(result: Result) -> Iterator[tuple[str, list[Row]]]:
    """Every dimension, or crossing, that was compared: of units, then of items."""
    found: dict[tuple[str, ...], list[Row]] = {(r["name"],): [] for r in result["dimensions"] if r.get("registered")}
    for row in result["verdicts"]:
        found.setdefault(tuple(row["slice"]), []).append(row)
    crossed = {part for names in found if len(names) > 1 for part in names}
    yield from ((" and ".join(names), rows) for names, rows in found.items() if rows or names[0] not in crossed)
    for name, table in exposed(result).items():
        yield name, named(table)


def relative(row: Row) -> float:
    """The change as a multiple of the limit; below -1 is a loss beyond it."""
    return row["effect"] / row["margin"] if row["effect"] is not None and row["margin"] else 0.0


def name_of(row: Row) -> str:
    """The label of the group."""
    return label(row["slice"])


def searched(row: Row) -> str:
    """How a group that nobody named was found; nothing for the others."""
    return f" ({SEARCHED})" if row.get("searched") else ""


def cut(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - FEW:,} more" if len(names) > FEW else ""
    return ", ".join(names[:FEW]) + more


def plain(text: object) -> str:
    """Text that a Markdown reader shows as it is."""
    return " ".join(str(text).split()).replace("<", "&lt;").replace("|", "\\|")
