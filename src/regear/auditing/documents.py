"""The three documents: for the engineer, for those concerned, and for legal and compliance."""

import shlex
from collections.abc import Sequence
from typing import Any

from regear.auditing.answers import GATE, answers, lead
from regear.auditing.cells import WITHHELD
from regear.auditing.outcomes import SEARCHED, Result, Row, exposed, name_of, plain, relative
from regear.auditing.unmeasured import label, not_measured
from regear.core.report import Section, number

HEADER = ("slice", "metric", "units", "before", "after", "effect", "low", "high", "margin", "verdict", "reason")
ORIGIN = {
    None: "",
    "given": "; given for this audit",
    "usual": "; the default of this metric",
    "spread": "; the default, a tenth of the standard deviation before",
}
ORDER = {"harm": 0, "undetermined": 1, WITHHELD: 2, "no_harm": 3}
FULL = "This file holds the numbers of small groups. It is for the engineer only; hand on the other reports instead."


def rows(result: Result) -> list[list[Any]]:
    """All verdicts, all units first, then harm, undetermined, withheld, no harm."""
    ordered = sorted(result["verdicts"], key=lambda row: (ORDER[row["verdict"]], relative(row)))
    return [_cells(row) for row in [*result["overall"], *ordered]]


def _cells(row: Row) -> list[Any]:
    low, high = row["ci"] or (None, None)
    figures = [row["before"], row["after"], row["effect"], low, high, row["margin"]]
    count = f"withheld ({row['groups']} groups)" if row.get("groups", 1) > 1 else row["n"]
    return [name_of(row), row["metric"], count, *figures, row["verdict"], row.get("reason") or ""]


def found_by_search(result: Result) -> Section:
    """Slices nobody registered."""
    header = ["slice", "metric", "units", "effect", "low", "high", "q-value", "verdict", "effect in the search half"]
    lines = [
        [name_of(r), r["metric"], r["n"], r["effect"], *(r["ci"] or (None, None)), r.get("q_value"), r["verdict"],
         (r.get("search") or {}).get("effect")]
        for r in result["discovered"]
    ]  # fmt: skip
    return Section("Found by search", header, lines, f"Each was {SEARCHED}; the search half flatters what it finds.")


def exposure_tables(result: Result) -> list[Section]:
    """Visibility before and after, a table a dimension, and its distribution."""
    header = ["slice", "users reached", "before", "after", "change", "low", "high", "verdict"]
    found = []
    for name, table in exposed(result).items():
        lines = [
            [name_of(r), r["n"], r["before"], r["after"], r["effect"], *(r["ci"] or (None, None)), r["verdict"]]
            for r in table["rows"]
        ]
        found.append(Section(f"Visibility by {name}", header, lines, "Shares of all attention that the lists give."))
    return found


def gate_table(result: Result) -> Section:
    """One row a requirement and slice."""
    header = ["slice", "metric", "wanted", "margin", "found", "outcome", "asked by", "reason"]
    lines = [
        [label(entry["slice"]), row["metric"], row["verdict"], entry["margin"], entry["verdict"], entry["outcome"],
         row["asked_by"], entry["reason"] or ""]
        for row in result["gates"]
        for entry in row["slices"]
    ]  # fmt: skip
    return Section("Requirements", header, lines, GATE[result["gate"]])


def stakeholder(result: Result) -> str:
    """The account in plain words, from a result that went through `export`."""
    parts = ["# Whom does this change hurt?", lead(result)]
    for part in answers(result):
        parts += _part(part.title, part.lines)
        for table in part.tables:
            parts += [f"### {plain(table.title)}", _safe(table).markdown()]
    return "\n\n".join(parts) + "\n"


def _safe(table: Section) -> Section:
    """Without marks that a Markdown reader would take for HTML; `markdown` sees to the cells' own marks."""

    def cell(value: Any) -> Any:
        return value.replace("<", "&lt;") if isinstance(value, str) else value

    rows = [[cell(value) for value in row] for row in table.rows]
    return Section(table.title, [plain(name) for name in table.header], rows, plain(table.note))


def legal(result: Result, entries: Sequence[Row], identity: str) -> str:
    """The record: scope, provenance, thresholds, decisions, what was not measured, suppression.

    Args:
        result: that went through `export`.
        entries: of the ledger, if there is one.
        identity: the digest by which the ledger knows this result.
    """
    below = result["suppressed"]["below"]
    withheld = [
        f"Groups with fewer than {below} units are withheld, as are further groups from which they could be worked "
        f"out; {result['suppressed']['slices']} slices in all.",
        "Values of sensitive attributes appear only for groups of at least that size. No unit is identified.",
        "report.json and engineer.md hold every number: keep them with the engineer, for as long as the data "
        "themselves may be kept. The ledger holds only what this document may hold.",
    ]
    parts = [
        "# Record of an audit",
        lead(result),
        *_part("Scope", _scope(result)),
        "## Data and software",
        Section("", ["input", "SHA-256"], sorted(result.get("inputs", {}).items())).markdown(),
        Section("", ["software", "version"], sorted(result.get("versions", {}).items())).markdown(),
        *_part("Thresholds", _thresholds(result)),
        *([gate_table(result).markdown()] if result.get("gates") else []),
        *_part("Waivers", _waivers(result)),
        *_part("Decisions", _decisions(entries, identity)),
        *_part("What was not measured", list(result["not_measured"])),
        *_part("Suppression and retention", withheld),
    ]
    return "\n\n".join(parts) + "\n"


