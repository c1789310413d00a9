"""Who is hurt, by how much, how sure, what was not measured, what to do: the answers in plain words."""

from collections.abc import Mapping, Sequence
from typing import Any

from regear.auditing.cells import WITHHELD
from regear.auditing.unmeasured import label
from regear.auditing.words import Teller, figure

Result = Mapping[str, Any]
Row = Mapping[str, Any]

MOST = 20  # sentences of one kind before the rest is only counted
GATE = {
    "pass": "The gate passes.",
    "fail": "The gate fails: a requirement is not met.",
    "undetermined": "The gate does not pass: a requirement could not be decided.",
    "none": "No gate was set.",
}
VISIBILITY = "visibility"
FIRST = 10  # providers that gained
SEARCHED = "found by search, and checked on units that the search had not seen"


def lead(result: Result) -> str:
    """What was compared, and whether it passed."""
    count = f"{result['units']:,}" if result.get("units") is not None else "a few"
    noun = Teller(result).noun
    names = f"{plain(result['before'])} (before) with {plain(result['after'])} (after)"
    return f"This audit compares {names} on the same {count} {noun}. {GATE[result['gate']]}"


def answers(result: Result) -> list[tuple[str, list[str]]]:
    """Questions and their answers in plain words, from a result that went through `export`."""
    teller, hurt, gains = Teller(result), _hurt(result), _gain(result)
    unsure = [row for row in result["verdicts"] if row["verdict"] == "undetermined"]
    withheld = [row for row in result["verdicts"] if row["verdict"] == WITHHELD]
    who = [f"{name_of(row)}: worse on {row['metric']}{_searched(row)}." for row in hurt]
    none = "We found no group that is surely hurt by more than what counts as none."
    unknown = f"About {len(unsure) + len(withheld)} comparisons we cannot tell or show nothing; see below."
    nobody = [none, unknown] if unsure or withheld else [none]
    sure = [*_certain(teller, result), *_cut([teller.sentence(row) for row in [*unsure, *withheld]])]
    amounts = [teller.sentence(row) for row in result["overall"]]
    amounts += [f"{teller.sentence(row)[:-1]}{_searched(row)}." for row in hurt if row["slice"]]
    found = [("Who is hurt?", _cut(who) or nobody), ("By how much?", _cut(amounts) + _visible(result))]
    if gains:
        found.append(("Who gains?", _cut([teller.sentence(row) for row in gains])))
    found += [("How sure are we?", sure), ("What was not measured?", list(result["not_measured"]))]
    return [*found, ("What to do?", advice(result))]


def _hurt(result: Result) -> list[Row]:
    """All units, slices, found slices and providers that are surely worse off, the worst first."""
    seen = [row for table in exposed(result).values() for row in table["rows"]]
    rows = [*result["overall"], *result["verdicts"], *seen]
    known = [row for row in rows if row["verdict"] == "harm"]
    searched = [{**row, "searched": True} for row in result.get("discovered", []) if row["verdict"] == "harm"]
    return [*sorted(known, key=_worst_first), *searched]


def _worst_first(row: Row) -> tuple[bool, float]:
    """People before providers; people by how far beyond the margin, providers by how much attention they lost."""
    shown = row["metric"] == VISIBILITY
    return shown, row["effect"] if shown else relative(row)


def _gain(result: Result) -> list[Row]:
    """Slices that are surely better off, and the providers that surely gained, most first."""
    better = [row for row in result["verdicts"] if row["verdict"] == "no_harm" and row["ci"] and row["ci"][0] > 0]
    seen = [row for table in exposed(result).values() for row in table["rows"]]
    more = [row for row in seen if row["verdict"] == "no_harm" and row["ci"] and row["ci"][0] > 0]
    return [*better, *sorted(more, key=lambda row: -row["effect"])[:FIRST]]


def relative(row: Row) -> float:
    return row["effect"] / row["margin"] if row["effect"] is not None and row["margin"] else 0.0


