"""What may leave the engineer's hands: no small group's numbers, nothing they could be worked out from, no unit ids.

A slice with fewer than `k` units (or clusters, which may be people) is withheld, and so are the slices from which it
would follow (see `cells`). Only what is listed here is copied, so what an audit adds later stays in until someone
decides otherwise. Not protected: counts that differ from metric to metric because some units lack a metric.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from regear.auditing.cells import WITHHELD, Cell, K, equations, in_order, withheld
from regear.auditing.unmeasured import not_measured
from regear.auditing.verdict import LEAST

KNOWN = ("harm", "no_harm")
PLAIN = (
    *("kind", "before", "after", "inputs", "units", "clusters", "level", "resamples", "seed", "metrics"),
    *("dimensions", "search", "gate", "set_by", "versions"),
)
SUMMARY = ("items", "coverage", "gini", "tv_distance", "provider", "providers_down")
Row = dict[str, Any]


def export(result: Mapping[str, Any], k: int = K) -> dict[str, Any]:
    """The result without small groups: their rows have neither numbers nor, in sensitive dimensions, their value.

    A withheld row keeps `slice`, `metric` and `margin`; `n`, `effect`, `ci` and the like are None, and its verdict is
    `withheld`, unless it is known and its group large enough that the word says nothing of the small one beside it.
    Rows that would look the same are one row; `groups` says how many it stands for.
    """
    sensitive = {row["name"] for row in result.get("dimensions", []) if row.get("sensitive")}
    rows = [*result["overall"], *result["verdicts"]]
    sizes = _sizes(rows)
    veil = Veil(rows, sizes, k, sensitive)
    shown = {name: copy.deepcopy(result[name]) for name in PLAIN if name in result}
    if _cell({}) in veil.hidden:
        shown |= {"units": None, "clusters": None}
    shown |= {name: veil.rows(result[name]) for name in ("overall", "verdicts")}
    shown["discovered"] = _discovered(result.get("discovered", []), sizes, veil.hidden, k)
    veils = [veil]
    if result.get("exposure"):
        shown["exposure"], more = _exposure(result["exposure"], k, sensitive)
        veils += more
    people = result.get("nothing_useful")
    if people and all(count == 0 or count >= k for count in (people["lost"], people["gained"])):
        shown["nothing_useful"] = dict(people)
    shown["gates"] = [_gate(row, veils) for row in result.get("gates", [])]
    shown["waivers"] = [_waiver(row, veils) for row in result.get("waivers", [])]
    shown["suppressed"] = {"below": k, "slices": sum(len(v.hidden) for v in veils)}
    own = [text for text in result.get("not_measured", []) if text not in not_measured(result)]
    shown["not_measured"] = [*own, *not_measured(shown)]
    return shown


class Veil:
    """What to withhold of one table of verdicts, and how a withheld row looks."""

    def __init__(self, rows: Sequence[Row], sizes: Mapping[Cell, int], k: int, sensitive: set[str]) -> None:
        self.k, self.sensitive, self.sizes = k, sensitive, sizes
        # Whom a change harms is what the report is for.
        self.hidden = withheld(sizes, k, {_cell(row["slice"]) for row in rows if row["verdict"] == "harm"})
        self.told = self._told(rows)

    def _told(self, rows: Sequence[Row]) -> set[Cell]:
        """Withheld cells whose verdict may be shown: a known verdict says "at least 30 units", which must leave the
        small groups beside it room for any number below `k`."""
        known = {_cell(row["slice"]) for row in rows if row["verdict"] in KNOWN} & self.hidden
        for total, parts in equations(self.sizes):
            told = [part for part in parts if part in known]
            room = sum(self.sizes[part] for part in parts if part in self.hidden) - LEAST * len(told)
            if total not in self.hidden and room < self.k:
                known.difference_update(told)
        return {cell for cell in known if self.sizes[cell] >= self.k}

    @property
    def reason(self) -> str:
        return f"fewer than {self.k} units, or withheld so that a group as small cannot be worked out"

    def covers(self, where: Mapping[str, Any]) -> bool:
        return _cell(where) in self.hidden

    def tells(self, row: Row) -> bool:
        """Whether a withheld row may keep its verdict."""
        return row["verdict"] in KNOWN and _cell(row["slice"]) in self.told

    def name(self, where: Mapping[str, Any]) -> Row:
        """The slice without its values in sensitive dimensions."""
        return {name: WITHHELD if name in self.sensitive else value for name, value in where.items()}

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        """The rows to show; those that would look the same as one."""
        found: dict[str, Row] = {}
        for index, row in enumerate(rows):
            shown = self._row(row) if self.covers(row["slice"]) else copy.deepcopy(row)
            key = f"{shown['slice']} {shown['metric']}" if shown["verdict"] == WITHHELD else str(index)
            if key in found:
                found[key]["groups"] += 1
            else:
                found[key] = shown
        return list(found.values())

    def _row(self, row: Row) -> Row:
        tells = self.tells(row)
        return {
            **dict.fromkeys(row),
            "slice": dict(row["slice"]) if tells else self.name(row["slice"]),
            "metric": row["metric"],
            "margin": row.get("margin"),
            "verdict": row["verdict"] if tells else WITHHELD,
            "reason": self.reason,
            "groups": 1,
        }


def _cell(where: Mapping[str, Any]) -> Cell:
    return frozenset(where.items())


def _sizes(rows: Sequence[Row]) -> dict[Cell, int]:
    """Of every slice the fewest units or clusters that any metric counts in it, of those that count any."""
    found: dict[Cell, int] = {}
    for row in rows:
        cell, size = _cell(row["slice"]), min(row["n"], row.get("clusters") or row["n"])
        known = found.get(cell, 0)
        found[cell] = min(known, size) if known and size else known or size
    return found


def _discovered(rows: Sequence[Row], sizes: Mapping[Cell, int], hidden: set[Cell], k: int) -> list[Row]:
    """Slices found by search that are large, and that leave no small rest of any slice shown."""
    kept: dict[Cell, int] = {}
    for row in rows:
        searched = (row.get("search") or {}).get("n", 0)
        cell, size = _cell(row["slice"]), row["n"]
        if size >= k and cell not in hidden and not (0 < searched < k):
            kept[cell] = size + searched
    while (small := _leaves_little(sizes, kept, hidden, k)) is not None:
        del kept[small]
    return [copy.deepcopy(row) for row in rows if _cell(row["slice"]) in kept]


def _leaves_little(sizes: Mapping[Cell, int], kept: Mapping[Cell, int], hidden: set[Cell], k: int) -> Cell | None:
    """The smallest found slice of a total that is shown and of which such slices leave fewer than `k` units."""
    every = {**kept, **sizes}
    for total, parts in equations(every):
        shown = [part for part in parts if part not in hidden]
        found = [part for part in shown if part in kept and part not in sizes]
        if found and total not in hidden and 0 < every[total] - sum(every[part] for part in shown) < k:
            return min(found, key=lambda part: (every[part], in_order(part)))
    return None


def _exposure(exposure: Row, k: int, sensitive: set[str]) -> tuple[Row, list[Veil]]:
    """Shares of visibility add up to 1 in every dimension; the number of users behind a row is its size."""
    dimensions, veils, summary = {}, [], exposure.get("summary", {})
    for name, table in exposure.get("dimensions", {}).items():
        sizes = {_cell(row["slice"]): row["n"] for row in table["rows"]}
        veil = Veil(table["rows"], {**sizes, frozenset(): sum(sizes.values())}, k, sensitive)
        plain = {key: value for key, value in table.items() if isinstance(value, (int, float))}
        dimensions[name] = {**plain, "rows": veil.rows(table["rows"])}
        veil.hidden.discard(_cell({}))
        veils.append(veil)
    kept = {key: copy.deepcopy(summary[key]) for key in SUMMARY if key in summary}
    plain = {key: exposure[key] for key in ("k", "margin", "users") if key in exposure}
    return {**plain, "dimensions": dimensions, "summary": kept}, veils


def _gate(row: Row, veils: Sequence[Veil]) -> Row:
    """A requirement without names, verdicts and reasons that belong to a withheld slice."""
    found = copy.deepcopy(row)
    found["slice"] = _named(row["slice"], veils)
    for entry in found["slices"]:
        veil = next((v for v in veils if v.covers(entry["slice"])), None)
        if veil is not None and not veil.tells(entry):
            entry |= {"slice": veil.name(entry["slice"]), "verdict": WITHHELD, "reason": veil.reason}
        elif entry.get("unmatched"):
            entry["reason"] = "no registered slice matches"  # the full reason lists the values that there are
    reasons = [entry["reason"] for entry in found["slices"] if entry["outcome"] not in ("pass", "waived")]
    return found | {"reason": reasons[0] if reasons else None}


def _named(where: Mapping[str, Any], veils: Sequence[Veil]) -> Row:
    veil = next((v for v in veils if v.covers(where) and _cell(where) not in v.told), None)
    return veil.name(where) if veil else dict(where)


def _waiver(row: Row, veils: Sequence[Veil]) -> Row:
    return {**row, "slice": _named(row["slice"], veils)}
