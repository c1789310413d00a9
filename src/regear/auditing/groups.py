"""The compared groups of units as tables: every group of one measure, the worst first, and every dimension."""

from typing import Any

from regear.auditing.outcomes import MOST, Outcome, Result, Row, by_dimension, counted, name_of, outcome
from regear.auditing.scales import scale
from regear.auditing.verdict import LEAST
from regear.auditing.words import Teller
from regear.core.report import Section

OUTCOMES: tuple[Outcome, ...] = ("hurt", "possible", "unclear", "fine", "withheld")
MOST_UNITS = 1_000_000  # above which collecting more is no advice
REST = 'the others stand in report.html under "Every slice"'


def group_tables(result: Result, teller: Teller) -> list[Section]:
    """A table a measure; those surely hurt first, then by the change, those without numbers last."""
    found = []
    for metric in result["metrics"]:
        rows = [row for row in result["verdicts"] if row["metric"] == metric]
        if rows:
            found.append(_table(result, teller, metric, sorted(rows, key=_place)))
    return found


def _place(row: Row) -> tuple[int, float, str]:
    known = row["effect"] is not None
    return (0 if row["verdict"] == "harm" else 1 if known else 2), row["effect"] if known else 0.0, name_of(row)


def _table(result: Result, teller: Teller, metric: str, rows: list[Row]) -> Section:
    points = "points of 100" if scale(metric).kind == "per_100" else "below 0 is worse"
    header = ["group", teller.noun, f"change ({points})", "possible range", "what we can say"]
    header.append(f"{teller.noun} needed to tell whether a loss is beyond the limit")
    whole = [row for row in result["overall"] if row["metric"] == metric]
    shown = [_cells(row, teller) for row in [*whole, *rows[:MOST]]]
    before = whole[0]["before"] if whole else None
    return Section(f"All groups: {teller.short(metric)}", header, shown, " ".join(_notes(result, teller, rows, before)))


def _notes(result: Result, teller: Teller, rows: list[Row], before: float | None) -> list[str]:
    metric = rows[0]["metric"]
    found = ["Below 0 is worse. Surely hurt first, then by the change."]
    if len(rows) > MOST:
        found.append(f"The first {MOST} of {len(rows):,} groups; {REST}.")
    found.append(f"The limit: a loss of up to {teller.limit(metric, before)} counts as none.")
    whole = next((row for row in result["overall"] if row["metric"] == metric), None)
    if whole and whole["n"] is not None and result.get("units") and whole["n"] < result["units"]:
        left = result["units"] - whole["n"]
        found.append(
            f"{left:,} of the {result['units']:,} {teller.noun} are left out: this measure is not known for them."
        )
    return found


def _cells(row: Row, teller: Teller) -> list[Any]:
    name = name_of(row) if row["slice"] else f"all {teller.noun}"
    if row["effect"] is None or row["ci"] is None:
        several = f" ({row['groups']} groups)" if (row.get("groups") or 1) > 1 else ""
        return [name + several, row["n"], None, None, said(row, teller.noun), None]
    few = row.get("clusters") not in (None, row["n"])
    count = f"{row['n']:,} ({row['clusters']:,} clusters)" if few else f"{row['n']:,}"
    low, high = teller.signed(row, row["ci"][0], "low"), teller.signed(row, row["ci"][1], "high")
    return [name, count, teller.signed(row, row["effect"]), f"{low} to {high}", said(row, teller.noun), needed(row)]


def said(row: Row, noun: str) -> str:
    """What can be said of one group, in a few words."""
    known = outcome(row)
    if known == "withheld":
        return "withheld: too few to show, or beside a group that is"
    if known == "hurt":
        return "surely worse, beyond the limit" + _hidden(row)
    if known == "possible":
        return "possibly hurt, not proven"
    if known == "unclear":
        few = row.get("clusters") is not None and row["clusters"] < LEAST
        return f"cannot tell: fewer than {LEAST} {noun}" if few else "cannot tell"
    if row["ci"] and row["ci"][0] > 0:
        return "surely better"
    return (
        "surely a loss within the limit" if row["ci"] and row["ci"][1] < 0 else "surely no loss beyond the limit"
    ) + _hidden(row)


def _hidden(row: Row) -> str:
    return " (numbers withheld)" if row["effect"] is None else ""


def needed(row: Row) -> str:
    """How many units would settle whether the loss is beyond the limit; a dash where that is known."""
    if row["verdict"] != "undetermined":
        return "–"
    if not row["units_needed"] or row["units_needed"] >= MOST_UNITS:
        return "more would not settle it"
    return f"about {row['units_needed']:,}" if row["units_needed"] > row["n"] else f"more than {row['n']:,}"


def dimension_table(result: Result) -> list[Section]:
    """How many comparisons of each dimension have which outcome, so that none asked for is missing."""
    header = ["by", "comparisons", "surely hurt", "possibly hurt", "cannot tell", "surely no loss beyond the limit"]
    rows = []
    for name, found in by_dimension(result):
        count = counted(found)
        rows.append([name, sum(count.values()), *(count[word] for word in OUTCOMES)])
    note = "A comparison is one group on one measure. Withheld: too few to show, or beside a group that is."
    return [Section("Every dimension", [*header, "withheld"], rows, note)] if rows else []
