"""Gates: what an audit's verdicts must be. What cannot be decided does not pass.

An interval does not depend on the margin, so a requirement with a margin of its own decides anew from the same
interval. Every registered slice of a sensitive dimension is required not to be harmed, written down or not.
"""

from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any

from regear.auditing.requirements import ANY, Gates, Requirement, Waiver, check, load
from regear.auditing.verdict import LEAST, decide
from regear.core.recipe import closest

__all__ = ["Gates", "check", "judge", "load", "matches", "registered"]

Row = dict[str, Any]


def judge(result: Mapping[str, Any], gates: Gates, today: date) -> dict[str, Any]:
    """`{gate, gates, waivers, set_by}`: the outcome, a row per requirement, and what became of every waiver.

    Args:
        result: of an audit.
        gates: what is required.
        today: a waiver counts up to and including its day.
    """
    found = registered(result)
    required = [(requirement, "gates") for requirement in gates.require]
    required += [(requirement, "sensitive") for requirement in _of_sensitive(result, gates, found)]
    used: set[int] = set()
    rows = [_row(requirement, by, found, result, gates.waivers, today, used) for requirement, by in required]
    outcome = worst([row["outcome"] for row in rows] or ["undetermined"])
    waivers = [_waiver(waiver, today, index in used) for index, waiver in enumerate(gates.waivers)]
    return {"gate": outcome, "gates": rows, "waivers": waivers, "set_by": gates.set_by}


def registered(result: Mapping[str, Any]) -> list[Row]:
    """Every verdict that can be required: overall, of slices, and of providers' exposure."""
    exposed = (result.get("exposure") or {}).get("dimensions", {}).values()
    return [*result["overall"], *result["verdicts"], *(row for table in exposed for row in table.get("rows", []))]


def worst(outcomes: Iterable[str]) -> str:
    """`fail` before `undetermined` before `pass`."""
    found = set(outcomes)
    return next((word for word in ("fail", "undetermined") if word in found), "pass")