def exposed(result: Result) -> Mapping[str, Any]:
    return (result.get("exposure") or {}).get("dimensions", {})


def _certain(teller: Teller, result: Result) -> list[str]:
    """What "sure" means, how many comparisons are surely fine, and how far the search is to be trusted."""
    fine, every = sum(row["verdict"] == "no_harm" for row in result["verdicts"]), len(result["verdicts"])
    found = [teller.what_sure_means()]
    if every:
        found.append(f"In {fine} of {every} comparisons of groups we are sure that no loss beyond the limit occurred.")
    if result.get("discovered"):
        found.append("What was found by search is judged finding by finding: of many findings, a few may be luck.")
    return found


def name_of(row: Row) -> str:
    return label(row["slice"])


def _searched(row: Row) -> str:
    return f" ({SEARCHED})" if row.get("searched") else ""


def _cut(lines: Sequence[str]) -> list[str]:
    more = [f"… and {len(lines) - MOST} more, in the tables."] if len(lines) > MOST else []
    return [*lines[:MOST], *more]


def _visible(result: Result) -> list[str]:
    """Sentences about how visibility is spread."""
    found, summary = [], (result.get("exposure") or {}).get("summary", {})
    if lost := result.get("nothing_useful"):
        found.append(
            f"Of {lost['users']:,} users, {lost['lost']:,} who had something useful in their list now have nothing; "
            f"{lost['gained']:,} who had nothing now have something."
        )
    if "coverage" in summary:
        one, two = (f"{summary['coverage'][side]:.0%}" for side in ("before", "after"))
        found.append(f"Of all items, {one} stood in anyone's list before, {two} after.")
    if "providers_down" in summary:
        down = summary["providers_down"]
        found.append(
            f"Of {down['providers']:,} that were seen before (by {summary.get('provider', 'provider')}), "
            f"{down['down']:,} lost more than {down['fall']:.0%} of their visibility; "
            f"luck alone would make it about {down['by_chance']:.0%}."
        )
    if "tv_distance" in summary:
        found.append(f"{figure(100 * summary['tv_distance'])} of every 100 looks go to other items than before.")
    return found


MEND = {
    "lists": "re-rank with their interests weighed in, or train with more weight on them",
    "models": "give their language or kind of text more weight in calibration and healing",
    "tables": "give them more weight where the change was fitted",
}


def advice(result: Result) -> list[str]:
    """What to do, by rule: from the gate, who is hurt, what could not be decided, and waivers that will end."""
    hurt, found = _hurt(result), []
    mend = MEND.get(result.get("kind", ""), MEND["tables"])
    if result["gate"] in ("fail", "undetermined"):
        found.append("Do not roll the change out to everyone as it is: its gate does not pass.")
    if any(not row["slice"] for row in hurt):
        found.append("The change hurts on the whole: use a milder one, or repair it, before looking at single groups.")
    named = [name_of(row) for row in hurt if row["slice"]]
    if named:
        groups = ", ".join(dict.fromkeys(named[:5])) + (" and others" if len(named) > 5 else "")
        found.append(f"For {groups}: keep the old version, or {mend}; then audit again.")
    found += [
        f"To decide about {name_of(row)} ({row['metric']}), collect about {row['units_needed']:,} units."
        for row in result["verdicts"]
        if row["verdict"] == "undetermined" and row["units_needed"] and row["units_needed"] > row["n"]
    ][:5]
    for waiver in result.get("waivers", []):
        if waiver["state"] != "unused":
            when = "ended" if waiver["state"] == "expired" else "ends"
            where = f"{label(waiver['slice'])} ({waiver['metric']})"
            found.append(f"The waiver of {plain(waiver['owner'])} for {where} {when} on {waiver['expires']}: decide.")
    return found or ["Nothing has to be done now. Audit again with the next change, and when the data change."]


def plain(text: object) -> str:
    """Text that a Markdown reader shows as it is."""
    return " ".join(str(text).split()).replace("<", "&lt;").replace("|", "\\|")
