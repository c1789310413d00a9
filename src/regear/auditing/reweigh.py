"""Text that makes up for what an audit found: windows of harmed slices weigh more in calibration or healing.

    weight(window) = min(most, max(1, largest loss / margin over the harmed slices that hold the window))

Losses in margins compare across metrics. The text must be new: windows that repeat audited ones are left out, or the
next audit would judge the model on what it was mended with.
"""

import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regear.auditing.tables import UNKNOWN
from regear.core.errors import DataError, RecipeError
from regear.core.files import write_text
from regear.tasks.passages import Passage, read_passages
from regear.tasks.text import WINDOW_BYTES
from regear.train.overlap import PASSAGE, plain

MOST = 4.0
STEP = 0.5  # weights are rounded to it, since rows of one weight are read as one text


@dataclass(frozen=True)
class Reweighed:
    """Rows `{text, weight}`, those of one weight side by side; windows left out because they were audited; and the
    weight of every harmed slice that has text here, and of none that has not."""

    rows: list[dict[str, Any]]
    repeated: int
    slices: list[dict[str, Any]]
    without_text: list[dict[str, Any]]

    def write(self, path: Path) -> None:
        """As JSONL, which `calibration.text=` and `heal --text` take."""
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows))


def reweigh(
    verdicts: Sequence[Mapping[str, Any]],
    text: Sequence[str | Path],
    audited: Sequence[str | Path],
    *,
    most: float = MOST,
    windows: int | None = None,
    seed: int = 0,
) -> Reweighed:
    """Weigh new text by the verdicts of an audit.

    Args:
        verdicts: of the result object, with `slice`, `effect`, `margin` and `verdict`; only those of harm count.
        text: new text with the same attributes as the audited one; see `read_passages`.
        audited: the text that was audited.
        most: the largest weight; the least is 1.
        windows: at most so many, drawn at random.
        seed: of the draw and of the order.

    Raises:
        RecipeError: no slice was harmed, the text has none of the harmed slices, or `most` is below 1.
        DataError: the texts cannot be read, or all of it was audited.
    """
    if not 1 <= most < math.inf or (windows is not None and windows < 1):
        raise RecipeError(f"found most={most}, windows={windows}; wanted a weight from 1 and at least one window")
    harmed = [v for v in verdicts if v["verdict"] == "harm" and v["slice"]]
    if not harmed:
        raise RecipeError("no slice of this audit was harmed; there is nothing to make up for")
    passages, seen = read_passages(text), read_passages(audited)
    fresh = _unseen(passages, [passage.window.text for passage in seen])
    if not fresh:
        raise DataError("every window of the text was audited, or repeats what was; give other text")
    held = {i: [p for p in fresh if _holds(v["slice"], p)] for i, v in enumerate(harmed)}
    if not any(held.values()):
        raise RecipeError(
            f"the text has no window of a harmed slice, such as {_words(harmed[0]['slice'])}; "
            "give text with the same attributes as the audited one"
        )
    draw = random.Random(seed)
    chosen = draw.sample(fresh, min(windows or len(fresh), len(fresh)))
    rows: list[dict[str, Any]] = [{"text": p.window.text, "weight": _weight(p, harmed, most)} for p in chosen]
    rows.sort(key=lambda row: -row["weight"])  # stable: random within one weight
    _refuse_short(rows)
    found = [{"slice": dict(v["slice"]), "metric": v["metric"], "weight": _of(v, most)} for v in harmed]
    return Reweighed(
        rows,
        len(passages) - len(fresh),
        [entry for i, entry in enumerate(found) if held[i]],
        [entry for i, entry in enumerate(found) if not held[i]],
    )


def _unseen(passages: Sequence[Passage], audited: Iterable[str]) -> list[Passage]:
    """Windows that are no audited window and share no run of twice `PASSAGE` characters with one."""
    known = set(map(plain, audited))
    runs = {text[i : i + PASSAGE] for text in known for i in range(0, len(text) - PASSAGE + 1, PASSAGE)}

    def seen(text: str) -> bool:
        return text in known or any(text[i : i + PASSAGE] in runs for i in range(len(text) - PASSAGE + 1))

    return [passage for passage in passages if not seen(plain(passage.window.text))]


def _holds(names: Mapping[str, Any], passage: Passage) -> bool:
    """Whether a window lies in a slice; values are compared as they are printed."""
    return all(str(passage.attributes.get(name, UNKNOWN)) == str(value) for name, value in names.items())


def _of(verdict: Mapping[str, Any], most: float) -> float:
    ratio = -verdict["effect"] / verdict["margin"] if verdict["margin"] > 0 else most
    return min(most, max(1.0, round(ratio / STEP) * STEP))


def _weight(passage: Passage, harmed: Sequence[Mapping[str, Any]], most: float) -> float:
    return max([1.0, *(_of(verdict, most) for verdict in harmed if _holds(verdict["slice"], passage))])


def _refuse_short(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of one weight are read as one text, and a text below one window is not read at all."""
    sizes: dict[float, int] = {}
    for row in rows:
        sizes[row["weight"]] = sizes.get(row["weight"], 0) + len(row["text"].encode()) + 2
    short = {weight: size for weight, size in sizes.items() if size < WINDOW_BYTES}
    if short:
        weight, size = next(iter(short.items()))
        raise DataError(
            f"the windows of weight {weight:g} hold {size} bytes; wanted {WINDOW_BYTES}: give more text of those slices"
        )


def _words(names: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in names.items())
