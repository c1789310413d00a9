"""Reports of an audit: everything for the engineer, plain words for those concerned, a record for legal, one page.

`report.json` and `engineer.md` hold every number, small groups too, and are for the engineer only. `report.html`,
`stakeholder.md` and `legal.md` are written from `suppress.export` and may be handed on.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regear.auditing import documents, ledger
from regear.auditing.answers import answers, lead
from regear.auditing.cells import K
from regear.auditing.suppress import export
from regear.auditing.unmeasured import label
from regear.core.files import write_json, write_text
from regear.core.report import Forest, Plot, Report, Section, Series

MOST = 40  # rows of a plot
TRACKED = 5  # lines of a history
Rows = Sequence[Mapping[str, Any]]


def write(
    result: Mapping[str, Any], folder: str | Path, k: int = K, *, trail: str | Path | None = None
) -> dict[str, Path]:
    """Write the five reports; the same bytes for the same result and ledger.

    Args:
        result: of an audit.
        folder: where; made if need be.
        k: groups below so many units are withheld from what may be handed on.
        trail: a ledger, for history and decisions.

    Returns `{json, html, engineer, stakeholder, legal}`.

    Raises:
        BrokenLedger: the ledger does not hold together; nothing is written.
    """
    shown = export(result, k)
    entries = ledger.read(trail) if trail is not None else []
    place = Path(folder)
    texts = {
        "html": ("report.html", page(shown, histories(shown, trail)).html()),
        "engineer": ("engineer.md", documents.engineer(result)),
        "stakeholder": ("stakeholder.md", documents.stakeholder(shown)),
        "legal": ("legal.md", documents.legal(shown, entries, ledger.identity(result))),
    }
    paths = {"json": place / "report.json"}
    write_json(paths["json"], dict(result))
    for name, (file, text) in texts.items():
        paths[name] = place / file
        write_text(paths[name], text)
    return paths


def page(shown: Mapping[str, Any], past: Sequence[Plot] = ()) -> Report:
    """The page of a result that went through `export`."""
    told = []
    for part in answers(shown):
        told += [Section(part.title, [""], [[line] for line in part.lines]), *part.tables]
    plots = [*(_forest(shown, metric) for metric in shown["metrics"]), *_exposures(shown), *past]
    return Report(
        "Whom does this change hurt?",
        [*told, *tables(shown)],
        [plot for plot in plots if plot is not None],
        lead(shown),
    )


def tables(result: Mapping[str, Any]) -> list[Section]:
    """Every verdict, what a search found, exposure, and the gate, as tables."""
    note = "An effect below 0 is worse. All intervals hold at once. Withheld: too few units to show."
    found = [Section("Every slice", documents.HEADER, documents.rows(result), note)]
    if result.get("discovered"):
        found.append(documents.found_by_search(result))
    found += documents.exposure_tables(result)
    if result.get("gates"):
        found.append(documents.gate_table(result))
    return found


def _forest(shown: Mapping[str, Any], metric: str) -> Forest | None:
    every = [row for row in [*shown["overall"], *shown["verdicts"]] if row["metric"] == metric]
    known = [row for row in every if row["effect"] is not None and None not in (row["ci"] or [None])]
    kept = sorted(known, key=lambda row: (bool(row["slice"]), row["ci"][0]))[:MOST]
    if not kept:
        return None
    cut = f" ({len(kept)} of {len(every)}, worst first)" if len(kept) < len(every) else ""
    return Forest(
        f"{metric}: effect by slice{cut}",
        [label(row["slice"]) for row in kept],
        [row["effect"] for row in kept],
        [row["ci"][0] for row in kept],
        [row["ci"][1] for row in kept],
        [row["verdict"] for row in kept],
        -kept[0]["margin"],
        "worse  ←  effect  →  better;  dashed: the margin",
    )


def _exposures(shown: Mapping[str, Any]) -> list[Plot]:
    found = []
    for name, table in (shown.get("exposure") or {}).get("dimensions", {}).items():
        known = [row for row in table["rows"] if row["effect"] is not None]
        kept = sorted(known, key=lambda row: (-row["before"], label(row["slice"])))[:10]
        if kept:
            names = [str(next(iter(row["slice"].values()))) for row in kept]
            places = list(range(len(kept)))
            sides = [Series(side, places, [row[side] for row in kept]) for side in ("before", "after")]
            cut = f" ({len(kept)} of {len(table['rows'])})" if len(kept) < len(table["rows"]) else ""
            found.append(Plot(f"Visibility by {name}{cut}", sides, y_label="share of attention", labels=names))
    return found


def histories(shown: Mapping[str, Any], trail: str | Path | None) -> list[Plot]:
    """The effect over all audits of the ledger: all units, and the slices that lose most now; a plot a metric."""
    found = []
    for metric in shown["metrics"] if trail is not None else ():
        rows = [row for row in shown["verdicts"] if row["metric"] == metric and row["effect"] is not None]
        slices = [{}, *(row["slice"] for row in sorted(rows, key=lambda row: row["effect"])[: TRACKED - 1])]
        lines = [line for where in slices if (line := _line(trail, metric, where)) is not None]
        if lines and len(lines[0].x) > 1:
            found.append(Plot(f"{metric}: effect over audits", lines, "entry of the ledger", "effect"))
    return found


def _line(trail: str | Path | None, metric: str, where: Mapping[str, Any]) -> Series | None:
    past = [row for row in ledger.history(trail or "", metric, where) if row["effect"] is not None]
    if not past:
        return None
    return Series(label(where), [row["entry"] for row in past], [row["effect"] for row in past])


def summary(result: Mapping[str, Any], k: int = K) -> list[str]:
    """The answers in plain words, for a terminal or a card."""
    return [line for part in answers(export(result, k)) for line in part.lines]