def _part(title: str, lines: Sequence[str]) -> list[str]:
    return [f"## {title}", "\n".join(f"- {plain(line)}" for line in lines)]


def _scope(result: Result) -> list[str]:
    told = [
        f"{row['name']}: {row['values']} values{', sensitive' if row['sensitive'] else ''}"
        for row in result["dimensions"]
    ]
    count = [row["verdict"] for row in result["verdicts"]]
    words = ", ".join(f"{count.count(word)} {word}" for word in ORDER if word in count)
    return [
        f"Kind: {result.get('kind', 'tables')}; the same units before and after the change.",
        f"Metrics: {', '.join(result['metrics'])}.",
        f"Dimensions: {'; '.join(told) or 'none'}.",
        f"Statements hold together at {result['level']:.0%}; {result['resamples']} resamples, seed {result['seed']}.",
        f"Outcome: {words or 'no slices'}. {GATE[result['gate']]}",
    ]


def _thresholds(result: Result) -> list[str]:
    by = f"set by {result['set_by']}" if result.get("set_by") else "nobody is named as having set them (`set_by`)"
    found = [
        f"{name}: a loss up to {number(entry['margin'])} {entry.get('unit') or ''}".rstrip()
        + f" counts as none{ORIGIN[entry.get('margin_from')]}"
        for name, entry in result["metrics"].items()
    ]
    gated = f"The gates below were {by}." if result.get("set_by") else f"Of the gates below {by}."
    return [*found, gated] if result.get("gates") else [*found, "No gates were set."]


def _waivers(result: Result) -> list[str]:
    return [
        f"{label(w['slice'])}, {w['metric']}: {w['owner']} ({w['role']}), until {w['expires']}: {w['reason']} "
        f"[{w['state']}]"
        for w in result.get("waivers", [])
    ] or ["None."]


def _decisions(entries: Sequence[Row], identity: str) -> list[str]:
    audits = {entry["entry"]: entry for entry in entries if entry["kind"] == "audit"}
    found = []
    for entry in entries:
        if entry["kind"] == "sign":
            this = audits.get(entry["of"], {}).get("result") == identity
            which = "this audit" if this else f"the audit of entry {entry['of']}"
            comment = f": {entry['comment']}" if entry["comment"] else ""
            found.append(f"{entry['time']}: {entry['name']} ({entry['role']}), {entry['decision']}, {which}{comment}")
    head = [f"Head of the ledger: {entries[-1]['digest']}"] if entries else []
    return [*(found or ["None recorded."]), *head]


def engineer(result: Result) -> str:
    """Everything, small groups too."""
    parts = ["# Audit", f"**{FULL}**", lead(result)]
    sections = [Section("Every slice", HEADER, rows(result))]
    sections += [found_by_search(result)] if result.get("discovered") else []
    sections += exposure_tables(result)
    sections += [gate_table(result)] if result.get("gates") else []
    sections.append(_apart(result))
    sections.append(Section("Inputs", ["input", "SHA-256"], sorted(result.get("inputs", {}).items())))
    sections.append(Section("Software", ["name", "version"], sorted(result.get("versions", {}).items())))
    for section in sections:
        parts += [f"## {section.title}", section.markdown()]
    every = list(dict.fromkeys([*result["not_measured"], *not_measured(result)]))
    parts += _part("Waivers", _waivers(result)) + _part("What was not measured", every)
    return "\n\n".join([*parts, "## How to repeat", f"```\n{command(result)}\n```"]) + "\n"


def _apart(result: Result) -> Section:
    lines = [
        [name_of(row), row["metric"], row["differential"]["effect"], *row["differential"]["ci"]]
        for row in result["verdicts"]
        if row.get("differential")
    ]
    note = "The effect in a slice less the effect in all other units: a loss that all share is none."
    return Section("Against the rest", ["slice", "metric", "difference", "low", "high"], lines, note)


def command(result: Result) -> str:
    """The command line that gives the same numbers; `command` of the result where it has one."""
    if result.get("command"):
        return str(result["command"])
    crossings = list(dict.fromkeys("*".join(row["slice"]) for row in result["verdicts"]))
    words = ["regear", "audit", str(result["before"]), str(result["after"])]
    for flag, values in (("--metric", result["metrics"]), ("--by", crossings)):
        words += [word for value in values for word in (flag, value)]
    words += [word for name, entry in result["metrics"].items() for word in ("--margin", f"{name}={entry['margin']!r}")]
    if any(row["sensitive"] for row in result["dimensions"]):
        words += ["--attributes", "ATTRIBUTES"]
    words += ["--level", str(result["level"]), "--resamples", str(result["resamples"]), "--seed", str(result["seed"])]
    return shlex.join(words)
