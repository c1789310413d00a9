"""The audit in the card of the model it is about, between two marks, so that the next audit takes its place."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regear.auditing.cells import WITHHELD
from regear.auditing.suppress import export
from regear.auditing.unmeasured import label
from regear.core.errors import CheckpointError
from regear.core.files import write_text
from regear.core.report import Section

BEGIN, END = "<!-- audit: begin -->", "<!-- audit: end -->"
SHOWN = 10  # slices
ORDER = ("harm", "undetermined", "no_harm", WITHHELD)


def check_card(model: Path) -> None:
    """Refuse a model that has no card to write into, before any work.

    Raises:
        CheckpointError: no directory, or no README.md in it.
    """
    if not (model / "README.md").is_file():
        raise CheckpointError(f"no README.md in {model}; wanted the directory of a model with a card")


def write_card(result: Mapping[str, Any], model: Path, k: int = 10) -> None:
    """Put the audit at the end of the card, or in the place of the last one; small groups are withheld."""
    check_card(model)
    path = model / "README.md"
    text = path.read_text(encoding="utf-8")
    body = f"{BEGIN}\n{_section(export(result, k))}\n{END}"
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    found = pattern.sub(lambda _: body, text) if pattern.search(text) else f"{text.rstrip()}\n\n{body}\n"
    write_text(path, found)


def _section(shown: Mapping[str, Any]) -> str:
    words = [row["verdict"] for row in shown["verdicts"]]
    counted = ", ".join(f"{words.count(word)} {word}" for word in ORDER)
    rows = [row for row in [*shown["overall"], *shown["verdicts"]] if row.get("effect") is not None]
    rows.sort(key=lambda row: (bool(row["slice"]), ORDER.index(row["verdict"]) if row["verdict"] in ORDER else 9))
    table = Section(
        "",
        ["slice", "metric", "units", "before", "after", "effect", f"{shown['level']:.0%} from", "to", "verdict"],
        [
            [
                label(r["slice"]),
                r["metric"],
                r["n"],
                r["before"],
                r["after"],
                r["effect"],
                *(r["ci"] or (None, None)),
                r["verdict"],
            ]
            for r in rows[: SHOWN + len(shown["overall"])]
        ],
    )
    lead = (
        f"Against {shown['before']}: {len(words)} slices ({counted}), gate: {shown['gate']}. "
        f"Effects below 0 are worse; all intervals hold together at {shown['level']:.0%}."
    )
    return f"## Whom the change hurts\n\n{lead}\n\n{table.markdown()}"