def matches(pattern: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    """Whether a slice has exactly the dimensions of the pattern, and its values or `*`."""
    return pattern.keys() == where.keys() and all(v == ANY or _same(v, where[name]) for name, v in pattern.items())


def _same(one: Any, other: Any) -> bool:
    """Equal as written: files say `3` where a table says `3.0` or "3"; true is no number."""
    if isinstance(one, bool) or isinstance(other, bool):
        return str(one).lower() == str(other).lower()
    return bool(one == other) or str(one) == str(other)


def _of_sensitive(result: Mapping[str, Any], gates: Gates, found: list[Row]) -> list[Requirement]:
    """A requirement for every metric and combination of dimensions that holds a sensitive one, but for slices that
    the gates already require to be unharmed, at a margin they may set."""
    sensitive = {row["name"] for row in result.get("dimensions", []) if row.get("sensitive")}
    wanted: list[Requirement] = []
    for row in found:
        if not sensitive & set(row["slice"]):
            continue
        covered = any(
            r.verdict == "no_harm" and r.metric == row["metric"] and matches(r.slice, row["slice"])
            for r in gates.require
        )
        if not covered:
            wanted.append(Requirement(slice=row["slice"], metric=row["metric"]))
    return wanted


def _row(
    requirement: Requirement,
    by: str,
    found: list[Row],
    result: Mapping[str, Any],
    waivers: list[Waiver],
    today: date,
    used: set[int],
) -> Row:
    rows = [row for row in found if row["metric"] == requirement.metric and matches(requirement.slice, row["slice"])]
    judged = [_judged(requirement, row, result) for row in rows] or [_missing(requirement, found)]
    for entry in judged:
        if entry["outcome"] != "pass":
            _waive(entry, requirement.metric, waivers, today, used)
    outcomes = [entry["outcome"] for entry in judged]
    reasons = [entry["reason"] for entry in judged if entry["outcome"] not in ("pass", "waived")]
    return {
        "slice": dict(requirement.slice),
        "metric": requirement.metric,
        "margin": requirement.margin,
        "verdict": requirement.verdict,
        "asked_by": by,
        "outcome": worst(outcomes),
        "reason": reasons[0] if reasons else None,
        "slices": judged,
    }


def _judged(requirement: Requirement, row: Row, result: Mapping[str, Any]) -> Row:
    margin, word, reason = row.get("margin"), row["verdict"], row.get("reason")
    if requirement.margin is not None:
        margin = _absolute(requirement, result)
        word, reason = _again(row, margin)
    passes = word == "no_harm" or (requirement.verdict == "not_harm" and word == "undetermined")
    outcome = "pass" if passes else "fail" if word == "harm" else "undetermined"
    if word == "harm":
        reason = "harmed by more than the margin"
    return {"slice": row["slice"], "margin": margin, "verdict": word, "outcome": outcome, "reason": reason}


def _absolute(requirement: Requirement, result: Mapping[str, Any]) -> float | None:
    """The margin in the metric's unit; a percentage is of the mean of all units before."""
    text = str(requirement.margin)
    if not text.endswith("%"):
        return float(text)
    means = [row["before"] for row in result["overall"] if row["metric"] == requirement.metric]
    return float(text[:-1]) / 100 * abs(means[0]) if means and means[0] else None


def _again(row: Row, margin: float | None) -> tuple[str, str | None]:
    """The verdict at another margin, from the same interval; what was undetermined for another cause stays so."""
    low, high = row.get("ci") or (None, None)
    if margin is None or low is None or high is None:
        return "undetermined", row.get("reason") or "no interval, or no mean before to take a percentage of"
    undecided = row["verdict"] == "undetermined"
    few = row.get("clusters") is not None and row["clusters"] < LEAST
    if few or (undecided and (row.get("margin") is None or decide(low, high, row["margin"]) != "undetermined")):
        return "undetermined", row.get("reason")
    word = decide(low, high, margin)
    return word, "the interval reaches across the margin" if word == "undetermined" else None


def _missing(requirement: Requirement, found: list[Row]) -> Row:
    return {
        "slice": dict(requirement.slice),
        "margin": None,
        "verdict": "undetermined",
        "outcome": "undetermined",
        "reason": _why_missing(requirement, found),
        "unmatched": True,
    }


def _why_missing(requirement: Requirement, found: list[Row]) -> str:
    names = requirement.slice.keys()
    there = [row["slice"] for row in found if row["metric"] == requirement.metric and row["slice"].keys() == names]
    if not there:
        return f"no slice of {'*'.join(names) or 'all units'} was registered for {requirement.metric}; audit it by that"
    for name, value in requirement.slice.items():
        seen = list(dict.fromkeys(str(where[name]) for where in there))
        if value != ANY and not any(_same(value, where[name]) for where in there):
            quote = "; YAML reads bare yes and no as true and false: quote them" if isinstance(value, bool) else ""
            return f"no units with {name}={value}{closest(str(value), seen)}; it has {', '.join(seen[:10])}{quote}"
    return "no units in this slice"


def _waive(entry: Row, metric: str, waivers: list[Waiver], today: date, used: set[int]) -> None:
    for index, waiver in enumerate(waivers):
        if waiver.metric != metric or not matches(waiver.slice, entry["slice"]):
            continue
        if today > waiver.expires:
            entry["reason"] = f"{entry['reason']}; the waiver of {waiver.owner} expired on {waiver.expires}"
            continue
        used.add(index)
        entry["outcome"] = "waived"
        entry["waiver"] = {"owner": waiver.owner, "role": waiver.role, "expires": str(waiver.expires)}
        return


def _waiver(waiver: Waiver, today: date, used: bool) -> Row:
    state = "expired" if today > waiver.expires else "used" if used else "unused"
    return {**waiver.model_dump(mode="json"), "state": state}
