"""Who is hurt, by how much, how sure, what was not measured, what to do: the answers in plain words."""

from collections.abc import Mapping, Sequence
from typing import Any

from regear.auditing import makers
from regear.auditing.cells import WITHHELD
from regear.auditing.makers import VISIBILITY
from regear.auditing.unmeasured import label
from regear.auditing.verdict import LEAST
from regear.auditing.words import Teller

Result = Mapping[str, Any]
Row = Mapping[str, Any]

MOST = 20  # sentences of one kind before the rest is only counted
GATE = {
    "pass": "The gate passes.",
    "fail": "The gate fails: a requirement is not met.",
    "undetermined": "The gate does not pass: a requirement could not be decided.",
    "none": "No gate was set.",
}
FEW = 5  # names in a sentence
MOST_UNITS = 1_000_000  # above which collecting more is no advice
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
    people = [row for row in hurt if row["metric"] != VISIBILITY]
    unsure = [row for row in result["verdicts"] if row["verdict"] == "undetermined"]
    withheld = [row for row in result["verdicts"] if row["verdict"] == WITHHELD]
    sure = [*_certain(teller, result), *_cut([teller.sentence(row) for row in [*unsure, *withheld]])]
    amounts = [teller.sentence(row) for row in result["overall"]]
    amounts += [f"{teller.sentence(row)[:-1]}{_searched(row)}." for row in people if row["slice"]]
    found = [
        ("Who is hurt?", [*_who(result, people, unsure, withheld), *makers.losers(result)]),
        ("By how much?", [*_cut(amounts), *_nothing(result), *makers.amounts(result, teller)]),
    ]
    if gains or makers.winners(result):
        found.append(("Who gains?", [*_cut([teller.sentence(row) for row in gains]), *makers.winners(result)]))
    found += [("How sure are we?", sure), ("What was not measured?", list(result["not_measured"]))]
    return [*found, ("What to do?", advice(result))]


def _who(result: Result, hurt: list[Row], unsure: list[Row], withheld: list[Row]) -> list[str]:
    """Those surely hurt; else that none is, and of how many that cannot be said; then those who may be."""
    found = _cut([f"{name_of(row)}: worse on {row['metric']}{_searched(row)}." for row in hurt])
    if not found:
        of = f"group of {Teller(result).noun}" if result.get("exposure") else "group"
        found = [f"We found no {of} that is surely hurt by more than what counts as none."]
    if not hurt and (unsure or withheld):
        found.append(f"About {len(unsure) + len(withheld)} comparisons we cannot tell or show nothing; see below.")
    maybe = [row for row in unsure if row["effect"] is not None and row["effect"] < -row["margin"] and row["ci"]]
    maybe = [row for row in maybe if row.get("clusters", row["n"]) >= LEAST]
    if maybe:
        names = [f"{name_of(row)} ({row['metric']})" for row in sorted(maybe, key=relative)]
        more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
        found.append(f"Possibly hurt, not proven: {', '.join(names[:FEW])}{more}.")
    return found


def _nothing(result: Result) -> list[str]:
    lost = result.get("nothing_useful")
    if not lost:
        return []
    return [
        f"Of {lost['users']:,} users, {lost['lost']:,} who had something useful in their list now have nothing; "
        f"{lost['gained']:,} who had nothing now have something."
    ]


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
    return [row for row in result["verdicts"] if row["verdict"] == "no_harm" and row["ci"] and row["ci"][0] > 0]


def relative(row: Row) -> float:
    return row["effect"] / row["margin"] if row["effect"] is not None and row["margin"] else 0.0


def exposed(result: Result) -> Mapping[str, Any]:
    return (result.get("exposure") or {}).get("dimensions", {})


def _certain(teller: Teller, result: Result) -> list[str]:
    """What "sure" means, which comparisons are surely fine, and how far the search is to be trusted."""
    fine = [row for row in result["verdicts"] if row["verdict"] == "no_harm"]
    found = [teller.what_sure_means()]
    if result["verdicts"]:
        names = list(dict.fromkeys(name_of(row) for row in fine))
        told = f": {', '.join(names)}" if 0 < len(names) <= FEW else ""
        many = f"{len(fine)} of {len(result['verdicts'])}"
        found.append(f"In {many} comparisons of groups we are sure that no loss beyond the limit occurred{told}.")
    if result.get("exposure"):
        found.append("What is said of visibility is sure in the same way, taken together by itself.")
    if any(row["verdict"] == "harm" for row in result.get("discovered", [])):
        found.append("What was found by search is judged finding by finding: of many findings, a few may be luck.")
    return found


def name_of(row: Row) -> str:
    return label(row["slice"])


def _searched(row: Row) -> str:
    return f" ({SEARCHED})" if row.get("searched") else ""


def _cut(lines: Sequence[str]) -> list[str]:
    more = [f"… and {len(lines) - MOST} more, in the tables."] if len(lines) > MOST else []
    return [*lines[:MOST], *more]


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
    named = list(dict.fromkeys(name_of(row) for row in hurt if row["slice"]))
    if named:
        groups = ", ".join(named[:FEW]) + (" and others" if len(named) > FEW else "")
        found.append(
            f"For {groups}: do not launch as it is. First {mend}, then audit again; else keep the old version."
        )
    noun = Teller(result).noun
    found += [
        f"To decide about {name_of(row)} ({row['metric']}), it takes about {row['units_needed']:,} {noun} of that kind "
        f"in all; here there are {row['n']:,}."
        for row in sorted(result["verdicts"], key=relative)
        if row["verdict"] == "undetermined" and row["units_needed"] and row["n"] < row["units_needed"] < MOST_UNITS
    ][:FEW]
    for waiver in result.get("waivers", []):
        if waiver["state"] != "unused":
            when = "ended" if waiver["state"] == "expired" else "ends"
            where = f"{label(waiver['slice'])} ({waiver['metric']})"
            found.append(f"The waiver of {plain(waiver['owner'])} for {where} {when} on {waiver['expires']}: decide.")
    return found or ["Nothing has to be done now. Audit again with the next change, and when the data change."]


def plain(text: object) -> str:
    """Text that a Markdown reader shows as it is."""
    return " ".join(str(text).split()).replace("<", "&lt;").replace("|", "\\|")
