"""What an audit did not measure: an honest list, so that silence is not read as good news."""

from collections.abc import Mapping, Sequence
from typing import Any

from regear.auditing.cells import WITHHELD
from regear.auditing.tables import UNKNOWN
from regear.auditing.verdict import LEAST

NAMED = 8  # small slices that are named one by one
ALWAYS = (
    "Why the change does what it does: the audit compares before and after, it does not explain.",
    "Effects that take longer to show than the data cover, such as people who stop coming.",
    "People and cases that are not in the data.",
)
BY_KIND = {
    "tables": ("Anything that is not a column of the tables.",),
    "lists": (
        "What people would have done with items that were not shown to them: relevance is known only where they acted.",
        "Whether attention really falls with the position in the list as the visibility figures assume.",
    ),
    "models": (
        "Languages, tasks and styles of prompt that are not in the test texts.",
        "Whether answers are safe, polite or true, beyond what the named metrics count.",
    ),
}


def not_measured(result: Mapping[str, Any]) -> list[str]:
    """Sentences: by kind of audit, dimensions nobody named, unknown values, and slices too small to assess."""
    names = [row["name"] for row in result.get("dimensions", []) if row.get("registered", True)]
    names += [name for name in (result.get("exposure") or {}).get("dimensions", {}) if name not in names]
    given = f"Any dimension but {listed(names)}." if names else "Any slice: no dimension was named."
    found = [*BY_KIND.get(result.get("kind", ""), ()), given, *ALWAYS]
    if names and not any(row.get("sensitive") for row in result.get("dimensions", [])):
        found.append("Sensitive attributes, such as gender or age where people did not give them: none were supplied.")
    return [*found, *_not_asked(result), *_unknown(result), *_small(result)]


def label(where: Mapping[str, Any]) -> str:
    """A slice as text: `language=hi and gender=f`."""
    return " and ".join(f"{name}={value}" for name, value in where.items()) or "all units"


def _not_asked(result: Mapping[str, Any]) -> list[str]:
    """Dimensions that nobody asked for: only a search, if any, looked at them."""
    names = [row["name"] for row in result.get("dimensions", []) if not row.get("registered", True)]
    if not names:
        return []
    looked = "; only the search for further groups looked at them, and what it found surely hurt is named as such"
    return [f"Groups by {listed(names)}, one by one: nobody asked for them{looked if result.get('search') else ''}."]


def _unknown(result: Mapping[str, Any]) -> list[str]:
    found = {}
    for row in result["verdicts"]:
        ((name, value), *rest) = row["slice"].items()
        if not rest and value == UNKNOWN and row["n"] and result["units"]:
            found[name] = f"{name} is unknown for {row['n'] / result['units']:.0%} of the units; they are a slice too."
    return list(found.values())


def _small(result: Mapping[str, Any]) -> list[str]:
    withheld = sum(row.get("groups", 1) for row in _once(result) if row["verdict"] == WITHHELD)
    small = [row for row in _once(result) if row["verdict"] != WITHHELD and row["n"] is not None and _few(row)]
    found = []
    if small:
        shown = ", ".join(f"{label(row['slice'])} ({row['n']})" for row in small[:NAMED])
        more = f" and {len(small) - NAMED} more" if len(small) > NAMED else ""
        found.append(f"{_slices(len(small))} below {LEAST} units, about which nothing is said: {shown}{more}.")
    if withheld:
        below = result["suppressed"]["below"] if "suppressed" in result else "a few"
        found.append(f"{_slices(withheld)} withheld here: fewer than {below} units, or needed to hide one that is.")
    return found


def _few(row: Mapping[str, Any]) -> bool:
    return min(row["n"], row.get("clusters") or row["n"]) < LEAST


def _once(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """One row a slice, the one with the fewest units."""
    found: dict[str, Mapping[str, Any]] = {}
    for row in result["verdicts"]:
        name = label(row["slice"])
        if name not in found or (row["n"] or 0) < (found[name]["n"] or 0):
            found[name] = row
    return list(found.values())


def _slices(count: int) -> str:
    return "1 slice" if count == 1 else f"{count} slices"


def listed(names: Sequence[str]) -> str:
    """Names in a row: `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
