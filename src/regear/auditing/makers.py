"""Visibility in plain words: which makers and kinds of item people see less of, or more."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from regear.auditing.outcomes import MOST, cut, exposed, name_of, named, outcome, pooled
from regear.auditing.words import apart, figure
from regear.core.report import Section

Row = Mapping[str, Any]
Result = Mapping[str, Any]
Rows = Sequence[Row]


def lost(row: Row) -> bool:
    """Whether a group surely lost visibility, beyond the limit."""
    return bool(row["verdict"] == "harm")


def gained(row: Row) -> bool:
    """Whether it surely gained some."""
    return bool(row["verdict"] == "no_harm" and row.get("ci") and row["ci"][0] > 0)


def possible(row: Row) -> bool:
    """Whether the best guess is a loss beyond the limit, though it is not sure."""
    return outcome(row) == "possible"


def ranked(result: Result, wanted: Callable[[Row], bool]) -> list[Row]:
    """The groups wanted, of all dimensions of items, the largest change first; without those that pool the rest."""
    rows = [row for table in exposed(result).values() for row in named(table) if wanted(row)]
    return sorted(rows, key=lambda row: -abs(row["effect"] or 0.0))


def losers(result: Result) -> list[str]:
    """Who surely lost visibility, a line a dimension."""
    return _lines(result, lost, "seen less")


def winners(result: Result) -> list[str]:
    """Who surely gained it, a line a dimension; and where numbers are withheld that may be gains."""
    found = _lines(result, gained, "seen more")
    for name, table in exposed(result).items():
        hidden = sum(row.get("groups") or 1 for row in table["rows"] if row["effect"] is None)
        if hidden and any(lost(row) for row in table["rows"]):
            of = "the other group" if hidden == 1 else f"{hidden} other groups"
            found.append(
                f"Part of what was lost by {name} may have gone to {of} by {name} whose numbers are withheld: a group "
                "too small to show could be worked out from them."
            )
    return found


def _lines(result: Result, wanted: Callable[[Row], bool], what: str) -> list[str]:
    found = []
    for name, table in exposed(result).items():
        rows = ranked({"exposure": {"dimensions": {name: table}}}, wanted)
        if rows:
            of = f"By {name}, surely {what}: {len(rows):,} of {len(named(table)):,} groups"
            found.append(f"{of}, {cut([name_of(row) for row in rows])}{_together(rows)}.")
        found += [_pooled(name, table, row) for row in table["rows"] if pooled(row) and wanted(row)]
    return found


def _together(rows: Rows) -> str:
    if len(rows) < 2 or any(row["effect"] is None for row in rows):
        return ""
    one, two = apart(*(100 * sum(row[side] for row in rows) for side in ("before", "after")))
    return f"; together from {one} to {two} of every 100 looks"


def _pooled(name: str, table: Row, row: Row) -> str:
    """The groups seen least, which are compared as one."""
    if row["effect"] is None:
        return f"By {name}, surely seen {'less' if lost(row) else 'more'}: those seen least, as one; numbers withheld."
    own = len(named(table))
    what = f"The {table['grouped']:,} values of {name} that are seen least are compared only as one: the {own:,} seen "
    what += "most have a comparison each"
    return (
        f"{what}. Taken together these {table['grouped']:,} went {_moved(row)}; of any one of them this says nothing."
    )


def _moved(row: Row) -> str:
    return f"{change(row)}, surely at least {_least(row)} {'less' if lost(row) else 'more'}"


def _least(row: Row) -> str:
    end = row["ci"][1] if lost(row) else row["ci"][0]
    return figure(100 * abs(end), "down")


def change(row: Row) -> str:
    """From how much to how much of every 100 looks."""
    one, two = apart(100 * row["before"], 100 * row["after"])
    return f"from {one} to {two} of every 100 looks"


def tables(result: Result, wanted: Callable[[Row], bool]) -> list[Section]:
    """The groups wanted, the largest change first, each with what is sure."""
    rows = ranked(result, wanted)
    if not rows:
        return []
    less = "lost" if wanted is lost else "gained"
    header = ["group", "of every 100 looks before", "after", f"surely {less} at least", "stands in the lists of"]
    told = [f"The largest first; {'losses beyond the limit' if wanted is lost else 'gains of any size'}."]
    if len(rows) > MOST:
        told.append(f'The first {MOST} of {len(rows):,}; the others stand in report.html under "Visibility by …".')
    told.append(_who_counts(result))
    return [
        Section(
            f"Who is seen {'less' if wanted is lost else 'more'}",
            header,
            [_cells(row) for row in rows[:MOST]],
            " ".join(told),
        )
    ]


def _cells(row: Row) -> list[Any]:
    if row["effect"] is None:
        return [name_of(row), None, None, "withheld", None]
    return [name_of(row), *apart(100 * row["before"], 100 * row["after"]), _least(row), f"{row['n']:,} users"]


def _who_counts(result: Result) -> str:
    exposure = result["exposure"]
    users, places = exposure.get("users"), exposure.get("k")
    every = f"all {users:,} users" if users else "all users"
    where = f"the first {places} places of their list" if places else "their list"
    return (
        f"A group stands in the lists of those users who have something of it in {where}, before or after. The sure "
        f"figures count {every}: for the others the group was absent both times, so nothing changed."
    )


def spread(result: Result) -> list[str]:
    """Sentences about how visibility is spread over all items."""
    found, summary = [], (result.get("exposure") or {}).get("summary", {})
    if "coverage" in summary:
        one, two = (f"{summary['coverage'][side]:.0%}" for side in ("before", "after"))
        found.append(f"Of all items, {one} stood in anyone's list before, {two} after.")
    if "providers_down" in summary:
        down = summary["providers_down"]
        share = down["down"] / max(1, down["providers"])
        found.append(
            f"{down['down']:,} of the {down['providers']:,} {_makers(summary)} that stood in anyone's list before, "
            f"that is {share:.0%}, lost more than {down['fall']:.0%} of their visibility; by luck alone it would be "
            f"about {down['by_chance']:.0%}."
        )
    if "tv_distance" in summary:
        found.append(f"{figure(100 * summary['tv_distance'])} of every 100 looks go to other items than before.")
    return [*found, "No certainty was computed for these figures of all items and makers."] if found else []


def _makers(summary: Mapping[str, Any]) -> str:
    name = summary.get("provider", "provider")
    return "items" if name == "item" else f"makers (values of {name})"
